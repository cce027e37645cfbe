"""Real renders of small topics at 160 x 90."""

import gc
import json
import sys
import weakref
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from scenes import series
from scripts.pipeline import manifest, units, worker
from scripts.pipeline.encode import Encoder, read_frames
from scripts.pipeline.errors import WrongUse
from scripts.pipeline.jobs import Request, TopicResult
from scripts.pipeline.render import render
from tests.scripts.conftest import SMALL
from tests.scripts.topics import tiny

pytestmark = pytest.mark.usefixtures("small_topics")
VIDEO_UNITS = ["opening", "grid", "row", "ending"]


class Listener:
    """Remembers what was reported."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.ended: list[str] = []

    def begin(self, slug: str) -> None:
        pass

    def update(self, slug: str, done: float, total: float) -> None:
        self.shares.append(done / total)

    def end(self, result: TopicResult) -> None:
        self.ended.append(result.slug)


class NoWorker(Executor):
    """An executor that must not be asked."""

    def submit(self, fn, /, *args, **kwargs):
        raise AssertionError(f"work was handed out: {args}")


def request(out: Path, **changes) -> Request:
    return replace(Request(quality=SMALL, out=out, jobs=1), **changes)


def one(out: Path, **changes) -> TopicResult:
    result = render(["tiny"], request(out, **changes), Listener())[0]
    assert result.error is None, result.error
    return result


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """The folder of the small topic, rendered in this process in both themes."""
    out = tmp_path_factory.mktemp("rendered")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "TOPICS", (tiny.TOPIC,))
        patch.setenv("LLM_INTERNALS_CACHE", str(tmp_path_factory.mktemp("cache")))
        one(out, themes=("dark", "light"))
    return out / "tiny"


def test_a_topic_gets_all_its_files_in_both_themes_and_nothing_else(rendered):
    dark = {"tiny.mp4", "tiny.vtt", "tiny.srt", "chapters.vtt", "transcript.md", "poster.png", "sheet.png"}
    dark |= {"loop.gif", "loop.webp", "loop.mp4"}
    light = {f"{Path(name).stem}-light{Path(name).suffix}" for name in dark}
    assert {path.name for path in rendered.iterdir()} == dark | light | {"manifest.json"}
    assert all(path.stat().st_size for path in rendered.iterdir())


def test_the_video_has_chapter_marks_and_soft_captions_that_are_off(rendered):
    with av.open(str(rendered / "tiny.mp4")) as container:
        marks = container.chapters()
        assert [mark["metadata"]["title"] for mark in marks] == [
            "Tiny topic",
            "First: the grid",
            "Second",
            "In one sentence",
        ]
        captions = container.streams.subtitles[0]
        assert captions.language == "eng"
        assert not captions.disposition & av.stream.Disposition.default
        assert container.metadata["title"] == "Tiny topic"
        ends = [mark["end"] * mark["time_base"] for mark in marks]
        assert float(ends[-1]) == pytest.approx(container.duration / 1e6, abs=0.1)


def test_the_length_of_the_video_is_the_sum_of_its_units(rendered):
    facts = json.loads((rendered / "manifest.json").read_text())["renders"]["dark"]
    assert [unit["name"] for unit in facts["units"]] == VIDEO_UNITS
    frames = sum(1 for _ in read_frames(rendered / "tiny.mp4"))
    assert frames == round(15 * sum(unit["seconds"] for unit in facts["units"])) == round(15 * facts["seconds"])


def test_the_manifest_names_every_file_with_its_size_and_says_where_numbers_came_from(rendered):
    about = json.loads((rendered / "manifest.json").read_text())
    assert about["alt"] == "A grid that moves to the right and back."
    for theme in ("dark", "light"):
        facts = about["renders"][theme]
        assert all((rendered / name).stat().st_size == file["bytes"] for name, file in facts["files"].items())
        assert facts["config"] == {"seed": 0, "shift": 0.0}
        assert set(facts["provenance"]) >= {"model", "core"}
        assert [caption["text"] for caption in facts["captions"]] == ["Here are six numbers.", "And here are three."]
        origins = {entry["origin"] for entry in facts["ledger"] if entry["unit"] == "grid"}
        assert any(origin.startswith("numbers") for origin in origins)


def test_captions_are_counted_from_the_start_of_the_video(rendered):
    facts = json.loads((rendered / "manifest.json").read_text())["renders"]["dark"]
    second = next(unit for unit in facts["units"] if unit["name"] == "row")
    assert facts["captions"][1]["start"] == pytest.approx(second["start"], abs=1e-3)
    assert "And here are three." in (rendered / "tiny.vtt").read_text()


def test_the_background_of_each_theme_is_in_its_files(rendered):
    dark, light = (
        np.array(Image.open(rendered / name).convert("RGB"))[0, 0] for name in ("poster.png", "poster-light.png")
    )
    assert dark.max() < 60
    assert light.min() > 200


def test_first_and_last_frame_of_the_loop_match(rendered):
    frames = list(read_frames(rendered / "loop.mp4"))
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() < 1


def test_parallel_output_is_byte_for_byte_the_serial_output(rendered, tmp_path):
    one(tmp_path, themes=("dark", "light"), jobs=2, fresh=True)
    names = sorted(path.name for path in rendered.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "tiny").iterdir())
    different = [n for n in names if (rendered / n).read_bytes() != (tmp_path / "tiny" / n).read_bytes()]
    assert different == []


def test_nothing_is_handed_out_when_nothing_changed(empty_cache, tmp_path):
    first = one(tmp_path)
    again = render(["tiny"], request(tmp_path), Listener(), executor=NoWorker())[0]
    assert again.files == first.files
    assert (first.rendered, first.reused) == (5, 0)
    assert (again.rendered, again.reused) == (0, 5)


def test_a_save_during_a_render_is_seen_by_the_next(empty_cache, tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(manifest, "source_hash", lambda module: f"{module} after {len(saves)} saves")

    class Saving(Listener):
        def begin(self, slug: str) -> None:
            saves.append(slug)  # when the hash of the sources was taken, and before a worker reads them

    render(["tiny"], request(tmp_path), Saving())
    with pytest.raises(AssertionError, match="work was handed out"):
        render(["tiny"], request(tmp_path), Listener(), executor=NoWorker())


def test_a_lost_file_is_made_again_from_kept_units(empty_cache, tmp_path):
    one(tmp_path)
    (tmp_path / "tiny" / "loop.gif").unlink()
    again = one(tmp_path)
    assert (again.rendered, again.reused) == (0, 5)
    assert (tmp_path / "tiny" / "loop.gif").is_file()


def test_a_damaged_unit_is_rendered_again_and_the_video_is_the_same(empty_cache, tmp_path):
    one(tmp_path / "a", formats=("mp4",))
    video = max(units.unit_folder().glob("*/video.mp4"), key=lambda path: path.stat().st_size)
    video.write_bytes(video.read_bytes()[:-100])
    again = one(tmp_path / "b", formats=("mp4",))
    assert (again.rendered, again.reused) == (1, 3)
    assert (tmp_path / "a/tiny/tiny.mp4").read_bytes() == (tmp_path / "b/tiny/tiny.mp4").read_bytes()


def test_another_setting_renders_other_numbers(empty_cache, tmp_path):
    one(tmp_path / "a", formats=("mp4",))
    other = one(tmp_path / "b", formats=("mp4",), settings=("seed=1",))
    assert (other.rendered, other.reused) == (2, 2)  # title card and end card show none of them
    config = json.loads((tmp_path / "b/tiny/manifest.json").read_text())["renders"]["dark"]["config"]
    assert config == {"seed": 1, "shift": 0.0}
    assert (tmp_path / "a/tiny/tiny.mp4").read_bytes() != (tmp_path / "b/tiny/tiny.mp4").read_bytes()


def test_a_setting_renders_only_the_chapters_that_show_what_it_changes(empty_cache, tmp_path):
    one(tmp_path, formats=("mp4",))
    other = one(tmp_path, formats=("mp4",), settings=("shift=0.5",))
    assert (other.rendered, other.reused) == (1, 3)
    back = one(tmp_path, formats=("mp4",))
    assert (back.rendered, back.reused) == (0, 4)


def test_a_render_prunes_to_the_limit_but_keeps_what_it_made(empty_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_INTERNALS_CACHE_LIMIT", "1B")
    one(tmp_path, formats=("gif",))
    other = one(tmp_path, formats=("gif",), settings=("seed=1",))
    again = one(tmp_path, formats=("gif",), settings=("seed=1",), make="gif")
    assert (other.rendered, again.reused) == (1, 1)
    assert len(list(units.unit_folder().iterdir())) == 1


def test_a_worker_keeps_the_encoder_of_one_unit_at_most(empty_cache, monkeypatch, tmp_path):
    made = []

    class Watched(Encoder):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))
            held.append(sum(encoder() is not None for encoder in made))

    held: list[int] = []
    monkeypatch.setattr(worker, "Encoder", Watched)
    gc.disable()  # by chance it would come in time
    try:
        one(tmp_path, formats=("mp4",))
    finally:
        gc.enable()
    assert held == [1, 1, 1, 1]


def test_a_render_leaves_nothing_but_units_in_the_cache(empty_cache, tmp_path):
    one(tmp_path, formats=("gif",))
    assert [path.name[:1] for path in units.unit_folder().iterdir() if path.name.startswith(".")] == []


def test_formats_of_the_loop_need_no_chapter(empty_cache, tmp_path):
    result = one(tmp_path, formats=("gif", "poster"))
    assert {path.name for path in result.files} == {"loop.gif", "poster.png", "manifest.json"}
    assert result.rendered == 1


@pytest.mark.parametrize("chapter", ["2", "row"])
def test_a_chapter_alone_is_a_clip_with_its_captions(empty_cache, tmp_path, chapter):
    result = one(tmp_path, make="clip", chapter=chapter)
    assert [path.name for path in result.files] == ["tiny-row.mp4", "tiny-row.vtt"]
    assert "00:00:00.000" in (tmp_path / "tiny/tiny-row.vtt").read_text()


@pytest.mark.parametrize("chapter", ["0", "3", "rows", "-1"])
def test_a_chapter_that_does_not_exist_is_answered_with_the_list(tmp_path, chapter):
    with pytest.raises(WrongUse, match=f"tiny has no chapter '{chapter}'; it has 1 grid, 2 row, or all"):
        render(["tiny"], request(tmp_path, make="clip", chapter=chapter), Listener())


def test_a_sheet_shows_every_key_frame_and_stills_are_files_of_their_own(empty_cache, tmp_path):
    options = {"stills": tmp_path / "stills", "columns": 2}
    result = one(tmp_path / "out", make="sheet", formats=("sheet",), options=options)
    stills = sorted(path.name for path in (tmp_path / "stills").iterdir())
    assert stills[0] == "tiny-ending-00.png"
    assert len(stills) == len(result.files) - 1 == 1 + 1 + 1 + 1 + 8  # cards, chapters of one beat, the loop
    sheet = Image.open(tmp_path / "out/tiny/sheet.png")
    still = Image.open(tmp_path / "stills/tiny-grid-00.png")
    assert still.size == (160, 90)
    assert sheet.width < 3 * still.width  # two columns and their gaps
    assert sheet.height > 6 * still.height


def test_a_still_is_the_frame_of_its_time_to_the_bit_of_what_was_drawn(empty_cache, tmp_path):
    one(tmp_path, formats=("mp4",))
    facts = [json.loads(path.read_text()) for path in units.unit_folder().glob("*/unit.json")]
    grid = next(fact for fact in facts if fact["unit"] == "grid")
    folder = next(
        p.parent for p in units.unit_folder().glob("*/unit.json") if json.loads(p.read_text())["unit"] == "grid"
    )
    still = np.array(Image.open(folder / "still-00.png")).astype(int)
    frames = list(read_frames(folder / "video.mp4"))
    shown = frames[round(grid["key_times"][0] * 15) - 1]
    assert np.abs(still - shown).mean() < 2  # but for the loss of the video


def test_progress_rises_to_the_whole(empty_cache, tmp_path):
    listener = Listener()
    render(["tiny"], request(tmp_path, formats=("mp4",)), listener)
    assert listener.shares == sorted(listener.shares)
    assert listener.shares[-1] == pytest.approx(1.0)
    assert listener.ended == ["tiny"]


def test_a_broken_topic_keeps_its_traceback_and_the_other_is_finished(tmp_path):
    results = render(["broken", "tiny"], request(tmp_path, jobs=2, formats=("mp4",)), Listener())
    assert [result.ok for result in results] == [False, True]
    assert "ZeroDivisionError: as planned" in (results[0].error or "")
    assert "in not_fine" in (results[0].error or "")
    assert (tmp_path / "tiny/tiny.mp4").is_file()
    assert not list(tmp_path.glob("**/*.part*"))
    assert not (tmp_path / "broken").exists()


def test_a_scene_file_that_cannot_be_imported_is_a_broken_topic(monkeypatch, tmp_path):
    gone = series.Topic("gone", "Gone", "Gone.", "Foundations", series.FINISHED, "tests.scripts.topics.no_such_module")
    monkeypatch.setattr(series, "TOPICS", (*series.TOPICS, gone))
    results = render(["gone", "tiny"], request(tmp_path, formats=("gif",)), Listener())
    assert "No module named 'tests.scripts.topics.no_such_module'" in (results[0].error or "")
    assert results[1].ok


def test_a_kit_that_cannot_be_imported_is_shown_with_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "scripts.pipeline.worker", None)
    monkeypatch.delattr("scripts.pipeline.worker")
    result = render(["tiny"], request(tmp_path, formats=("gif",)), Listener())[0]
    assert "scripts.pipeline.worker" in (result.error or "")
    assert "Traceback" in (result.error or "")

"""The command line as a user meets it: answers, errors, exit codes, Ctrl-C."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scenes import series
from scripts.pipeline.manifest import FORMATS
from tests.scripts.conftest import call

UNFINISHED = next(topic for topic in series.TOPICS if topic.status != series.FINISHED)
READY = ", ".join(topic.slug for topic in series.finished())
NO_SCENE = f"{UNFINISHED.slug} has no scene yet ({UNFINISHED.status}); finished: {READY}"

COMMANDS = (
    "list",
    "render",
    "preview",
    "gif",
    "article",
    "gallery",
    "sheet",
    "trace",
    "check",
    "verify",
    "doctor",
    "train",
)
small = pytest.mark.usefixtures("small_topics")


def test_list_shows_all_topics_with_their_status():
    result = call("list")
    assert result.exit_code == 0
    assert all(topic.slug in result.stdout and topic.title in result.stdout for topic in series.TOPICS)


def test_list_as_json_has_the_five_fields_of_every_topic():
    topics = json.loads(call("list", "--json").stdout)
    assert len(topics) == 30
    assert all(list(topic) == ["slug", "title", "tagline", "family", "status"] for topic in topics)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_commands_that_name_themselves(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"llm-internals {command}" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [["list"], ["list", "--json"], ["--help"], ["render", "--help"], ["render", "kv-cach"], ["render", "lora"],
     ["preview", "kv-cach"], ["preview", "--help"],
     ["render", "rope", "-q", "x"], ["gif"], ["render"], ["render", "rope", "--formats", "avi"]],
    ids=shlex.join,
)  # fmt: skip
def test_a_quick_answer_imports_neither_torch_nor_manim(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('heavy:', sorted({'torch', 'manim', 'numpy', 'av'} & set(sys.modules))))\n"
        f"from scripts.cli import main\nmain({arguments!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["render", "kv-cach"], "unknown topic 'kv-cach'; did you mean 'kv_cache'? `llm-internals list` shows all 30"),
        (["render"], "name a topic or give --all; `llm-internals list` shows the topics"),
        (["render", UNFINISHED.slug], NO_SCENE),
        (
            ["render", "rope", "--formats", "avi"],
            f"--formats takes {', '.join(FORMATS)} separated by commas, got 'avi'",
        ),
        (["render", "rope", "--theme", "pink"], "--theme takes dark, light separated by commas, got 'pink'"),
        (["gif", "rope", "--max-size", "big"], "--max-size takes a size such as 800kB or 1.5MB, got 'big'"),
        (["gif", "rope", "--max-size", "0kB"], "--max-size takes a size such as 800kB or 1.5MB, got '0kB'"),
        (["trace", "ropes"], "unknown topic 'ropes'; did you mean 'rope'? `llm-internals list` shows all 30"),
        (
            ["trace", "rope", "--commit", "--set", "base=9"],
            "--commit keeps the default numbers; leave out --set and --save",
        ),
        (["trace", "rope", "--set", "bas=3"], "unknown setting 'bas'; did you mean 'base'? allowed: "),
    ],
    ids=lambda value: shlex.join(value) if isinstance(value, list) else "",
)
def test_wrong_use_gets_one_clear_line_and_exit_code_2(arguments, message):
    result = call(*arguments)
    assert result.exit_code == 2
    assert f"Error: {message}" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@small
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=12", "seed must be in 0..9, got 12"),
        ("seed=x", "seed must be a whole number, got 'x'"),
        ("seed", "name=value"),
    ],
)
def test_a_setting_out_of_range_is_answered_with_the_range(tmp_path, setting, message):
    result = call("render", "tiny", "--set", setting, "--out", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out" / "tiny").exists()


@small
def test_a_folder_that_cannot_be_written_to_is_named_before_work_begins(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = call("render", "tiny", "--out", tmp_path / "file" / "out")
    assert result.exit_code == 1
    assert (
        f"Error: cannot write to {tmp_path / 'file' / 'out'}: Not a directory; choose another folder" in result.stderr
    )


@small
@pytest.mark.parametrize("command", ["render", "gif", "sheet"])
def test_without_ffmpeg_the_user_learns_how_to_get_it(tmp_path, monkeypatch, command):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call(command, "tiny", "--out", tmp_path)
    assert result.exit_code == 1
    assert "the program `ffmpeg` was not found; install it (apt install ffmpeg" in result.stderr


@small
def test_a_failing_ffmpeg_shows_its_last_lines(tmp_path, monkeypatch, empty_cache):
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'no space left, says ffmpeg' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    result = call("render", "tiny", "--formats", "mp4", "--out", tmp_path / "out", "--jobs", 1)
    assert result.exit_code == 1
    assert "ffmpeg failed with exit code 3:\nno space left, says ffmpeg" in result.stderr
    assert not list((tmp_path / "out").glob("**/*.mp4"))


@small
def test_the_last_lines_name_the_broken_topic_and_the_command_that_repeats_it(tmp_path):
    out = tmp_path / "out"
    result = call(
        "render", "--all", "-q", "l", "--formats", "mp4", "--set", "seed=3", "--out", out, "--fresh", "--jobs", 2
    )
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == str(out / "tiny/chapters.vtt")
    assert "ZeroDivisionError: as planned" in result.stderr
    *_, failed, command = result.stderr.strip().splitlines()
    assert failed == "Failed: broken. The others are done. To repeat just that:"
    expected = f"llm-internals render broken --quality l --set seed=3 --formats mp4 --jobs 2 --out {out} --fresh"
    assert command.strip() == expected


@small
def test_json_output_is_one_document_with_files_and_errors(tmp_path):
    result = call("render", "--all", "--formats", "gif", "--out", tmp_path, "--json", "--jobs", 1)
    tiny, broken = json.loads(result.stdout)
    assert tiny["ok"]
    assert all(Path(file).is_file() for file in tiny["files"])
    assert tiny["units_rendered"] + tiny["units_reused"] == 1
    assert not broken["ok"]
    assert "as planned" in broken["error"]


@small
def test_a_gif_of_a_chapter_and_of_the_loop_are_written_beside_each_other(tmp_path):
    assert call("gif", "tiny", "--out", tmp_path, "--width", 80, "--fps", 10, "--jobs", 1).exit_code == 0
    light = ("--theme", "light", "--formats", "gif,poster", "--jobs", 1)
    assert call("gif", "tiny", "--chapter", "all", "--out", tmp_path, *light).exit_code == 0
    loop = {"loop.gif", "loop.webp", "loop.mp4", "poster.png"}
    chapters = {f"tiny-{name}-{part}" for name in ("grid", "row") for part in ("light.gif", "poster-light.png")}
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == loop | chapters
    for name in ("loop.gif", "loop.webp"):
        assert Image.open(tmp_path / "tiny" / name).width == 80


@small
def test_captions_are_in_the_picture_of_a_chapter_unless_they_are_not_wanted(tmp_path):
    bands = {}
    for captions in ("burned", "none"):
        options = ("--captions", captions, "--formats", "gif", "--width", 160, "--jobs", 1)
        assert call("gif", "tiny", "--chapter", "row", "--out", tmp_path / captions, *options).exit_code == 0
        image = Image.open(tmp_path / captions / "tiny" / "tiny-row.gif")
        image.seek(image.n_frames - 2)  # the last one is without a caption either way
        bands[captions] = np.array(image.convert("RGB"))[-12:]  # where captions stand
    assert np.ptp(bands["none"]) < 30  # nothing but the background
    assert np.ptp(bands["burned"]) > 60


@small
def test_a_transparent_loop_says_which_file_is_not(tmp_path):
    result = call("gif", "tiny", "--background", "transparent", "--out", tmp_path, "--jobs", 1)
    assert result.exit_code == 0
    assert "loop.mp4: MP4 knows no transparency" in result.stderr
    for name in ("loop.gif", "loop.webp", "poster.png"):
        assert Image.open(tmp_path / "tiny" / name).convert("RGBA").getpixel((0, 0))[3] == 0, name


@small
def test_a_budget_that_cannot_be_kept_ends_with_1_and_the_smallest_size(tmp_path):
    result = call("gif", "tiny", "--max-size", "200B", "--min-ssim", 0.99, "--out", tmp_path, "--jobs", 1)
    assert result.exit_code == 1
    assert "loop.gif: no GIF of at most 200 B has an SSIM of 0.99 or more; the smallest that has is" in result.stderr
    assert not list(tmp_path.glob("tiny/*"))


@small
def test_a_platform_is_answered_with_what_was_made_for_it(tmp_path):
    result = call("gif", "tiny", "--for", "linkedin", "--formats", "gif", "--out", tmp_path, "--json", "--jobs", 1)
    notes = json.loads(result.stdout)["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("loop.gif: ")
    assert "within the limits as asked (160 px, 25 frames/s, 256 colors" in notes[0]


@small
def test_a_gif_of_a_topic_without_a_loop_is_refused_with_the_way_out(tmp_path):
    result = call("gif", "broken", "--out", tmp_path, "--jobs", 1)
    assert result.exit_code == 2
    assert "broken has no loop; choose a chapter with --chapter (1 to 2)" in result.stderr


def test_trace_keeps_the_default_numbers_beside_the_core(tmp_path, monkeypatch):
    from internals_math import kv_cache, trace_store

    monkeypatch.setattr(trace_store, "COMMITTED", tmp_path)
    result = call("trace", "kv_cache", "--commit")
    assert result.exit_code == 0, result.stderr
    assert Path(result.stdout.strip()) == trace_store.committed_file(kv_cache, kv_cache.Config())
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]


def test_trace_prints_the_same_numbers_as_table_json_and_file(tmp_path):
    import torch
    from safetensors.torch import load_file

    from internals_math import rope, trace_store

    values = trace_store.get(rope).to_flat()
    printed = json.loads(call("trace", "rope", "--json").stdout)
    assert printed["values"]["inv_freq"] == values["inv_freq"].tolist()
    assert list(printed["values"]) == list(values)
    assert call("trace", "rope", "--save", tmp_path / "rope.safetensors").exit_code == 0
    saved = load_file(tmp_path / "rope.safetensors")
    assert torch.equal(saved["inv_freq"], values["inv_freq"])
    assert "inv_freq" in call("trace", "rope").stdout


def test_training_a_variant_that_does_not_exist_is_refused_by_name():
    result = call("train", "--variant", "huge")
    assert result.exit_code == 2
    assert "variant must be one of base, " in result.stderr


def test_ctrl_c_ends_all_processes_and_leaves_whole_files_only(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    environment = {**os.environ, "LLM_INTERNALS_CACHE": str(cache)}
    command = [
        sys.executable,
        "-m",
        "tests.scripts.topics.run",
        "render",
        "tiny",
        "-q",
        "k",
        "--jobs",
        "2",
        "--out",
        str(out),
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        # wait until a chapter is being drawn
        _wait_for(lambda: any(cache.glob("units/.part-*/video.mp4")), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted. Finished: nothing." in errors
    assert "Traceback" not in errors
    assert not list(cache.glob("units/.part-*"))
    assert not list(out.glob("**/.part-*"))
    assert not list(out.glob("**/*.mp4"))
    _wait_for(lambda: _processes_with(str(cache)) == [])


def test_what_was_finished_before_ctrl_c_is_reused(tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    environment = {**os.environ, "LLM_INTERNALS_CACHE": str(cache)}
    command = [sys.executable, "-m", "tests.scripts.topics.run", "render", "tiny", "--jobs", "1", "--out", str(out)]
    with subprocess.Popen([*command, "-q", "m"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        _wait_for(lambda: any(cache.glob("units/[!.]*/unit.json")), process)
        process.send_signal(signal.SIGTERM)  # as a polite kill does
        process.communicate(timeout=60)
    assert process.returncode == 130
    finished = len(list(cache.glob("units/[!.]*/unit.json")))
    done = subprocess.run([*command, "-q", "m", "--json"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["units_reused"] == finished


def _wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, f"ended early: {process.communicate()}"
        time.sleep(0.02)


def _processes_with(mark: str) -> list[str]:
    """Return the processes that carry `mark` in their environment (Linux; nothing elsewhere)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in file.read_bytes():
                found.append(file.parent.name)
        except OSError:  # it has ended, or is another user's
            continue
    return found

"""What a viewer gets of every finished topic: chapters that play alone, words that can be read, loops that close."""

import numpy as np
import pytest
from manim import config, tempconfig

from internals_math import trace_store
from scenes import series
from scenes.kit import theme
from scenes.kit.label import Label
from scenes.kit.topic_scene import LOOP

TINY = {"pixel_width": 160, "pixel_height": 90, "frame_rate": 10, "dry_run": True, "verbosity": "ERROR"}
SCENES = {topic.slug: series.scene_class(topic.slug) for topic in series.finished()}
UNITS = [(slug, unit.name) for slug, scene in SCENES.items() for unit in scene.units()]


def played(slug, unit, **settings):
    """Play one unit without writing anything; returns the scene."""
    with tempconfig(TINY | settings):
        theme.use(theme.current())
        scene = SCENES[slug](unit=unit)
        scene.render()
    return scene


@pytest.fixture(scope="module")
def whole():
    """Every unit of every topic, played once: slug -> unit -> scene."""
    return {slug: {unit.name: played(slug, unit.name) for unit in scene.units()} for slug, scene in SCENES.items()}


@pytest.mark.parametrize("slug", SCENES)
def test_a_video_lasts_85_to_120_seconds(whole, slug):
    assert 85 <= sum(scene.now for scene in whole[slug].values()) <= 120


@pytest.mark.parametrize(("slug", "unit"), UNITS)
def test_captions_can_be_read_and_end_before_the_chapter_does(whole, slug, unit):
    scene = whole[slug][unit]
    if unit not in ("opening", "ending"):
        assert scene.captions
    ends = [caption.start for caption in scene.captions[1:]] + [scene.now]
    for caption, end in zip(scene.captions, ends, strict=False):
        seconds = caption.end - caption.start
        assert len(caption.text) / seconds <= theme.READING_SPEED, caption
        assert 1 <= seconds <= theme.LONGEST_CAPTION + 0.1, caption
        assert caption.end <= end


@pytest.mark.parametrize(("slug", "unit"), UNITS)
def test_every_number_on_screen_has_an_origin_in_the_trace(whole, slug, unit):
    scene = whole[slug][unit]
    fields = {name.split(".")[0] for name in scene.full_trace.to_flat()} | {"provenance", "config"}
    for entry in scene.ledger:
        names = [part.split("[")[0].split(".")[0] for part in entry["origin"].split(" over ")]
        assert set(names) <= fields, entry
    if unit not in ("opening",):
        assert scene.ledger


@pytest.mark.parametrize("slug", SCENES)
def test_the_question_comes_first_and_the_takeaway_last(slug):
    units = SCENES[slug].units()
    assert units[0].sentence.endswith("?")
    assert units[-1].sentence == SCENES[slug].takeaway
    assert all(unit.title and unit.sentence for unit in units)


def boxes_while_playing(slug, unit):
    """Return (text, left, right, bottom, top) of every label after every animation."""
    boxes = []

    class Watching(SCENES[slug]):
        def _record(self, start):
            super()._record(start)
            for picture in self.get_mobject_family_members():
                if isinstance(picture, Label) and picture.opacity > 0.3:
                    (left, bottom), (right, top) = picture.points[2][:2], picture.points[1][:2]
                    boxes.append((picture.text, left, right, bottom, top))

    with tempconfig(TINY):
        Watching(unit=unit, skip_animations=True).render()
    return boxes


@pytest.mark.parametrize(("slug", "unit"), [*UNITS, *((slug, LOOP) for slug in SCENES)])
def test_labels_stay_inside_the_frame(slug, unit):
    half_width, half_height = config.frame_width / 2, config.frame_height / 2
    for text, left, right, bottom, top in boxes_while_playing(slug, unit):
        assert -half_width + 0.3 <= left <= right <= half_width - 0.3, text
        assert -half_height + 0.2 <= bottom <= top <= half_height - 0.2, text


@pytest.mark.parametrize("slug", SCENES)
def test_a_loop_ends_where_it_began(slug):
    """The state after the last frame is the first frame again, so the loop goes on without a jump."""
    frames = []

    class Keeping(SCENES[slug]):
        def play(self, *args, **kwargs):
            if not frames:
                self.renderer.update_frame(self)
                frames.append(self.renderer.get_frame())
            super().play(*args, **kwargs)

    with tempconfig(TINY | {"pixel_width": 640, "pixel_height": 360, "frame_rate": 4}):
        scene = Keeping(unit=LOOP)
        scene.render()
        scene.renderer.static_image = None
        scene.renderer.update_frame(scene)
    difference = np.abs(scene.renderer.get_frame()[..., :3].astype(int) - frames[0][..., :3])
    # the arrows of RoPE end 0.018 radians further on: edges of lines may differ, areas may not
    assert (difference.max(axis=2) > 12).mean() < 0.01


@pytest.mark.parametrize("slug", SCENES)
def test_the_same_chapter_draws_the_same_frames_again(slug):
    unit = SCENES[slug].chapter_units()[0].name
    first, second = (played(slug, unit, frame_rate=4) for _ in range(2))
    np.testing.assert_array_equal(first.renderer.get_frame(), second.renderer.get_frame())
    assert first.captions == second.captions
    assert first.ledger == second.ledger


@pytest.mark.parametrize("name", theme.THEMES)
@pytest.mark.parametrize("slug", SCENES)
def test_both_themes_draw_the_loop_on_their_own_ground(slug, name):
    theme.use(name)
    try:
        scene = played(slug, LOOP, frame_rate=2)
        ground = "#" + "".join(f"{channel:02X}" for channel in scene.renderer.get_frame()[0, 0, :3])
        assert ground == theme.THEMES[name]["BACKGROUND"]
    finally:
        theme.use("dark")


def test_a_changed_parameter_changes_the_picture():
    core = SCENES["kv_cache"].core
    trace = trace_store.get(core, core.Config(max_new_tokens=3))
    with tempconfig(TINY):
        scene = SCENES["kv_cache"](unit="same_work_again", trace=trace)
        scene.render()
    shown = {entry["shown"] for entry in scene.ledger if entry["origin"].startswith("rows_without_cache_total")}
    assert shown == {"8", "17", "27"}


@pytest.mark.parametrize("slug", SCENES)
def test_an_unknown_unit_is_refused_with_the_names_of_the_real_ones(slug):
    with tempconfig(TINY), pytest.raises(ValueError, match=r"has no unit 'chapter_x'; it has opening, "):
        SCENES[slug](unit="chapter_x").render()

"""What a viewer gets of every finished topic: each unit passes every check, the loop closes, parameters count.

A unit is played in record mode, which draws nothing, so that a topic costs seconds. The tests of a unit are a group of
their own for the workers.
"""

from functools import lru_cache

import pytest
from manim import tempconfig

from internals_math import trace_store
from scenes import series
from scenes.kit import theme
from scenes.kit.recorder import record
from scenes.kit.topic_scene import LOOP
from scripts.pipeline.checks.layout import check_contrast
from scripts.pipeline.checks.pixels import check_pixels
from scripts.pipeline.checks.reading import check_length
from scripts.pipeline.checks.topic import check_recording

SCENES = {topic.slug: series.scene_class(topic.slug) for topic in series.finished()}
VIDEO = [(slug, unit.name) for slug, scene in SCENES.items() for unit in scene.units()]
UNITS = [*VIDEO, *((slug, LOOP) for slug in SCENES)]


def grouped(pairs):
    """Keep what is asked of one topic in one worker, which has then recorded it."""
    return [pytest.param(*pair, marks=pytest.mark.xdist_group(pair[0])) for pair in pairs]


def topics():
    return [pytest.param(slug, marks=pytest.mark.xdist_group(slug)) for slug in SCENES]


@lru_cache(maxsize=40)
def recorded(slug, unit):
    return record(SCENES[slug], unit)


@pytest.mark.parametrize(("slug", "unit"), grouped(UNITS))
def test_origins_layout_contrast_and_captions_are_as_they_must_be(slug, unit):
    found = list(check_recording(recorded(slug, unit)))
    found += check_contrast(record(SCENES[slug], unit, theme_name="light", every=0.5))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(("slug", "unit"), grouped(UNITS))
def test_something_is_on_screen_that_has_an_origin(slug, unit):
    if unit != "opening":
        assert recorded(slug, unit).scene.ledger


@pytest.mark.parametrize("slug", topics())
def test_a_video_has_its_length(slug):
    seconds = sum(recorded(slug, unit.name).seconds for unit in SCENES[slug].units())
    assert not list(check_length(slug, "", seconds))


@pytest.mark.parametrize("slug", topics())
def test_a_loop_ends_where_it_began_and_does_not_flash(slug):
    found = list(check_pixels(SCENES[slug], LOOP, recorded(slug, LOOP)))
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("slug", topics())
def test_the_question_comes_first_and_the_takeaway_last(slug):
    units = SCENES[slug].units()
    assert units[0].sentence.endswith("?")
    assert units[-1].sentence == SCENES[slug].takeaway
    assert all(unit.title and unit.sentence for unit in units)


@pytest.mark.parametrize("slug", topics())
def test_the_same_chapter_shows_the_same_things_again(slug):
    unit = SCENES[slug].chapter_units()[0].name
    first, second = recorded(slug, unit), record(SCENES[slug], unit)
    assert first.captions == second.captions
    assert first.scene.ledger == second.scene.ledger
    assert [[thing.marks for thing in look.things] for look in first.looks] == [
        [thing.marks for thing in look.things] for look in second.looks
    ]


@pytest.mark.parametrize("slug", topics())
def test_an_unknown_unit_is_refused_with_the_names_of_the_real_ones(slug):
    error = record(SCENES[slug], "chapter_x").error
    assert isinstance(error, ValueError)
    assert "has no unit 'chapter_x'; it has opening, " in str(error)


@pytest.mark.parametrize("name", theme.THEMES)
@pytest.mark.xdist_group("kv_cache")
def test_each_theme_is_drawn_on_its_own_ground(name):
    theme.use(name)
    try:
        with tempconfig({"pixel_width": 160, "pixel_height": 90, "frame_rate": 2, "dry_run": True}):
            theme.use(name)
            scene = SCENES["kv_cache"](unit=LOOP)
            scene.render()
        ground = "#" + "".join(f"{channel:02X}" for channel in scene.renderer.get_frame()[0, 0, :3])
        assert ground == theme.THEMES[name]["BACKGROUND"]
    finally:
        theme.use("dark")


@pytest.mark.xdist_group("kv_cache")
def test_a_changed_parameter_changes_the_picture():
    core = SCENES["kv_cache"].core
    trace = trace_store.get(core, core.Config(max_new_tokens=3))
    scene = record(SCENES["kv_cache"], "same_work_again", trace=trace).scene
    shown = {entry["shown"] for entry in scene.ledger if entry["origin"].startswith("rows_without_cache_total")}
    assert shown == {"8", "17", "27"}

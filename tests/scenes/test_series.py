import importlib
from dataclasses import replace

import pytest

from scenes import series
from scenes.kit.topic_scene import TopicScene


def test_the_series_has_thirty_topics_with_different_names():
    assert len(series.TOPICS) == len({topic.slug for topic in series.TOPICS}) == 30
    assert len({topic.title for topic in series.TOPICS}) == 30


def test_every_topic_belongs_to_a_family_and_has_a_tagline():
    assert {topic.family for topic in series.TOPICS} == set(series.FAMILIES)
    assert all(topic.tagline.endswith(".") for topic in series.TOPICS)
    assert {topic.status for topic in series.TOPICS} <= {series.FINISHED, series.CORE, series.PLANNED}


@pytest.mark.parametrize("name", ["kv_cache", "kv-cache", " KV_Cache "])
def test_a_topic_is_found_however_its_name_is_joined_or_capitalized(name):
    assert series.find(name).slug == "kv_cache"


def test_an_unknown_topic_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="unknown topic 'kv-cach'; did you mean 'kv_cache'"):
        series.find("kv-cach")


def test_a_name_like_no_other_is_answered_without_a_guess():
    with pytest.raises(ValueError, match=r"unknown topic 'zzzzzz'; `llm-internals list` shows all 30"):
        series.find("zzzzzz")


@pytest.mark.parametrize("topic", series.with_core(), ids=lambda topic: topic.slug)
def test_a_topic_with_verified_numbers_has_a_config_and_a_trace(topic):
    core = importlib.import_module(f"internals_math.{topic.slug}")
    assert core.Config().hash
    assert core.Trace.__annotations__["config"] is core.Config
    assert callable(core.trace)


@pytest.mark.parametrize("status", [series.PLANNED, series.CORE])
def test_the_scene_of_a_topic_that_is_not_finished_is_refused(status, monkeypatch):
    monkeypatch.setattr(series, "TOPICS", (replace(series.find("rope"), status=status),))
    with pytest.raises(ValueError, match=rf"rope has no scene yet \({status}\)"):
        series.scene_class("rope")


@pytest.mark.parametrize("topic", series.finished(), ids=lambda topic: topic.slug)
def test_a_finished_topic_has_one_scene_of_its_slug_with_chapters_and_a_loop(topic):
    scene = series.scene_class(topic.slug)
    assert issubclass(scene, TopicScene)
    assert scene.slug() == topic.slug
    assert len(scene.chapter_units()) >= 3
    assert scene.has_loop()
    assert scene.loop_alt.endswith(".")
    assert all(unit.title and unit.sentence for unit in scene.units())

"""The parts of the live page that need no browser."""

import ast
import shlex
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
from manim import config
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from internals_math import trace_store
from internals_math.trace import TopicConfig, option
from scenes import series
from scenes.kit import theme
from scenes.kit.topic_scene import TopicScene, chapter
from scripts.cli import main
from scripts.pipeline import worker
from scripts.pipeline.encode import read_frames
from scripts.pipeline.errors import UserError
from scripts.pipeline.jobs import Request
from scripts.pipeline.preview.form import form_of
from scripts.pipeline.preview.guard import Guard
from scripts.pipeline.preview.mistakes import ROOT, describe
from scripts.pipeline.preview.moment import play_to
from scripts.pipeline.preview.view import View
from tests.scripts.conftest import SMALL
from tests.scripts.topics import tiny
from tests.scripts.topics.cores import tiny as tiny_core

# -- one moment --------------------------------------------------------------------------------------------------


def _still(scene, trace, unit, seconds):
    pictures = []
    outline = play_to(scene, trace, unit, seconds, SMALL, "dark", lambda pixels, _: pictures.append(pixels))
    assert len(pictures) == 1
    return pictures[0][..., :3], outline


@pytest.fixture(scope="module", params=[("tiny", "grid"), ("tiny", "opening"), ("rope", "clock_hands")])
def lossless(request):
    """A scene, its trace, a unit as a render writes it to the bit, and its frames."""
    slug, unit = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "TOPICS", (*series.TOPICS, tiny.TOPIC))
        scene = series.scene_class(slug)
        plan = worker.plan_topic(series.find(slug), Request(quality=SMALL, chapter=unit), "test")
        job = replace(plan.jobs[0], lossless=True, key=f"{plan.jobs[0].key}-lossless")
        rendered = worker.render_unit(job, True)
        yield scene, trace_store.get(scene.core), rendered, list(read_frames(rendered.video))


def is_same(first, second):
    """Return whether two pictures agree; a text is stamped from its second drawing on, which rounds its edges anew."""
    difference = np.abs(first.astype(int) - second)
    return difference.max() <= 4 and difference.mean() < 0.01


def test_a_still_is_the_frame_that_a_render_writes_at_that_time(lossless):
    scene, trace, rendered, frames = lossless
    for number in (0, 3, len(frames) // 2, len(frames) - 1):
        still, _ = _still(scene, trace, rendered.unit, number / SMALL.frame_rate)
        assert is_same(still, frames[number]), number


def test_a_time_beyond_the_end_gives_the_last_frame(lossless):
    scene, trace, rendered, frames = lossless
    still, _ = _still(scene, trace, rendered.unit, 1000.0)
    assert is_same(still, frames[-1])


def test_an_outline_says_what_a_render_finds(lossless):
    scene, trace, rendered, _ = lossless
    _, outline = _still(scene, trace, rendered.unit, 0.0)
    assert outline.seconds == pytest.approx(rendered.seconds)
    assert [caption["text"] for caption in outline.captions] == [caption["text"] for caption in rendered.captions]
    for name in ("start", "end"):
        times = [caption[name] for caption in rendered.captions]
        assert [caption[name] for caption in outline.captions] == pytest.approx(times)
    assert outline.key_times == pytest.approx(rendered.key_times)
    assert {entry["origin"] for entry in outline.ledger} <= {entry["origin"] for entry in rendered.ledger}


def test_the_places_of_the_words_come_with_the_still(small_topics):
    found = []
    play_to(tiny.Tiny, trace_store.get(tiny_core), "grid", 0.1, SMALL, "dark", lambda _, texts: found.extend(texts))
    header = [text for text in found if text[1] > 3]
    assert header[1][4] == theme.TITLE
    assert header[0][0] >= -config.frame_width / 2 + theme.MARGIN - 0.05
    assert any(text[4] == theme.CAPTION and text[1] < theme.STAGE_BOTTOM for text in found)


# -- the form ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config(TopicConfig):
    words: str = option("the fox", "some words")
    steps: int = option(4, "how many", minimum=1, maximum=8)
    base: float = option(10000.0, "of the angles", minimum=10.0, maximum=1e6)
    limit: int | None = option(None, "none = all", minimum=1)
    scales: tuple[float, ...] = option((1.0, 2.5), "factors")
    model: str = option("small", "which", choices=("small", "large"))
    kind: Literal["a", "b"] = option("a", "one of two")
    causal: bool = option(True, "look back only")


def test_each_field_gets_the_control_that_fits_it():
    form = {entry["name"]: entry for entry in form_of(Config(steps=5))}
    kinds = {name: entry["kind"] for name, entry in form.items()}
    assert kinds == {
        "words": "text", "steps": "whole", "base": "number", "limit": "text", "scales": "text", "model": "choice",
        "kind": "choice", "causal": "switch",
    }  # fmt: skip
    assert (form["steps"]["minimum"], form["steps"]["maximum"], form["steps"]["help"]) == (1, 8, "how many")
    assert (form["steps"]["value"], form["steps"]["default"]) == ("5", "4")
    assert [name for name, entry in form.items() if entry["log"]] == ["base"]
    assert (form["model"]["choices"], form["kind"]["choices"]) == (["small", "large"], ["a", "b"])


@pytest.mark.parametrize("topic", series.finished(), ids=lambda topic: topic.slug)
def test_what_a_form_shows_is_read_back_as_the_same_config(topic):
    core = series.scene_class(topic.slug).core
    form = form_of(core.Config())
    assert core.Config.parse([f"{entry['name']}={entry['value']}" for entry in form]) == core.Config()
    assert Config.parse([f"{entry['name']}={entry['value']}" for entry in form_of(Config())]) == Config()


def test_the_command_beside_the_form_is_one_that_the_command_line_understands():
    view = View("rope", "scenes.rope", "m", "light", ("base=500", "prompt=the old fox"), "turning", 1.0)
    for command in (view.render_command(), view.gif_command("turning"), view.gif_command("loop")):
        program, name, *arguments = shlex.split(command)
        assert program == "llm-internals"
        context = main.commands[name].make_context(name, arguments)
        assert context.params["settings"] == ("base=500", "prompt=the old fox")
        assert context.params["themes"] == ("light",)
    assert "--chapter" not in shlex.split(view.gif_command("loop"))


def test_a_still_is_at_least_720_pixels_high_and_as_large_as_the_video():
    heights = {name: View("rope", "scenes.rope", name, "dark").still_size.height for name in ("l", "m", "h")}
    assert heights == {"l": 720, "m": 720, "h": 1080}
    assert View("rope", "scenes.rope", "l", "dark").still_size.frame_rate == 15


# -- mistakes ----------------------------------------------------------------------------------------------------


def _error_of(work):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any error is described
        work()
    return describe(caught.value)


def test_an_error_is_placed_where_the_sources_raise_it():
    def work():
        tiny_core.Config(seed=100)

    error = _error_of(work)
    lines = (ROOT / "internals_math/trace.py").read_text().splitlines()
    assert error["message"] == "ValueError: seed must be in 0..9, got 100"
    assert error["file"] == "internals_math/trace.py"
    assert "raise ValueError" in lines[error["line"] - 1]
    assert (error["line"], lines[error["line"] - 1]) in error["excerpt"]
    assert error["traceback"].startswith("Traceback")


def test_what_the_kit_refuses_is_the_mistake_of_the_scene_that_gave_it(small_topics):
    class Wrong(TopicScene):
        """Is there a number without an origin?"""

        core = tiny_core
        takeaway = "No."

        @chapter("Wrong")
        def wrong(self):
            self.say("There are 6 numbers.")

    error = _error_of(lambda: play_to(Wrong, trace_store.get(tiny_core), "wrong", None, SMALL, "dark", print))
    assert error["file"] == "tests/scripts/test_preview.py"
    assert "'6' in 'There are 6 numbers.' has no origin" in error["message"]
    assert (error["line"], 'self.say("There are 6 numbers.")') in [(n, text.strip()) for n, text in error["excerpt"]]


def test_a_syntax_error_has_the_line_that_cannot_be_read(tmp_path):
    file = ROOT / "scenes" / "no_such_scene.py"
    error = _error_of(lambda: ast.parse("x = 1\ny = (\n", filename=str(file)))
    assert (error["file"], error["line"]) == ("scenes/no_such_scene.py", 2)
    assert error["message"].startswith("SyntaxError: '(' was never closed")


def test_what_a_user_did_wrong_has_no_place():
    error = describe(UserError("the disk is full"))
    assert (error["message"], error["file"], error["traceback"]) == ("the disk is full", None, "")


# -- other web sites ---------------------------------------------------------------------------------------------


@pytest.fixture
def guarded():
    routes = [Route("/", lambda _: PlainTextResponse("here"), methods=["GET", "POST"])]
    return TestClient(Guard(Starlette(routes=routes), 8000), base_url="http://127.0.0.1:8000")


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {"host": "attacker.example:8000"}),
        ("GET", {"host": "127.0.0.1:9000"}),
        ("GET", {"origin": "https://attacker.example"}),
        ("GET", {"origin": "null"}),
        ("GET", {"origin": "http://127.0.0.1:8000.attacker.example"}),
        ("GET", {"origin": "https://127.0.0.1:8000"}),
        ("GET", {"sec-fetch-site": "cross-site"}),
        ("GET", {"sec-fetch-site": "same-site"}),
        ("POST", {**JSON, "origin": "https://attacker.example"}),
        ("POST", {"content-type": "text/plain"}),
    ],
)
def test_a_request_of_another_site_is_refused(guarded, method, headers):
    answer = guarded.request(method, "/", headers=headers)
    assert answer.status_code == 403
    assert answer.text.startswith("refused: ")


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", {}),
        ("GET", {"host": "localhost:8000"}),
        ("GET", {"sec-fetch-site": "none"}),
        ("POST", {**JSON, "origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}),
    ],
)
def test_the_page_itself_is_answered_and_may_not_be_framed(guarded, method, headers):
    answer = guarded.request(method, "/", headers=headers)
    assert (answer.status_code, answer.text) == (200, "here")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"

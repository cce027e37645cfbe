"""The live page in a real Chromium, on a copy of the project in which files are saved."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from scenes.kit.traced import format_number
from tests.scripts.browser import browser  # noqa: F401 - a fixture
from tests.scripts.topics.cores import tiny

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "internals_math",
    "scenes",
    "scripts",
    "tests/__init__.py",
    "tests/shapes.py",
    "tests/scripts/__init__.py",
    "tests/scripts/topics",
)
SCENE, CORE, KIT = "tests/scripts/topics/tiny.py", "tests/scripts/topics/cores/tiny.py", "scenes/kit/theme.py"
PATIENCE = 120_000  # milliseconds; a machine may be busy
expect.set_options(timeout=PATIENCE)


@dataclass
class Preview:
    """A preview that runs on a copy of the project."""

    folder: Path
    cache: Path
    process: subprocess.Popen
    address: str

    def edit(self, file: str, old: str, new: str) -> None:
        """Save a file in which something is replaced."""
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def generation(self) -> int:
        """Return how many saves and choices it has heeded."""
        with urllib.request.urlopen(f"{self.address}events") as stream:
            return next(json.loads(line[6:])["generation"] for line in stream if line.startswith(b"data: "))

    def processes(self) -> list[str]:
        """Return the processes of this preview, itself included (Linux)."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                if str(self.cache).encode() in file.read_bytes():
                    found.append(file.parent.name)
            except OSError:  # it has ended, or is another user's
                continue
        return found


def start(folder: Path, cache: Path) -> Preview:
    environment = {**os.environ, "LLM_INTERNALS_CACHE": str(cache), "PYTHONPATH": str(folder)}
    command = [
        sys.executable,
        "-m",
        "tests.scripts.topics.run",
        "preview",
        "tiny",
        "--no-open",
        "--out",
        str(cache / "out"),
    ]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Preview(folder, cache, process, process.stdout.readline().strip())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def running(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preview]:
    preview = start(copy, tmp_path_factory.mktemp("preview-cache"))
    yield preview
    preview.process.terminate()
    assert preview.process.wait(20) == 0
    wait_for(lambda: not preview.processes())


@pytest.fixture
def preview(running: Preview) -> Iterator[Preview]:
    """The preview, whose sources are put back after the test."""
    yield running
    for name in (SCENE, CORE, KIT):
        if (running.folder / name).read_text() != (ROOT / name).read_text():
            before = running.generation()
            shutil.copyfile(ROOT / name, running.folder / name)
            wait_for(lambda before=before: running.generation() > before)


@pytest.fixture
def open_page(preview: Preview, browser: Browser) -> Iterator[Callable[..., Page]]:  # noqa: F811
    """A function that opens the page; all are closed after the test, and must not have raised."""
    with contextlib.ExitStack() as pages:
        mistakes: list[str] = []

        def open_one(**options: Any) -> Page:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
            pages.callback(page.close)
            page.on("pageerror", lambda error: mistakes.append(str(error)))
            page.goto(preview.address)
            return page

        yield open_one
    assert mistakes == []


@pytest.fixture
def page(open_page: Callable[..., Page]) -> Page:
    """The page at the end of the first chapter, everything rendered."""
    page = open_page()
    choose_defaults(page)
    wait_until_all_is_rendered(page)
    page.locator("#chapters button", has_text="First: the grid").click()
    page.keyboard.press("End")
    wait_for(lambda: page.evaluate("player.shown === player.key"))
    return page


def wait_until_all_is_rendered(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("Up to date")


def choose_defaults(page: Page) -> None:
    page.wait_for_selector("#chapters li")
    page.evaluate("""fetch("choose", {method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({theme: "dark", quality: "l", settings: []})})""")


def picture(page: Page) -> np.ndarray:
    """Return what is on the stage, as the reader sees it, in 0..255."""
    return np.array(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB"), dtype=float)


def is_same(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two pictures show the same; Chromium may scale one frame in more than one way."""
    return first.shape == second.shape and float(np.abs(first - second).mean()) < 0.1


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def wait_for_another_picture(page: Page, before: np.ndarray) -> None:
    wait_for(lambda: not is_same(picture(page), before))


def moment(page: Page) -> float:
    return float(page.locator("#scrub").input_value())


# -- save, see -----------------------------------------------------------------------------------------------------


def test_saving_a_scene_changes_the_picture_and_renders_its_chapter_alone(preview, page):
    before = picture(page)
    videos = page.evaluate("player.state.units.map((unit) => unit.video)")
    preview.edit(SCENE, "FadeIn(TensorGrid(self.trace.numbers))", "FadeIn(TensorGrid(self.trace.numbers).shift(RIGHT))")
    wait_for_another_picture(page, before)
    wait_until_all_is_rendered(page)
    names = page.evaluate("player.state.units.map((unit) => unit.name)")
    now = page.evaluate("player.state.units.map((unit) => unit.video)")
    assert [name for name, old, new in zip(names, videos, now, strict=True) if old != new] == ["grid"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [(CORE, "+ config.shift", "+ config.shift + 1"), (KIT, '"#0E1116"', '"#402020"')],
    ids=["core", "kit"],
)
def test_saving_the_core_or_the_kit_changes_the_picture(preview, page, file, old, new):
    page.locator("#chapters button", has_text="Second").click()
    page.keyboard.press("End")
    wait_for(lambda: page.evaluate("player.shown === player.key"))
    before = picture(page)
    preview.edit(file, old, new)
    wait_for_another_picture(page, before)
    assert page.locator("#error").is_hidden()
    wait_until_all_is_rendered(page)


@pytest.mark.parametrize(
    ("old", "new", "message", "place"),
    [
        ('self.say("Here are six numbers.")', "self.play(1 / 0)", "ZeroDivisionError: division by zero", SCENE),
        ('self.say("Here are six numbers.")', 'self.say("Here are 6 numbers.")', "has no origin", SCENE),
        ("class Tiny(TopicScene):", "class Tiny(TopicScene:", "SyntaxError", SCENE),
    ],
    ids=["raises", "number without origin", "syntax"],
)
def test_a_mistake_is_shown_with_its_line_and_the_last_good_picture_stays(preview, page, old, new, message, place):
    before = picture(page)
    preview.edit(SCENE, old, new)
    error = page.locator("#error")
    expect(error).to_be_visible()
    line = 1 + (preview.folder / SCENE).read_text().split(new)[0].count("\n")
    expect(error.locator(".place")).to_have_text(f"{place}:{line}")
    expect(error.locator(".message")).to_contain_text(message)
    expect(error.locator(".here")).to_contain_text(new)
    assert is_same(picture(page), before)
    preview.edit(SCENE, new, old.replace("six", "exactly six"))
    expect(error).to_be_hidden()
    wait_for_another_picture(page, before)
    wait_until_all_is_rendered(page)


def test_a_mistake_in_another_chapter_leaves_this_one_alone(preview, page):
    preview.edit(SCENE, 'self.say("And here are three.")', "raise RuntimeError('later')")
    row = page.locator("#chapters li", has_text="Second")
    expect(row).to_have_class("chapter failed")
    assert page.locator("#error").is_hidden()
    row.locator("button").click()
    expect(page.locator("#error .message")).to_have_text("RuntimeError: later")


# -- parameters ----------------------------------------------------------------------------------------------------


def shown_numbers(page: Page, field: str) -> set[str]:
    page.locator("#ledger summary", has_text=field).first.click()
    return set(page.locator("#ledger details[open] td:first-child").all_inner_texts())


def test_moving_a_parameter_draws_the_numbers_of_that_config_and_shows_the_command(page):
    before = picture(page)
    page.locator("#option-seed").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    wait_for_another_picture(page, before)
    expect(page.locator("#command")).to_have_text("llm-internals render tiny -q l --set seed=2")
    wait_until_all_is_rendered(page)
    numbers = tiny.trace(tiny.Config(seed=2)).numbers.flatten().tolist()
    expect(page.locator("#ledger-count")).to_have_text("6 values")
    assert shown_numbers(page, "numbers") == {format_number(number, "+.1f") for number in numbers}
    after = picture(page)
    page.locator("#reset").click()
    expect(page.locator("#command")).to_have_text("llm-internals render tiny -q l")
    wait_for_another_picture(page, after)


def test_a_value_out_of_range_is_answered_with_the_range_and_the_picture_stays(page):
    before = picture(page)
    page.evaluate("""fetch("choose", {method: "POST", headers: {"Content-Type": "application/json"},
        body: JSON.stringify({theme: "dark", quality: "l", settings: ["seed=99"]})})""")
    expect(page.locator("#refused")).to_have_text("seed must be in 0..9, got 99")
    assert is_same(picture(page), before)
    choose_defaults(page)
    expect(page.locator("#refused")).to_be_hidden()


def test_another_theme_redraws_picture_and_page(page):
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    expect(page.locator("#command")).to_have_text("llm-internals render tiny -q l --theme light")
    still = page.locator("#still")
    expect(still).to_be_visible()
    wait_for(lambda: _corner(page) > 200)


def _corner(page: Page) -> int:
    """Return the brightness of the still's corner."""
    return page.evaluate("""() => {
        const image = document.getElementById("still"), canvas = document.createElement("canvas");
        if (image.hidden || !image.naturalWidth) return 0;
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const pen = canvas.getContext("2d");
        pen.drawImage(image, 0, 0);
        return Math.min(...pen.getImageData(0, 0, 1, 1).data);
    }""")


# -- watching ------------------------------------------------------------------------------------------------------


def test_the_keyboard_plays_pauses_steps_and_goes_through_chapters(page):
    page.keyboard.press("Home")
    at_start = moment(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert moment(page) == pytest.approx(at_start + 2 / 15)
    page.keyboard.press("ArrowLeft")
    assert moment(page) == pytest.approx(at_start + 1 / 15)
    page.keyboard.press("Shift+ArrowRight")
    assert moment(page) == pytest.approx(at_start + 1 + 1 / 15)
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    wait_for(lambda: moment(page) > at_start + 0.5)
    page.keyboard.press("Space")
    paused = moment(page)
    expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    page.keyboard.press("]")
    expect(page.locator("#chapters [aria-current=true]")).to_contain_text("Second")
    assert moment(page) > paused
    page.keyboard.press("c")
    expect(page.locator("#mask")).to_be_visible()
    page.keyboard.press("s")
    expect(page.locator("#overlay")).to_be_visible()
    page.keyboard.press("g")
    assert page.locator("#stage").bounding_box()["width"] == 640


def test_playing_goes_on_over_the_end_of_a_chapter(page):
    page.keyboard.press("Space")
    second = page.locator("#chapters li", has_text="Second")
    expect(second.locator("[aria-current=true]")).to_be_visible()
    crossed = moment(page)
    wait_for(lambda: moment(page) > crossed)


def test_keys_typed_into_a_field_or_on_a_slider_are_its_own(page):
    before = moment(page)
    page.locator("#option-shift").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#option-shift").input_value() != "0"
    assert moment(page) == before
    page.locator("#reset").click()


def test_scrubbing_shows_the_moment_under_the_thumb(page):
    page.locator("#scrub").fill("1")
    expect(page.locator("#chapters [aria-current=true]")).to_contain_text("Tiny topic")
    expect(page.locator("#clock")).to_contain_text("0:01.0")


@pytest.mark.parametrize(("motion", "repeats"), [("no-preference", True), ("reduce", False)])
def test_the_loop_repeats_unless_less_motion_is_wished_for(open_page, motion, repeats):
    page = open_page(reduced_motion=motion)
    choose_defaults(page)
    wait_until_all_is_rendered(page)
    page.locator("#chapters li.loop button").click()
    page.evaluate("""() => {
        window.starts = 0;
        const count = () => { window.starts += 1; };
        for (const video of document.querySelectorAll("video")) video.addEventListener("play", count);
    }""")
    page.keyboard.press("Space")
    if repeats:
        wait_for(lambda: page.evaluate("window.starts") >= 3)
    else:
        wait_for(lambda: page.evaluate("window.starts") >= 1)
        expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
        assert page.evaluate("window.starts") == 1
    moves = page.evaluate("getComputedStyle(document.querySelector('.mark')).transitionDuration !== '0s'")
    assert moves == repeats


def test_every_control_has_a_name(page):
    controls = page.evaluate("""() => [...document.querySelectorAll("button, input, select, progress")]
        .filter((control) => control.checkVisibility())
        .map((control) => control.textContent.trim() || control.ariaLabel || control.labels?.[0]?.textContent)""")
    assert len(controls) > 20
    assert all(controls), controls


# -- the rest ------------------------------------------------------------------------------------------------------


def test_the_gif_of_a_chapter_is_made_where_the_command_makes_it(preview, page):
    page.locator("#export").click()
    link = page.locator("#gif-result a")
    expect(link).to_be_visible()
    file = preview.cache / "out" / "tiny" / "tiny-grid.gif"
    expect(link).to_have_text(str(file))
    expect(page.locator("#gif-command")).to_have_text("llm-internals gif tiny --formats gif --chapter grid")
    with page.expect_download() as download:
        link.click()
    assert Path(download.value.path()).read_bytes() == file.read_bytes()
    assert file.read_bytes()[:6] == b"GIF89a"


def test_requests_of_other_sites_get_nothing(preview):
    for headers in ({"Host": "attacker.example"}, {"Origin": "https://attacker.example"}):
        request = urllib.request.Request(f"{preview.address}events", headers=headers)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)


def test_without_a_page_no_worker_is_left_and_a_new_page_wakes_them(preview, open_page):
    page = open_page()
    wait_for(lambda: len(preview.processes()) > 1)
    page.close()
    wait_for(lambda: preview.processes() == [str(preview.process.pid)])
    page = open_page()
    preview.edit(SCENE, '"Here are six numbers."', '"Here they are, all six."')
    page.locator("#chapters button", has_text="First: the grid").click()
    wait_until_all_is_rendered(page)
    assert "all six" in page.evaluate("fetch('facts/grid').then((answer) => answer.text())")


def test_a_killed_server_takes_its_workers_along(copy, tmp_path, browser):  # noqa: F811
    preview = start(copy, tmp_path)
    page = browser.new_page()
    page.goto(preview.address)
    expect(page.locator("#chapters li.rendering")).not_to_have_count(0)
    preview.process.send_signal(signal.SIGKILL)
    preview.process.wait()
    wait_for(lambda: preview.processes() == [])
    expect(page.locator("#status")).to_contain_text("has ended")
    page.close()

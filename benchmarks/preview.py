"""The live page in a real headless Chromium: how long from a save to the picture: python -m benchmarks.preview

Saves a scene file of a copy of the project again and again, each time with another chapter title, and takes the time
until the browser has painted the new 720p still, and until the new 480p15 video of that chapter is there. Also: how
fast the page is answered while chapters render, the memory of all processes over 100 saves, and what a killed browser
and a killed server leave behind. Reads /proc, so it needs Linux. Prints Markdown; seconds depend on the machine.
"""

import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from internals_math.sources import ROOT

# A topic, a chapter, and seconds into it: somewhere in the middle, after most animations.
MOMENTS = (("kv_cache", "same_memory", 15.0), ("rope", "turning", 8.0))
SAVES, CHAPTER_SAVES, MEMORY_SAVES = 15, 3, 100
PATIENCE = 180.0
WATCH_STILLS = """() => {
    window.painted = [];
    const still = document.getElementById("still");
    new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
        window.painted.push(performance.timeOrigin + performance.now());
    }))).observe(still, { attributes: true, attributeFilter: ["data-generation"] });
}"""
ASK_OFTEN = """async (seconds) => {
    const times = [], end = performance.now() + 1000 * seconds;
    while (performance.now() < end) {
        const start = performance.now();
        await (await fetch("facts/opening")).json();
        times.push(performance.now() - start);
        await new Promise((resolve) => setTimeout(resolve, 30));
    }
    return times;
}"""


class Preview:
    """A preview of a topic on a copy of the project, and the page that shows it."""

    def __init__(self, folder: Path, topic: str, chapter: str, seconds: float, browser: Browser) -> None:
        self.folder, self.topic, self.chapter = folder, topic, chapter
        self.cache = folder / f"cache-{topic}"
        environment = {**os.environ, "PYTHONPATH": str(folder), "LLM_INTERNALS_CACHE": str(self.cache)}
        command = [sys.executable, "-m", "scripts.cli", "preview", topic, "--no-open"]
        self.server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.server.stdout is not None
        self.page: Page = browser.new_page(viewport={"width": 1600, "height": 900})
        self.page.goto(self.server.stdout.readline().strip())
        self.row = f"#chapters li:has([data-unit={chapter}])"
        self.page.locator(f"{self.row} button").click(timeout=1000 * PATIENCE)
        for _ in range(int(seconds)):
            self.page.keyboard.press("Shift+ArrowRight")
        self.page.evaluate(WATCH_STILLS)
        self.source = folder / "scenes" / f"{topic}.py"
        self.text = self.source.read_text()
        self.saves = 0

    def save(self) -> float:
        """Save the scene with another title of the chapter; return when."""
        before, after = self.text.split(f"    def {self.chapter}(")
        head, _, rest = before.rpartition('@chapter("')
        self.saves += 1
        changed = f'{head}@chapter("Save {"I" * (1 + self.saves % 7)} {rest}    def {self.chapter}({after}'
        now = time.time()
        self.source.write_text(changed)
        return now

    def still_seconds(self) -> float:
        """Save, and return the seconds until the new still is painted."""
        count = self.page.evaluate("window.painted.length")
        start = self.save()
        wait_for(lambda: self.page.evaluate("window.painted.length") > count)
        return self.page.evaluate("window.painted.at(-1)") / 1000 - start

    def chapter_seconds(self) -> float:
        """Save, and return the seconds until the chapter's new video is there."""
        start = self.save()
        wait_for(lambda: self.page.locator(f"{self.row}.fresh").count() == 0)
        wait_for(lambda: self.page.locator(f"{self.row}.fresh").count() == 1)
        return time.time() - start

    def processes(self) -> list[Path]:
        """Return the folders in /proc of all processes of this preview."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                if str(self.cache).encode() in file.read_bytes():
                    found.append(file.parent)
            except OSError:
                continue
        return found

    def megabytes(self) -> float:
        """Return the memory of all processes; what they share counts once."""
        total = 0
        for folder in self.processes():
            try:
                lines = (folder / "smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1000


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the page did not get there")
        time.sleep(0.01)


def spread(seconds: list[float]) -> str:
    """Return the median and the range."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}–{max(seconds):.2f}, n = {len(seconds)})"


def measure(folder: Path, topic: str, chapter: str, seconds: float, browser: Browser) -> None:
    """Print the rows of one topic."""
    preview = Preview(folder, topic, chapter, seconds, browser)
    page = preview.page
    wait_for(lambda: page.locator(f"{preview.row}.fresh").count())
    chapters = [preview.chapter_seconds() for _ in range(CHAPTER_SAVES)]
    print(f"| {topic}, `{chapter}`: save → its 480p15 video | {spread(chapters)} | ≤ 5 s |")
    stills = [preview.still_seconds() for _ in range(SAVES)]
    print(
        f"| {topic}, `{chapter}` at {seconds:.0f} s: save → new 720p still painted | {spread(stills)} | median ≤ 1 s |"
    )
    preview.save()
    wait_for(lambda: page.locator("#chapters li.rendering").count())
    answers = page.evaluate(ASK_OFTEN, 4)
    print(f"| {topic}: an answer while rendering | {spread([ms / 1000 for ms in answers])} | |")
    if topic == MOMENTS[0][0]:
        print(f"| {topic}: memory over {MEMORY_SAVES} saves | {memory(preview)} | stable |")
    page.close()
    preview.server.kill()
    preview.server.wait()
    start = time.monotonic()
    wait_for(lambda: not preview.processes())
    print(f"| {topic}: processes after `kill -9` of the server | 0, after {time.monotonic() - start:.2f} s | 0 |")


def memory(preview: Preview) -> str:
    """Return the memory of all processes each time the chapter is rendered, after few saves and after many."""
    found = []
    for save in range(MEMORY_SAVES + 1):
        if save % 25 == 0:
            wait_for(lambda: preview.page.locator(f"{preview.row}.fresh").count())
            found.append(f"{preview.megabytes():.0f}")
        if save < MEMORY_SAVES:
            preview.still_seconds()
    return f"{' → '.join(found)} MB (every 25 saves, all processes)"


def browser_left(folder: Path, playwright: Playwright) -> None:
    """Print what a killed browser leaves."""
    topic, chapter, seconds = MOMENTS[0]
    other = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
    preview = Preview(folder, topic, chapter, seconds, other)
    other.close()
    start = time.monotonic()
    wait_for(lambda: len(preview.processes()) == 1)
    print(f"| workers after the browser is gone | 0, after {time.monotonic() - start:.1f} s | 0 |")
    preview.server.send_signal(signal.SIGINT)
    code = preview.server.wait()
    print(f"| processes after Ctrl-C (exit code {code}) | {len(preview.processes())} | 0 |")


def main() -> None:
    """Print the table."""
    print(f"`python -m benchmarks.preview` on {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| what | measured: median (range) | bar |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        for package in ("internals_math", "scenes", "scripts"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for topic, chapter, seconds in MOMENTS:
            measure(folder, topic, chapter, seconds, browser)
        browser.close()
        browser_left(folder, playwright)
    load = os.getloadavg()[1]
    print(f"\nLoad average while it ran: {load:.1f}.")


if __name__ == "__main__":
    main()

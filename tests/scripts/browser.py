"""A real Chromium for the tests of pages: `scripts/test` installs Debian's; without one these tests are skipped."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; each test opens pages or contexts of its own."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run its sandbox as root
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)
        yield chromium
        chromium.close()

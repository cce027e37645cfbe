"""A cache of their own for the tests of the pipeline, and small topics at 160 x 90."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scenes import series
from scripts.cli import main
from scripts.pipeline.quality import QUALITIES, Quality
from tests.scripts.topics import broken, fatal, tiny

SMALL = Quality(160, 90, 15)
# Importing the small topics has put them into the registry, as it must in a worker; other tests want the real one.
series.TOPICS = tuple(topic for topic in series.TOPICS if topic not in (tiny.TOPIC, broken.TOPIC, fatal.TOPIC))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("LLM_INTERNALS_CACHE")
    os.environ["LLM_INTERNALS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["LLM_INTERNALS_CACHE"]
    else:
        os.environ["LLM_INTERNALS_CACHE"] = before


@pytest.fixture
def small_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of two topics, one of them broken; every quality is 160 x 90."""
    monkeypatch.setattr(series, "TOPICS", (tiny.TOPIC, broken.TOPIC))
    for name in QUALITIES:
        monkeypatch.setitem(QUALITIES, name, SMALL)


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache that nothing was put into, for renders in this process (workers keep the session's)."""
    monkeypatch.setenv("LLM_INTERNALS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(*arguments: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])

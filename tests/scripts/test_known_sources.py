"""Remembered hashes are those that would be computed."""

import pytest

from internals_math import sources
from scripts.pipeline import known_sources

CACHED = (sources.source_files, sources.source_hash, known_sources._state)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_INTERNALS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for package in sources.PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "scenes" / "one.py").write_text("from internals_math import two\n")
    (tmp_path / "internals_math" / "two.py").write_text("x = 1\n")
    (tmp_path / "scenes" / "other.py").write_text("y = 1\n")
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """Act as a new process would."""
    for function in CACHED:
        function.cache_clear()


def test_a_hash_is_computed_once_while_nothing_changes(project, monkeypatch):
    expected = sources.source_hash("scenes.one")
    assert known_sources.source_hash("scenes.one") == expected
    monkeypatch.setattr(sources, "source_hash", lambda module: pytest.fail("computed again"))
    assert known_sources.source_hash("scenes.one") == expected


@pytest.mark.parametrize(("file", "same"), [("internals_math/two.py", False), ("scenes/other.py", True)])
def test_an_edit_is_noticed_and_counts_where_it_is_imported(project, file, same):
    before = known_sources.source_hash("scenes.one")
    (project / file).write_text("z = 2\n")
    forget()
    after = known_sources.source_hash("scenes.one")
    assert (after == before) == same
    assert after == sources.source_hash("scenes.one")


@pytest.mark.parametrize("damage", ["", "[]", '{"state": 1}', "{"])
def test_a_damaged_memory_is_written_again(project, damage):
    expected = known_sources.source_hash("scenes.one")
    memory = project / "cache" / "sources.json"
    memory.write_text(damage)
    assert known_sources.source_hash("scenes.one") == expected
    assert "scenes.one" in memory.read_text()
    assert list(memory.parent.iterdir()) == [memory]


def test_without_room_in_the_cache_the_hash_is_right_all_the_same(project):
    (project / "cache").write_text("a file, no folder")
    assert known_sources.source_hash("scenes.one") == sources.source_hash("scenes.one")

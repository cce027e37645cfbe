"""Files that are made of one unit's video once."""

import shutil
from pathlib import Path

import pytest

from scripts.pipeline.made import make_once
from scripts.pipeline.units import RenderedUnit

calls: list[Path] = []


def doubled(video: Path, target: Path) -> None:
    calls.append(target)
    target.write_bytes(2 * video.read_bytes())


def reversed_bytes(video: Path, target: Path) -> None:
    calls.append(target)
    target.write_bytes(video.read_bytes()[::-1])


@pytest.fixture
def unit(tmp_path):
    calls.clear()
    folder = tmp_path / "unit"
    folder.mkdir()
    (folder / "video.mp4").write_bytes(b"abc")
    return RenderedUnit("tiny", "loop", folder, [], 1.0, [], [], [])


def test_a_file_is_made_once_and_is_the_same_the_second_time(unit, tmp_path):
    for name in ("first.gif", "second.gif"):
        make_once(unit, tmp_path / name, doubled)
        assert (tmp_path / name).read_bytes() == b"abcabc"
    assert calls == [tmp_path / "first.gif"]


def test_other_code_and_another_kind_of_file_are_made_anew(unit, tmp_path):
    make_once(unit, tmp_path / "a.gif", doubled)
    make_once(unit, tmp_path / "b.gif", reversed_bytes)
    make_once(unit, tmp_path / "c.webp", doubled)
    assert (tmp_path / "b.gif").read_bytes() == b"cba"
    assert len(calls) == 3


def test_a_damaged_copy_is_made_again(unit, tmp_path):
    make_once(unit, tmp_path / "a.gif", doubled)
    (kept,) = unit.folder.glob("made-*")
    kept.write_bytes(b"abca")
    make_once(unit, tmp_path / "b.gif", doubled)
    assert (tmp_path / "b.gif").read_bytes() == b"abcabc"
    assert len(calls) == 2
    (kept,) = unit.folder.glob("*made-*")
    assert kept.read_bytes() == b"abcabc"


def test_a_unit_that_was_pruned_meanwhile_does_no_harm(unit, tmp_path):
    def then_pruned(video: Path, target: Path) -> None:
        doubled(video, target)
        shutil.rmtree(unit.folder)

    make_once(unit, tmp_path / "a.gif", then_pruned)
    assert (tmp_path / "a.gif").read_bytes() == b"abcabc"

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, option
from scripts.pipeline import files, units
from scripts.pipeline.quality import QUALITIES, Quality, loop_quality
from scripts.pipeline.units import RenderedUnit, UnitJob, code_of_unit

SCENE = '''
from scenes.kit.topic_scene import TopicScene, chapter, loop
SIZE = 3
class Topic(TopicScene):
    takeaway = "So it is."
    @chapter("One")
    def one(self):
        """First."""
        self.helper()
    @chapter("Two")
    def two(self):
        """Second."""
        self.play(SIZE)
    @loop
    def round(self):
        """Loop."""
        self.two()
    def helper(self):
        pass
'''


def changed_units(old: str, new: str) -> set[str]:
    """Return the units that are rendered again when `old` becomes `new` in the scene file."""
    names = ("opening", "one", "two", "ending", "loop")
    edited = SCENE.replace(old, new)
    assert edited != SCENE
    return {name for name in names if code_of_unit(SCENE, name) != code_of_unit(edited, name)}


def test_editing_a_chapter_changes_that_chapter_alone():
    assert changed_units("self.helper()", "self.helper(1)") == {"one"}


def test_editing_a_chapter_that_the_loop_plays_changes_both():
    assert changed_units("self.play(SIZE)", "self.play(SIZE, SIZE)") == {"two", "loop"}


def test_editing_the_loop_changes_the_loop_alone():
    assert changed_units("self.two()", "self.two(1)") == {"loop"}


@pytest.mark.parametrize(("old", "new"), [("SIZE = 3", "SIZE = 4"), ("pass", "return 1"), ("So it is", "It is so")])
def test_editing_what_all_chapters_can_use_changes_all(old, new):
    assert changed_units(old, new) == {"opening", "one", "two", "ending", "loop"}


def test_a_comment_changes_nothing():
    assert changed_units("    def helper", "    # a remark\n\n    def helper") == set()


def job(key: str = "key") -> UnitJob:
    return UnitJob("tiny", "module", "Scene", "grid", "dark", Quality(160, 90, 15), False, "trace", key, "run")


@dataclass(frozen=True)
class Config(TopicConfig):
    scale: float = option(1.0, "of nothing")
    shift: float = option(0.0, "of nothing")


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config = Config()
    keys: Float[Tensor, "..."] = field(default_factory=lambda: torch.ones(2))
    values: Float[Tensor, "..."] = field(default_factory=lambda: torch.ones(2))


def keep(key: str, size: int = 10, trace: Trace | None = None) -> Path:
    kept = job(key)
    kept.aside.mkdir(parents=True)
    (kept.aside / units.VIDEO).write_bytes(b"v" * size)
    inputs = ["config.scale", "keys"]
    facts = {"inputs": inputs, "seconds": 1.0, "captions": [], "ledger": [], "key_times": []}
    units.keep_unit(kept, trace or Trace(), facts)
    return folder_of(key, trace or Trace())


def folder_of(key: str, trace: Trace | None = None) -> Path:
    return units.unit_folder() / f"{key}-{(trace or Trace()).hash_of(['config.scale', 'keys'])}"


def find(key: str, trace: Trace | None = None) -> RenderedUnit | None:
    return units.load_unit(key, trace or Trace())


def test_a_unit_is_found_while_the_values_it_read_are_the_same(empty_cache):
    keep("key")
    assert find("key", Trace(Config(shift=2.0), values=torch.zeros(3))) is not None


@pytest.mark.parametrize("other", [Trace(keys=torch.zeros(2)), Trace(Config(scale=2.0)), Trace(keys=torch.ones(1, 2))])
def test_a_unit_is_not_found_for_other_values_of_what_it_read(empty_cache, other):
    keep("key")
    assert find("key", other) is None


def test_renders_of_two_settings_are_kept_side_by_side(empty_cache):
    keep("key", 10)
    other = Trace(keys=torch.zeros(2))
    keep("key", 20, other)
    sizes = [unit.video.stat().st_size for unit in (find("key"), find("key", other)) if unit is not None]
    assert sizes == [10, 20]


def test_a_kept_unit_is_found_again(empty_cache):
    keep("key")
    found = find("key")
    assert found is not None
    assert found.reused
    assert found.video.read_bytes() == b"v" * 10


@pytest.mark.parametrize("damage", ["cut", "gone", "facts cut", "facts gone", "facts foreign"])
def test_a_damaged_unit_is_not_taken(empty_cache, damage):
    keep("key")
    folder = folder_of("key")
    if damage == "cut":
        (folder / units.VIDEO).write_bytes(b"v" * 9)
    elif damage == "gone":
        (folder / units.VIDEO).unlink()
    elif damage == "facts cut":
        (folder / units.FACTS).write_text((folder / units.FACTS).read_text()[:-5])
    elif damage == "facts gone":
        (folder / units.FACTS).unlink()
    else:
        (folder / units.FACTS).write_text(json.dumps(["something", "else"]))
    assert find("key") is None


def test_a_unit_replaces_a_damaged_one(empty_cache):
    keep("key")
    (folder_of("key") / units.VIDEO).unlink()
    keep("key", size=20)
    found = find("key")
    assert found is not None
    assert found.video.stat().st_size == 20


def test_sweeping_removes_what_one_run_left_and_nothing_else(empty_cache):
    keep("key")
    job("half").aside.mkdir()
    other = units.unit_folder() / ".part-other-key"
    other.mkdir()
    files.sweep(units.unit_folder(), "run")
    assert {path.name for path in units.unit_folder().iterdir()} == {folder_of("key").name, ".part-other-key"}


def test_pruning_removes_the_longest_unused_first_and_keeps_what_it_must(empty_cache):
    for age, key in enumerate(["new", "old", "older", "in use"]):
        keep(key, size=10_000)
        os.utime(folder_of(key), (0, 1_000_000 - age))
    units.prune(25_000, keep=[folder_of("in use").name])
    left = {path.name for path in units.unit_folder().iterdir()}
    assert left == {folder_of(key).name for key in ("new", "in use")}


@pytest.mark.parametrize("quality", QUALITIES.values(), ids=str)
def test_the_master_of_a_loop_scales_to_640_pixels_by_a_whole_number(quality):
    size = loop_quality(quality)
    assert size.width % 640 == size.height % 360 == size.frame_rate % 25 == 0

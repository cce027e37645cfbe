import dataclasses
import json
import math
import stat
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from internals_math.trace import TopicConfig, TopicTrace, digest, option, read_provenance


@dataclass(frozen=True)
class Config(TopicConfig):
    layer: int = option(0, "layer to show", minimum=0, maximum=2)
    base: float = option(100.0, "base of the frequencies", minimum=2, maximum=1e7)
    mode: str = option("ntk", "how to slow the hands", choices=("none", "linear", "ntk"))
    causal: bool = option(True, "hide the future")
    temperatures: tuple[float, ...] = option((0.5, 1.0), "one row each", minimum=0)
    seed: int | None = option(None, "of the noise", minimum=0)
    prompt: str = option("one day", "words")

    def check(self):
        if self.mode == "none" and self.layer == 2:
            raise ValueError("layer 2 has no mode 'none'")


@dataclass(frozen=True, eq=False)
class Table:
    name: tuple[str, ...]
    size: Int[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Trace(TopicTrace):
    config: Config
    keys: Float[Tensor, "T d"]
    mask: Tensor
    tokens: tuple[str, ...]
    loss: float
    steps: int
    note: str | None
    table: Table
    levels: dict[str, float]
    samples: dict[str, Tensor]


def make(**changes):
    values = {
        "config": Config(temperatures=(2.0,)),
        "keys": torch.tensor([[1.0, math.nan], [-0.0, math.inf]]),
        "mask": torch.tensor([[True, False]]),
        "tokens": ("<bos>", "fox"),
        "loss": 0.1,
        "steps": 3,
        "note": None,
        "table": Table(("a", "b"), torch.tensor([1, 2**40])),
        "levels": {"uniform": math.log(112), "floor": 0.25},
        "samples": {"early": torch.tensor(1.5, dtype=torch.float64), "late": torch.zeros(0, 3)},
    }
    return Trace(**(values | changes))


# -- Config: checks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, r"layer must be in 0\.\.2, got 3"),
        ({"layer": -1}, r"layer must be in 0\.\.2, got -1"),
        ({"base": 1.5}, r"base must be in 2\.\.10000000\.0, got 1\.5"),
        ({"base": math.nan}, "base must be in .*, got nan"),
        ({"base": math.inf}, "base must be in .*, got inf"),
        ({"mode": "yarn"}, "mode must be one of none, linear, ntk, got 'yarn'"),
        ({"temperatures": (1.0, -1.0)}, r"temperatures must be at least 0, got \(1\.0, -1\.0\)"),
        ({"mode": "none", "layer": 2}, "layer 2 has no mode 'none'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Config(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 1.5}, "layer must be a whole number, got 1.5"),
        ({"layer": True}, "layer must be a whole number, got True"),
        ({"layer": "1"}, "layer must be a whole number, got '1'"),
        ({"base": "100"}, "base must be a number, got '100'"),
        ({"prompt": 5}, "prompt must be text, got 5"),
        ({"causal": 1}, "causal must be true or false, got 1"),
        ({"temperatures": ("warm",)}, "temperatures must be a number, got 'warm'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_as_such(arguments, message):
    with pytest.raises(TypeError, match=message):
        Config(**arguments)


# -- Config: from the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("layer=2", "layer", 2),
        (" layer = 2 ", "layer", 2),
        ("base=1e4", "base", 10_000.0),
        ("base=7", "base", 7.0),
        ("mode=linear", "mode", "linear"),
        ("causal=no", "causal", False),
        ("causal=TRUE", "causal", True),
        ("temperatures=0.5,1,2", "temperatures", (0.5, 1.0, 2.0)),
        ("temperatures=3", "temperatures", (3.0,)),
        ("seed=4", "seed", 4),
        ("seed=none", "seed", None),
        ("prompt=a = b", "prompt", "a = b"),
    ],
)
def test_a_setting_is_read_as_the_kind_of_its_field(assignment, name, value):
    parsed = getattr(Config.parse([assignment]), name)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("layer", "a setting must read name=value, got 'layer'"),
        ("layr=1", "unknown setting 'layr'; did you mean 'layer'. allowed: layer, base, mode"),
        ("zzz=1", "unknown setting 'zzz'; allowed: layer"),
        ("layer=two", "layer must be a whole number, got 'two'"),
        ("layer=1.5", "layer must be a whole number, got '1.5'"),
        ("base=big", "base must be a number, got 'big'"),
        ("causal=maybe", "causal must be true or false, got 'maybe'"),
        ("layer=9", r"layer must be in 0\.\.2, got 9"),
        ("temperatures=1,x", "temperatures must be a number, got 'x'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_in_one_sentence(assignment, message):
    with pytest.raises(ValueError, match=message):
        Config.parse([assignment])


# -- Config: hash ------------------------------------------------------------------------------------------------------


def test_every_field_changes_the_hash_of_a_config():
    others = [
        Config(layer=1), Config(base=99.0), Config(mode="linear"), Config(causal=False), Config(temperatures=(1.0,)),
        Config(seed=0), Config(prompt="two days"),
    ]  # fmt: skip
    assert len({config.hash for config in (Config(), *others)}) == len(others) + 1


def test_equal_configs_have_equal_hashes_however_they_were_written():
    assert Config(base=100).hash == Config.parse(["base=1e2"]).hash == Config().hash
    assert Config(temperatures=(1, 2)).hash == Config(temperatures=(1.0, 2.0)).hash


def test_configs_of_two_topics_never_share_a_hash():
    other = dataclasses.make_dataclass(
        "Config", [], bases=(Config,), frozen=True, namespace={"__module__": "elsewhere"}
    )
    assert other().to_dict() == Config().to_dict()
    assert other().hash != Config().hash


# -- Trace -------------------------------------------------------------------------------------------------------------


def test_a_trace_is_flat_under_dotted_names_in_the_order_of_its_fields():
    assert list(make().to_flat()) == [
        "keys", "mask", "tokens", "loss", "steps", "note", "table.name", "table.size", "levels.uniform", "levels.floor",
        "samples.early", "samples.late",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"config": Config()},
        {"keys": torch.tensor([[1.0, math.nan], [0.0, math.inf]])},  # 0 in place of -0
        {"keys": torch.tensor([[1.0, math.nan, -0.0, math.inf]])},  # the same bytes in another shape
        {"keys": make().keys.double()},
        {"mask": torch.tensor([[True, True]])},
        {"tokens": ("<bos>", "owl")},
        {"loss": math.nextafter(0.1, 1)},
        {"note": ""},
        {"table": Table(("a", "b"), torch.tensor([1, 2]))},
        {"levels": {"uniform": math.log(112), "ceiling": 0.25}},
    ],
)
def test_any_change_of_any_value_changes_the_hash_of_a_trace(changes):
    assert make(**changes).hash != make().hash
    assert make(**changes).hash_of(changes) != make().hash_of(changes)


def test_the_hash_of_some_fields_is_deaf_to_the_others():
    assert make(note="").hash_of(["loss", "config"]) == make().hash_of(["loss", "config"])


def test_what_was_saved_comes_back_with_the_same_values_kinds_and_hash(tmp_path):
    trace, path = make(), tmp_path / "new folder" / "trace.safetensors"
    trace.save(path, model="abc", torch="2")
    loaded = Trace.load(path)
    assert loaded.hash == trace.hash
    assert loaded.config == trace.config
    torch.testing.assert_close(loaded.keys, trace.keys, equal_nan=True, atol=0, rtol=0)
    assert loaded.mask.dtype == torch.bool
    assert (loaded.tokens, loaded.loss, loaded.steps, loaded.note) == (("<bos>", "fox"), 0.1, 3, None)
    assert loaded.table.name == ("a", "b")
    assert loaded.levels == trace.levels
    assert loaded.samples["early"].dtype == torch.float64
    assert loaded.samples["late"].shape == (0, 3)
    assert read_provenance(path) == {"model": "abc", "torch": "2"}


@given(st.lists(st.floats(width=32), max_size=6), st.floats(), st.text(max_size=5))
def test_any_numbers_and_texts_survive_the_file(tmp_path_factory, numbers, loss, note):
    path = tmp_path_factory.mktemp("trace") / "trace.safetensors"
    trace = make(keys=torch.tensor([numbers]), loss=loss, note=note)
    trace.save(path)
    assert Trace.load(path).hash == trace.hash


def test_equal_traces_make_equal_files_that_everyone_may_read_and_nothing_else(tmp_path):
    for folder in ("a", "b"):
        make().save(tmp_path / folder / "trace.safetensors", model="abc", core="def")
    one, other = tmp_path / "a" / "trace.safetensors", tmp_path / "b" / "trace.safetensors"
    assert one.read_bytes() == other.read_bytes()
    assert stat.S_IMODE(one.stat().st_mode) == 0o644
    assert [path.name for path in one.parent.iterdir()] == [one.name]


def test_a_save_that_fails_leaves_the_old_file_and_no_half_file(tmp_path):
    path = tmp_path / "trace.safetensors"
    make().save(path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        make(note=object()).save(path)
    assert Trace.load(path).hash == make().hash
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_views_that_share_memory_are_saved_as_they_look(tmp_path):
    numbers = torch.arange(6.0).view(2, 3)
    trace = make(keys=numbers.T, mask=numbers[0] > 1, samples={"early": numbers, "late": numbers[:, 1]})
    trace.save(tmp_path / "trace.safetensors")
    assert Trace.load(tmp_path / "trace.safetensors").hash == trace.hash


# -- damaged and foreign files -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NewerTrace(Trace):
    extra: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class OlderTrace(TopicTrace):
    config: Config
    keys: Float[Tensor, "T d"]


def rewritten(path, **tensors):
    """Change tensors of a trace file and leave what it says of itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    save_file(load_file(path) | tensors, path, about)
    return path


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "trace.safetensors"
    make().save(path)
    return path


def test_a_value_changed_on_disk_is_noticed(stored):
    with pytest.raises(ValueError, match="is damaged: its values do not match its hash"):
        Trace.load(rewritten(stored, mask=torch.tensor([[True, True]])))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(stored, kept):
    stored.write_bytes(stored.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is not a .* trace of this version"):
        Trace.load(stored)


def test_a_file_of_another_program_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"keys": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is not a .* trace of this version"):
        Trace.load(path)


def test_a_trace_without_a_field_that_the_class_now_has_is_refused(stored):
    with pytest.raises(ValueError, match="is not a .* trace of this version: 'extra'"):
        NewerTrace.load(stored)


def test_a_trace_with_a_field_that_the_class_no_longer_has_is_refused(stored):
    with pytest.raises(ValueError, match="is damaged"):
        OlderTrace.load(stored)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a .* trace of this version"):
        Trace.load(tmp_path / "nothing.safetensors")


# -- digest ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_only_equal_lists_of_parts_have_equal_digests(one, other):
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_trace_says_its_config_in_plain_json():
    assert json.loads(json.dumps(Config().to_dict()))["temperatures"] == [0.5, 1.0]

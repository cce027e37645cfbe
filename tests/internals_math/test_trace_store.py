import dataclasses
import importlib
import json

import pytest
import torch

from internals_math import kv_cache, rope, tiny_lm, trace_store
from internals_math.trace import read_provenance

CONFIG = kv_cache.Config(max_new_tokens=2)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty cache and no committed traces."""
    monkeypatch.setenv("LLM_INTERNALS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trace_store, "COMMITTED", tmp_path / "committed")
    return tmp_path


def marked(trace, name):
    """A trace that can be told from the one that would be computed."""
    return dataclasses.replace(trace, real_name=name)


def test_a_trace_is_computed_once_and_then_read(store):
    first = trace_store.get(kv_cache, CONFIG)
    path = trace_store.stored_file(kv_cache, CONFIG)
    assert path.is_relative_to(store / "cache")
    assert kv_cache.Trace.load(path).hash == first.hash
    marked(first, "read from the file").save(path)
    assert trace_store.get(kv_cache, CONFIG).real_name == "read from the file"


def test_fresh_computes_again_and_repairs_the_file(store):
    first = trace_store.get(kv_cache, CONFIG)
    path = trace_store.stored_file(kv_cache, CONFIG)
    marked(first, "read from the file").save(path)
    assert trace_store.get(kv_cache, CONFIG, fresh=True).hash == first.hash
    assert kv_cache.Trace.load(path).hash == first.hash


@pytest.mark.parametrize("damage", [b"", b"not a trace", None])
def test_a_damaged_entry_is_computed_again_and_replaced(store, damage):
    first = trace_store.get(kv_cache, CONFIG)
    path = trace_store.stored_file(kv_cache, CONFIG)
    path.write_bytes(path.read_bytes()[:-8] if damage is None else damage)
    assert trace_store.get(kv_cache, CONFIG).hash == first.hash
    assert kv_cache.Trace.load(path).hash == first.hash


def test_a_committed_trace_comes_before_the_cache(store):
    first = trace_store.get(kv_cache, CONFIG)
    marked(first, "committed").save(trace_store.committed_file(kv_cache, CONFIG))
    assert trace_store.get(kv_cache, CONFIG).real_name == "committed"
    assert trace_store.stored_file(kv_cache, CONFIG) == trace_store.committed_file(kv_cache, CONFIG)


def test_a_damaged_committed_trace_falls_back_to_the_computation(store):
    path = trace_store.committed_file(kv_cache, CONFIG)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    assert trace_store.get(kv_cache, CONFIG).hash == kv_cache.trace(CONFIG).hash


def test_no_config_means_the_default_one(store):
    assert trace_store.get(kv_cache).config == kv_cache.Config()


def test_the_file_depends_on_config_core_and_torch(store, monkeypatch):
    def files():
        return {trace_store.cached_file(kv_cache, CONFIG).name, trace_store.committed_file(kv_cache, CONFIG).name}

    seen = files() | {trace_store.cached_file(kv_cache, kv_cache.Config()).name}
    seen.add(trace_store.cached_file(rope, rope.Config()).name)
    monkeypatch.setattr(torch, "__version__", "0.0")
    seen |= files()  # what comes with the project serves every build of torch
    monkeypatch.undo()
    monkeypatch.setattr(trace_store, "source_hash", lambda module: "0")
    seen |= files()
    assert len(seen) == 2 + 1 + 1 + 1 + 2


def test_a_stored_trace_dies_with_a_model_it_was_made_from(store, monkeypatch):
    first = trace_store.get(kv_cache, CONFIG)
    path = trace_store.stored_file(kv_cache, CONFIG)
    models = json.loads(read_provenance(path)["models"])
    assert set(models) == {"base"}
    marked(first, "read from the file").save(path, models=json.dumps(models))
    assert trace_store.get(kv_cache, CONFIG).real_name == "read from the file"
    marked(first, "of other weights").save(path, models=json.dumps({"base": "0" * 16}))
    assert trace_store.get(kv_cache, CONFIG).hash == first.hash
    marked(first, "of a lost model").save(path, models=json.dumps({"lost": "0" * 16}))
    assert trace_store.get(kv_cache, CONFIG).hash == first.hash


def test_a_stored_trace_says_what_made_it(store):
    trace_store.get(kv_cache, CONFIG)
    facts = read_provenance(trace_store.stored_file(kv_cache, CONFIG))
    assert facts.items() >= trace_store.provenance(kv_cache).items()
    assert set(facts) == {"model", "core", "llm-internals", "torch", "models"}
    assert all(facts.values())


def test_a_committed_default_takes_the_place_of_the_earlier_one(store):
    trace_store.COMMITTED.mkdir()
    older = trace_store.COMMITTED / "kv_cache-0123456789abcdef.safetensors"
    other = trace_store.COMMITTED / "rope-0123456789abcdef.safetensors"
    for path in (older, other):
        path.write_bytes(b"of earlier code")
    path = trace_store.commit(kv_cache)
    assert sorted(trace_store.COMMITTED.iterdir()) == sorted([path, other])
    assert trace_store.stored_file(kv_cache, kv_cache.Config()) == path


COMMITTED = sorted(trace_store.COMMITTED.glob("*.safetensors"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_trace_is_the_current_one_and_small(path):
    core = importlib.import_module(f"internals_math.{path.stem.rpartition('-')[0]}")
    assert path == trace_store.committed_file(core, core.Config()), "renew it: llm-internals trace TOPIC --commit"
    assert trace_store.stored_file(core, core.Config()) == path
    assert path.stat().st_size <= 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_trace_is_what_its_core_computes(path, tmp_path):
    core = importlib.import_module(f"internals_math.{path.stem.rpartition('-')[0]}")
    again = trace_store.compute(core, core.Config(), tmp_path / path.name).to_flat()
    for name, kept in core.Trace.load(path).to_flat().items():
        if isinstance(kept, torch.Tensor):
            # training drifts apart by rounding on another processor
            torch.testing.assert_close(again[name], kept, rtol=0.05, atol=0.05, equal_nan=True, msg=name)
        else:
            assert (
                again[name] == pytest.approx(kept, rel=0.05, abs=0.05)
                if isinstance(kept, float)
                else again[name] == kept
            )


def test_threads_and_random_numbers_of_the_caller_stay_as_they_were(store):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_num_threads()
    trace_store.get(kv_cache, CONFIG)
    assert torch.get_num_threads() == before
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("core", [kv_cache, rope])
def test_a_topic_is_traced_bit_by_bit_the_same_twice(store, core):
    assert trace_store.get(core, fresh=True).hash == trace_store.get(core, fresh=True).hash


def test_the_cache_folder_is_the_users_unless_the_environment_says_otherwise(store, monkeypatch):
    assert tiny_lm.cache_folder() == store / "cache"
    monkeypatch.delenv("LLM_INTERNALS_CACHE")
    assert tiny_lm.cache_folder().name == "llm-internals"

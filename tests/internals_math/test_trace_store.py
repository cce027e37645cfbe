import dataclasses

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


def test_the_key_depends_on_config_core_model_and_torch(store, monkeypatch):
    keys = {trace_store.key(kv_cache, CONFIG), trace_store.key(kv_cache, kv_cache.Config())}
    keys.add(trace_store.key(rope, rope.Config()))
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.add(trace_store.key(kv_cache, CONFIG))
    monkeypatch.undo()
    foreign = store / "other.safetensors"
    foreign.write_bytes(b"other weights")
    monkeypatch.setattr(trace_store, "committed_path", lambda name: foreign)
    keys.add(trace_store.key(kv_cache, CONFIG))
    monkeypatch.undo()
    monkeypatch.setattr(trace_store, "source_hash", lambda module: "0")
    keys.add(trace_store.key(kv_cache, CONFIG))
    assert len(keys) == 6


def test_a_stored_trace_says_what_made_it(store):
    trace_store.get(kv_cache, CONFIG)
    facts = read_provenance(trace_store.stored_file(kv_cache, CONFIG))
    assert facts == trace_store.provenance(kv_cache)
    assert set(facts) == {"model", "core", "llm-internals", "torch"}
    assert all(facts.values())


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

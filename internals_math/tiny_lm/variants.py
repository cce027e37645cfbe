"""Every checkpoint of the series by name: how it is made, and where it is kept."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from internals_math.sources import source_hash
from internals_math.trace import digest
from internals_math.tiny_lm import datasets, dialects
from internals_math.tiny_lm.checkpoints import cache_folder, load, read_checkpoint, save_checkpoint
from internals_math.tiny_lm.datasets import Corpus
from internals_math.tiny_lm.model import ModelConfig, TinyLM
from internals_math.tiny_lm.training import OnStep, Recipe, copy_of, evaluate, train
from internals_math.tiny_lm.vocabulary import id_of

SNAPSHOTS = (100, 400, 800)  # early, mid and late in the base run: before, at and after induction forms
FINE_TUNE = Recipe(steps=150, batch_size=16, muon_lr=0.0, adam_lr=2e-3, warmup=5)
UPTRAIN = Recipe(steps=300, muon_lr=0.0, adam_lr=3e-3, warmup=5)
WALK_MOVES = range(1, 9)


@dataclass(frozen=True)
class Variant:
    """One trained model."""

    help: str
    recipe: Recipe
    config: ModelConfig = ModelConfig()
    dialect: str = "base"
    documents: int = datasets.CORPUS_SIZE
    start_from: str | None = None  # a committed checkpoint, None = fresh weights
    committed: bool = False
    seed: int = 0


BASE_RECIPE = Recipe()
VARIANTS: dict[str, Variant] = {
    "base": Variant("the model of the series", BASE_RECIPE, committed=True),
    "base_seed1": Variant("the same from another seed: crisp induction and recall heads", BASE_RECIPE, committed=True, seed=1),
    "base_seed2": Variant("a third seed, for the spread", BASE_RECIPE, committed=True, seed=2),
    "draft": Variant(
        "one layer, for speculative decoding", Recipe(steps=500), ModelConfig(num_hidden_layers=1), committed=True
    ),
    "walk": Variant(
        "the base after walks of 1 to 8 moves, half answered at once, half step by step",
        Recipe(steps=1200, adam_lr=0.005, constant_share=0.75),
        dialect="walk",
        documents=9600,
        start_from="base",
        committed=True,
    ),
    "student": Variant(
        "a fifth of the weights, trained on the same texts",
        Recipe(steps=500),
        ModelConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48),
    ),
    **{
        name: Variant(f"the base fine-tuned on {name}", FINE_TUNE, dialect=name, documents=3200, start_from="base")
        for name in ("farm2", "sea2", "mood2", "news", "longago")
    },
    **{
        f"kv{groups}": Variant(
            f"the base with {groups} key-value head{'s' if groups > 1 else ''}: mean-pooled, then trained on",
            UPTRAIN,
            ModelConfig(num_key_value_heads=groups),
            start_from="base",
        )
        for groups in (2, 1)
    },
}  # fmt: skip


def variant(name: str) -> Variant:
    """Return a variant by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def train_variant(
    name: str, *, seed: int | None = None, steps: int | None = None, on_step: OnStep | None = None, path: Path | None = None
) -> Path:
    """Train a variant from its recipe and return the path of its checkpoint (the cache unless `path` is given)."""
    spec = variant(name)
    seed = spec.seed if seed is None else seed
    recipe = spec.recipe if steps is None else replace(spec.recipe, steps=steps)
    path = path or cached_path(name, seed=seed, steps=steps)
    corpus, labels = _texts(spec)
    model = start_model(spec, seed)
    snapshots = SNAPSHOTS if name == "base" else ()
    kept = train(model, corpus, recipe, seed=seed, labels=labels, snapshots=snapshots, on_step=on_step)
    held_out, counted = _held_out(spec)
    facts = {
        "variant": name,
        "seed": seed,
        "recipe": recipe.to_dict(),
        "dialect": spec.dialect,
        "corpus": corpus.hash,
        "documents": len(corpus.ids),
        "entropy_floor": held_out.entropy_floor if counted is None else 0.0,  # the end of a walk is certain
    }
    save_checkpoint(path, model, loss=evaluate(model, held_out, labels=counted), **facts)
    for step, state in kept.items():
        early = copy_of(model)
        early.load_state_dict(state)
        loss = evaluate(early, held_out, labels=counted)
        save_checkpoint(path.with_name(f"{name}_step{step}.safetensors"), early, loss=loss, step=step, **facts)
    return path


@cache
def get_variant(name: str, on_step: OnStep | None = None) -> TinyLM:
    """Return a variant's model: the committed one, else the cached one, else trained now and cached."""
    if variant(name).committed:
        return load(name)
    path = cached_path(name)
    if path.is_file():
        try:
            return read_checkpoint(path)
        except ValueError:
            path.unlink()  # a damaged copy of something that can be made again
    return read_checkpoint(train_variant(name, on_step=on_step))


def cached_path(name: str, *, seed: int | None = None, steps: int | None = None) -> Path:
    """Return where a variant's checkpoint is cached: the name holds a hash of settings and code."""
    spec = variant(name)
    key = digest(
        json.dumps(asdict(spec), sort_keys=True, default=str),
        str(seed if seed is not None else spec.seed),
        str(steps),
        source_hash("internals_math.tiny_lm.variants"),
        torch.__version__,
    )
    return cache_folder() / "checkpoints" / f"{name}-{key}.safetensors"


def start_model(spec: Variant, seed: int) -> TinyLM:
    """Return the model before training: fresh, a copy of the base, or the base with pooled key-value heads."""
    if spec.start_from is None:
        return TinyLM(spec.config, seed=seed)
    base = load(spec.start_from)
    if spec.config == base.config:
        return copy_of(base)
    return pool_key_value_heads(base, spec.config.num_key_value_heads)


def pool_key_value_heads(model: TinyLM, num_key_value_heads: int) -> TinyLM:
    """Return the model with fewer key-value heads, each the mean of the heads it replaces (2305.13245, section 2.1)."""
    config = replace(model.config, num_key_value_heads=num_key_value_heads)
    pooled = TinyLM(config)
    state = model.state_dict()
    for name, value in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            heads = value.view(num_key_value_heads, -1, config.head_dim, value.shape[1])
            state[name] = heads.mean(dim=1).reshape(-1, value.shape[1])
    pooled.load_state_dict(state)
    return pooled


def _texts(spec: Variant) -> tuple[Corpus, Tensor | None]:
    if spec.dialect != "walk":
        return datasets.training_corpus(spec.dialect, spec.documents), None
    return walk_corpus(spec.documents, datasets.CORPUS_SEED)


def _held_out(spec: Variant) -> tuple[Corpus, Tensor | None]:
    if spec.dialect == "walk":
        return walk_corpus(800, datasets.HELD_OUT_SEED)
    return datasets.held_out(1000, spec.dialect), None


@cache
def walk_corpus(documents: int, seed: int) -> tuple[Corpus, Tensor]:
    """Return walks of 1 to 8 moves, half direct and half in steps, and labels that count only what follows `?`."""
    kinds = [f"walk-{way}-{moves}" for way in ("direct", "steps") for moves in WALK_MOVES]
    parts = [datasets.make_corpus(dialects.grammar(kind), documents // len(kinds), seed + k) for k, kind in enumerate(kinds)]
    corpus = Corpus(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "surprisal", "lengths")))
    asked = (corpus.ids == id_of("?")).cumsum(dim=1) > 0
    labels = corpus.labels().masked_fill(~(asked & (corpus.ids != id_of("?"))), -100)
    return corpus, labels



"""Every checkpoint of the series by name: how it is made, and where it is kept."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from internals_math.sources import source_hash
from internals_math.tiny_lm import datasets, walks
from internals_math.tiny_lm.checkpoints import (
    attention_factory,
    cache_folder,
    committed_path,
    file_hash,
    load,
    read_checkpoint,
    save_checkpoint,
)
from internals_math.tiny_lm.datasets import Corpus
from internals_math.tiny_lm.model import ModelConfig, TinyLM
from internals_math.tiny_lm.training import (
    FINE_TUNE_DOCUMENTS,
    OnStep,
    Recipe,
    copy_of,
    evaluate,
    fine_tuning_recipe,
    train,
)
from internals_math.trace import digest

BASE = Recipe()
FINE_TUNE = fine_tuning_recipe(steps=150, batch_size=16, learning_rate=2e-3)
UPTRAIN = fine_tuning_recipe(steps=300, batch_size=32, learning_rate=3e-3)
SHAPE = ModelConfig()
SNAPSHOTS = (25, 50, 100, 200, 400, 800)  # of the base run, which ends at 1600


@dataclass(frozen=True)
class Variant:
    """One trained model."""

    help: str
    recipe: Recipe
    config: ModelConfig = SHAPE
    attention: str | None = None  # a topic's in place of the model's own, see `checkpoints.attention_factory`
    dialect: str = "base"  # or "walk"
    documents: int = datasets.CORPUS_SIZE
    start_from: str | None = None  # a committed checkpoint; None = fresh weights
    seed: int = 0
    snapshots: tuple[int, ...] = ()  # steps whose weights are kept as <name>_step<n>
    committed: bool = False

    def fresh_model(self, seed: int = 0) -> TinyLM:
        """Return a model of this shape with fresh weights."""
        return TinyLM(self.config, seed=seed, attention=attention_factory(self.attention))


def _fine_tuned(dialect: str, help: str) -> Variant:
    return Variant(help, FINE_TUNE, dialect=dialect, documents=FINE_TUNE_DOCUMENTS, start_from="base")


VARIANTS: dict[str, Variant] = {
    "base": Variant("the model of the series", BASE, snapshots=SNAPSHOTS, committed=True),
    "base_seed1": Variant("the same from another seed: crisp induction and recall heads", BASE, seed=1, committed=True),
    "base_seed2": Variant("a third seed, for the spread", BASE, seed=2, committed=True),
    "draft": Variant(
        "one layer, for speculative decoding", Recipe(steps=500), ModelConfig(num_hidden_layers=1), committed=True
    ),
    "walk": Variant(
        "the base after walks of 1 to 8 moves, half answered at once and half in steps",
        Recipe(steps=1200, constant_share=0.75),
        dialect="walk",
        documents=9600,
        start_from="base",
        committed=True,
    ),
    "student": Variant(
        "a fifth of the weights, trained on the same texts",
        Recipe(steps=500),
        ModelConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, intermediate_size=48
        ),
    ),
    "farm2": _fine_tuned("farm2", "the base with new habits on the farm"),
    "sea2": _fine_tuned("sea2", "the base with new habits at sea"),
    "mood2": _fine_tuned("mood2", "the base with happy and sad swapped"),
    "news": _fine_tuned("news", "the base on farm news: new words, new syntax"),
    "longago": _fine_tuned("longago", "the base on old tales of the sea: new words, new syntax"),
    "kv2": Variant(
        "the base with 2 key-value heads: mean-pooled, then trained on",
        UPTRAIN,
        ModelConfig(num_key_value_heads=2),
        start_from="base",
    ),
    "kv1": Variant(
        "the base with 1 key-value head: mean-pooled, then trained on",
        UPTRAIN,
        ModelConfig(num_key_value_heads=1),
        start_from="base",
    ),
    "mqa": Variant(
        "1 key-value head from the start; the saved weights went into the feed-forward",
        BASE,
        ModelConfig(num_key_value_heads=1, intermediate_size=112),
        committed=True,
    ),
    "mla": Variant(
        "one cached latent for all heads from the start",
        BASE,
        attention="internals_math.multi_latent_attention_experiment:LatentAttention",
        committed=True,
    ),
    "window16": Variant(
        "the base trained on with a sliding window of 16", UPTRAIN, ModelConfig(sliding_window=16), start_from="base"
    ),
}


def variant(name: str) -> Variant:
    """Return a variant by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    return VARIANTS[name]


def get_variant(name: str, on_step: OnStep | None = None) -> TinyLM:
    """Return a variant's model, frozen: the committed one, else the cached one, else trained now and cached."""
    if variant(name).committed:
        return load(name)
    path = cached_path(name)
    if path.is_file():
        try:
            return read_checkpoint(path)
        except ValueError:
            path.unlink()  # a damaged copy of something that can be made again
    return read_checkpoint(train_variant(name, on_step=on_step))


def train_variant(
    name: str,
    seed: int | None = None,
    on_step: OnStep | None = None,
    *,
    steps: int | None = None,
    path: Path | None = None,
) -> Path:
    """Train a variant from its recipe and return the path of its checkpoint.

    Args:
        seed: of the weights and of the order of the documents; the variant's own by default.
        on_step: told (steps done, steps in all, loss) after each step.
        steps: another length of the run.
        path: the file to write, in the user's cache by default; snapshots go beside it.
    """
    spec = variant(name)
    seed = spec.seed if seed is None else seed
    recipe = spec.recipe if steps is None else replace(spec.recipe, steps=steps)
    path = path or cached_path(name, seed=seed, steps=steps)
    corpus, labels = training_texts(spec)
    model = start_model(spec, seed)
    kept = train(
        model,
        corpus,
        recipe,
        seed=seed,
        labels=labels,
        skip_batches=BASE.steps if spec.start_from and spec.dialect == "base" else 0,  # the base's stream goes on
        snapshots=spec.snapshots,
        on_step=on_step,
    )
    facts = {
        "variant": name,
        "seed": seed,
        "recipe": recipe.to_dict(),
        "start_from": spec.start_from,
        "dialect": spec.dialect,
        "documents": len(corpus.ids),
        "corpus": corpus.hash,
        "num_params": model.num_params,
    }
    for step, weights in kept.items():
        _save(path.with_name(f"{path.stem}_step{step}.safetensors"), spec, weights, facts | {"step": step})
    return _save(path, spec, model.state_dict(), facts | {"step": recipe.steps})


def _save(path: Path, spec: Variant, weights: Mapping[str, Tensor], facts: Mapping[str, object]) -> Path:
    model = copy_of(spec.fresh_model(), weights)
    corpus, labels = held_out_texts(spec)
    # The end of a walk is certain, and nothing else of a walk is counted.
    floor = corpus.entropy_floor if labels is None else 0.0
    judged = {"loss": evaluate(model, corpus, labels=labels), "entropy_floor": floor}
    return save_checkpoint(path, spec.config, weights, {**facts, **judged}, attention=spec.attention)


def cached_path(name: str, *, seed: int | None = None, steps: int | None = None) -> Path:
    """Return where a variant's checkpoint is cached: the name holds a hash of settings, code and start."""
    spec = variant(name)
    key = digest(
        json.dumps(asdict(spec), sort_keys=True),
        str(spec.seed if seed is None else seed),
        str(spec.recipe.steps if steps is None else steps),
        source_hash("internals_math.tiny_lm.variants"),
        source_hash(spec.attention.partition(":")[0]) if spec.attention else "",
        file_hash(committed_path(spec.start_from)) if spec.start_from else "fresh",
        torch.__version__,
    )
    return cache_folder() / "checkpoints" / f"{name}-{key}.safetensors"


def training_texts(spec: Variant) -> tuple[Corpus, Tensor | None]:
    """Return what a variant is trained on, and labels if not every token counts."""
    if spec.dialect == "walk":
        corpus = walks.walk_corpus(spec.documents, datasets.CORPUS_SEED)
        return corpus, walks.answer_labels(corpus.ids)
    return datasets.training_corpus(spec.dialect, spec.documents), None


def held_out_texts(spec: Variant) -> tuple[Corpus, Tensor | None]:
    """Return what a variant is judged on, and labels if not every token counts."""
    if spec.dialect == "walk":
        corpus = walks.walk_corpus(800, datasets.HELD_OUT_SEED)
        return corpus, walks.answer_labels(corpus.ids)
    return datasets.held_out(1000, spec.dialect), None


def start_model(spec: Variant, seed: int) -> TinyLM:
    """Return the model before training: fresh, or the start with its key-value heads pooled to the variant's number."""
    if spec.start_from is None:
        return spec.fresh_model(seed)
    start = load(spec.start_from)
    pooled = pool_key_value_heads(start.state_dict(), start.config, spec.config.num_key_value_heads)
    return copy_of(TinyLM(spec.config), pooled)


def pool_key_value_heads(
    state: Mapping[str, Tensor], config: ModelConfig, num_key_value_heads: int
) -> dict[str, Tensor]:
    """Return the weights with fewer key-value heads, each the mean of those it replaces (2305.13245, section 2.1).

    Raises:
        ValueError: the number of key-value heads is not a multiple of the new one.
    """
    if num_key_value_heads < 1 or config.num_key_value_heads % num_key_value_heads:
        raise ValueError(
            f"num_key_value_heads ({config.num_key_value_heads}) must be divisible by the new number, "
            f"got {num_key_value_heads}"
        )
    pooled = dict(state)
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            heads = weight.view(num_key_value_heads, -1, config.head_dim, weight.shape[1])
            pooled[name] = heads.mean(dim=1).flatten(0, 1)
    return pooled

"""The interpretability report: everything measured on the models, as data and as the page docs/tiny_lm.md.

measured = report.measure()      # a minute or two; variants that are not stored are trained first
print(report.to_markdown(measured))
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from internals_math.tiny_lm import measurements, walks
from internals_math.tiny_lm.checkpoints import committed_path, load, read_facts
from internals_math.tiny_lm.datasets import held_out
from internals_math.tiny_lm.heads import SKILLS, FoundHead, find_head, find_heads, head_ablation, head_scores
from internals_math.tiny_lm.measurements import LossRow
from internals_math.tiny_lm.model import TinyLM
from internals_math.tiny_lm.training import OnStep, Recipe, evaluate, one_thread
from internals_math.tiny_lm.variants import SNAPSHOTS, VARIANTS, get_variant, held_out_texts, start_model

SEEDS = ("base", "base_seed1", "base_seed2")
SCENE_MODEL = "base_seed1"  # its heads are the clearest
WRITTEN = 400


@dataclass(frozen=True)
class SeedRow:
    """One base run."""

    name: str
    by_kind: list[LossRow]  # the last row is all documents
    heads: dict[str, FoundHead]


@dataclass(frozen=True)
class StepRow:
    """The base run after some steps."""

    step: int
    by_class: dict[str, LossRow]
    loss: float
    induction: FoundHead


@dataclass(frozen=True)
class VariantRow:
    """One variant on its own texts and on the base's."""

    name: str
    help: str
    num_params: int
    loss_before: float  # of the model it starts from, converted but not trained; fresh weights otherwise
    loss: float
    floor: float
    base_mix_loss: float


@dataclass(frozen=True)
class Report:
    """All measurements. Losses are nats per predicted token on held-out texts."""

    seeds: list[SeedRow]
    steps: list[StepRow]
    by_position: list[LossRow]
    by_class: list[LossRow]
    written: list[str]
    grammatical: dict[str, tuple[int, float]]
    head_scores: dict[str, torch.Tensor]  # skill -> (L, H), of SCENE_MODEL
    head_ablation: torch.Tensor  # (L, H), of SCENE_MODEL
    walk_accuracy: dict[str, list[float]]  # way of answering -> by number of moves
    variants: list[VariantRow]


def measure(
    on_stage: Callable[[str], None] | None = None,
    on_step: OnStep | None = None,
    *,
    variants: Iterable[str] = VARIANTS,
    documents: int = 1000,
) -> Report:
    """Measure everything.

    Args:
        on_stage: told what comes next.
        on_step: progress of a training run, for variants that are not stored yet.
        variants: those to compare.
        documents: held-out documents to judge by.
    """

    def stage(name: str) -> None:
        if on_stage is not None:
            on_stage(name)

    with one_thread():
        stage("three seeds")
        seeds = [SeedRow(name, measurements.loss_by_kind(load(name), documents), find_heads(name)) for name in SEEDS]
        stage("snapshots")
        steps = [_step_row(0, TinyLM(seed=VARIANTS["base"].seed), documents)]
        steps += [_step_row(step, load(f"base_step{step}"), documents) for step in SNAPSHOTS]
        steps += [_step_row(Recipe().steps, load("base"), documents)]
        stage("positions, token classes, heads")
        base, shown = load("base"), load(SCENE_MODEL)
        written = measurements.write_documents(base, min(WRITTEN, documents))
        walk = get_variant("walk", on_step)
        return Report(
            seeds=seeds,
            steps=steps,
            by_position=measurements.loss_by_position(base, documents),
            by_class=measurements.loss_by_token_class(base, documents),
            written=written,
            grammatical=measurements.grammatical_shares(written),
            head_scores={skill: head_scores(shown, skill) for skill in SKILLS},
            head_ablation=head_ablation(shown, held_out(documents)),
            walk_accuracy={
                way: [
                    walks.walk_accuracy(walk, moves, steps=steps, questions=min(200, documents))
                    for moves in walks.MOVES
                ]
                for way, steps in (("at once", False), ("in steps", True))
            },
            variants=[_variant_row(name, stage, on_step) for name in variants if name not in SEEDS],
        )


def _step_row(step: int, model: TinyLM, documents: int) -> StepRow:
    rows = measurements.loss_by_token_class(model, documents)
    loss = evaluate(model, held_out(documents))
    return StepRow(step, {row.name: row for row in rows}, loss, find_head(model, "induction"))


def _variant_row(name: str, stage: Callable[[str], None], on_step: OnStep | None) -> VariantRow:
    stage(name)
    spec = VARIANTS[name]
    model = get_variant(name, on_step)
    corpus, labels = held_out_texts(spec)
    return VariantRow(
        name=name,
        help=spec.help,
        num_params=model.num_params,
        loss_before=evaluate(start_model(spec, spec.seed), corpus, labels=labels),
        loss=evaluate(model, corpus, labels=labels),
        floor=corpus.entropy_floor if labels is None else 0.0,
        base_mix_loss=evaluate(model, held_out()),
    )


# -- the page ----------------------------------------------------------------------------------------------------------


def to_markdown(report: Report) -> str:
    """Return the report as Markdown."""
    sections = (_opening, _seeds, _learning, _classes, _positions, _writing, _heads, _variants, _walks)
    return "\n\n".join(section(report) for section in sections)


def _opening(report: Report) -> str:
    facts = read_facts(committed_path("base"))
    recipe = facts["recipe"]
    floor = report.seeds[0].by_kind[-1].floor
    losses = [seed.by_kind[-1].loss for seed in report.seeds]
    return f"""# The tiny LM, measured

*Generated by `llm-internals train --report` from the checkpoints in `internals_math/tiny_lm/checkpoints/` and from the
variants that are trained on demand.*

A Llama-style decoder with {facts["num_params"]:,} parameters, trained for {recipe["steps"]:,} steps of \
{recipe["batch_size"]} documents on {facts["documents"]:,} documents (corpus `{facts["corpus"]}`) of a seeded grammar \
whose next-word probabilities are known exactly. So its loss can be compared with the loss of a perfect model, the \
**entropy floor**: {floor:.4f} nats per token on the held-out documents. The models reach {min(losses):.4f} to \
{max(losses):.4f}, {100 * (min(losses) / floor - 1):.1f} to {100 * (max(losses) / floor - 1):.1f} % above it.

Losses are nats per predicted token on held-out documents. The floor is computed on the same tokens, so the excess is \
not blurred by the luck of the draw; on a small group it can still come out slightly negative."""


def _seeds(report: Report) -> str:
    names = [row.name for row in report.seeds[0].by_kind]
    floors = [f"{row.floor:.4f}" for row in report.seeds[0].by_kind]
    rows = [[f"`{seed.name}`", *(f"{row.loss:.4f}" for row in seed.by_kind)] for seed in report.seeds]
    return "## Three seeds against the floor\n\n" + _table(["", *names], [["floor", *floors], *rows])


def _learning(report: Report) -> str:
    classes = ("song word, again", "object, recalled", "place, recalled", "place, from the weights")
    rows = [
        [
            f"{row.step}",
            f"{row.loss:.3f}",
            *(f"{row.by_class[name].loss:.3f}" for name in classes),
            f"{row.induction.score:.2f}",
        ]
        for row in report.steps
    ]
    return (
        "## What is learned when\n\nSnapshots of the base run. All the classes shown have a floor of 0: a perfect "
        "reader is sure of them. The last column is the score of the best induction head (see below).\n\n"
        + _table(["step", "all", *classes, "induction"], rows)
    )


def _classes(report: Report) -> str:
    total = sum(row.tokens for row in report.by_class)
    excess = {row.name: row.excess * row.tokens / total for row in report.by_class}
    worst = max(excess, key=lambda name: excess[name])
    rows = [
        [row.name, f"{row.tokens:,}", f"{row.loss:.4f}", f"{row.floor:.4f}", f"{excess[row.name]:+.4f}"]
        for row in report.by_class
    ]
    return (
        "## Loss by token class\n\nWhat it takes to predict a token (`base`). *Recalled*: certain, because the word "
        "was said earlier in the document; *from the weights*: a closed-book fact, known from training alone; *song "
        "word, first time*: any word but those the verse has had. The last column adds up to the excess over all "
        f"tokens; *{worst}* makes {100 * excess[worst] / sum(excess.values()):.0f} % of it.\n\n"
        + _table(["class", "tokens", "loss", "floor", "part of the excess"], rows)
    )


def _positions(report: Report) -> str:
    rows = [
        [row.name, f"{row.tokens:,}", f"{row.loss:.4f}", f"{row.floor:.4f}", f"{row.excess:+.4f}"]
        for row in report.by_position
    ]
    return "## Loss by position\n\nPosition 1 is the word after `<bos>` (`base`).\n\n" + _table(
        ["positions", "tokens", "loss", "floor", "excess"], rows
    )


def _writing(report: Report) -> str:
    rows = [[kind, f"{count}", f"{100 * share:.0f} %"] for kind, (count, share) in report.grammatical.items()]
    good = [text for text in report.written if measurements.is_grammatical(text)]
    bad = [text for text in report.written if not measurements.is_grammatical(text) and text.startswith("one")]
    shown = [next(text for text in good if text.startswith(first)) for first in ("one", "fact", "where", "the")]
    return (
        f"## What it writes\n\n{len(report.written)} documents sampled at temperature 1 (`base`, seed 0), and how many "
        "of them the grammar could have produced to the last word:\n\n"
        + _table(["kind", "written", "grammatical"], rows)
        + "\n\nThe first of each kind:\n\n"
        + "\n".join(f"> {text}\n>" for text in shown).removesuffix("\n>")
        + "\n\nTales with a mistake:\n\n"
        + "\n".join(f"> {text}\n>" for text in bad[:3]).removesuffix("\n>")
    )


def _heads(report: Report) -> str:
    best = [
        [
            skill,
            f"{report.seeds[0].heads[skill].chance:.2f}",
            *(f"L{found.layer}H{found.head} {found.score:.2f}" for found in (s.heads[skill] for s in report.seeds)),
        ]
        for skill in SKILLS
    ]
    layers, heads = report.head_ablation.shape
    previous = max(seed.heads["previous token"].score for seed in report.seeds)
    every = [
        [
            f"L{layer}H{head}",
            *(f"{scores[layer, head]:.2f}" for scores in report.head_scores.values()),
            f"{report.head_ablation[layer, head]:+.3f}",
        ]
        for layer in range(layers)
        for head in range(heads)
    ]
    return (
        "## What the heads do\n\nA score is the mean attention weight from the position before a word must be "
        "recalled to the place where that word was last said (*induction*: in the repeats of a song; *previous "
        "token*: from every position to the one before). *Chance* is what a head scores that looks at all visible "
        "positions alike. Heads move with the seed: find them by score (`tiny_lm.find_heads`), never by index. The "
        f"best previous-token score of the three models is {previous:.2f}; 1 would be a textbook head.\n\n"
        + _table(["best head for", "chance", *(f"`{name}`" for name in SEEDS)], best)
        + f"\n\nEvery head of `{SCENE_MODEL}`, and how the loss changes when it alone is switched off:\n\n"
        + _table(["head", *report.head_scores, "loss without it"], every)
    )


def _variants(report: Report) -> str:
    rows = [
        [
            f"`{row.name}`",
            row.help,
            f"{row.num_params:,}",
            f"{row.loss_before:.3f}",
            f"{row.loss:.3f}",
            f"{row.floor:.3f}",
            f"{row.base_mix_loss:.3f}",
        ]
        for row in report.variants
    ]
    titles = ["variant", "what it is", "parameters", "before", "after", "floor", "base mix"]
    return (
        "## Variants\n\n*Before* and *after* training, on held-out texts of the variant's own kind; *base mix* is the "
        "loss afterwards on the base's texts: what was forgotten.\n\n" + _table(titles, rows)
    )


def _walks(report: Report) -> str:
    rows = [[way, *(f"{share:.2f}" for share in shares)] for way, shares in report.walk_accuracy.items()]
    return (
        "## Walks: reasoning in steps\n\nShare of 200 held-out walks whose end the `walk` model names (greedy), by "
        "number of moves; guessing gets 0.17. The same weights answer at once or write down every step.\n\n"
        + _table(["answer", *(str(moves) for moves in walks.MOVES)], rows)
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

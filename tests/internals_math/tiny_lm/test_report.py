import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from internals_math import tiny_lm
from internals_math.tiny_lm import measurements, report

TALE = "<bos> one day the old fox found a red key in the well . the fox took the key"
PAGE = Path(__file__).parents[3] / "docs" / "tiny_lm.md"


def test_groups_add_up_to_the_whole():
    model = tiny_lm.load("base")
    corpus = tiny_lm.held_out(200)
    whole = tiny_lm.evaluate(model, corpus)
    for rows in (
        measurements.loss_by_kind(model, 200)[:-1],
        measurements.loss_by_position(model, 200),
        measurements.loss_by_token_class(model, 200),
    ):
        tokens = sum(row.tokens for row in rows)
        assert tokens == int((corpus.lengths - 1).sum())
        assert sum(row.loss * row.tokens for row in rows) / tokens == pytest.approx(whole, abs=1e-5)
        assert sum(row.floor * row.tokens for row in rows) / tokens == pytest.approx(corpus.entropy_floor, abs=1e-6)


def test_what_is_certain_has_no_floor_and_the_model_knows_it():
    for row in measurements.loss_by_token_class(tiny_lm.load("base"), 400):
        if row.name not in ("free choice", "song word, first time"):
            assert row.floor == 0
            assert row.loss < 0.02


@pytest.mark.parametrize(
    ("text", "position", "is_certain", "expected"),
    [
        (TALE, 4, False, "free choice"),
        (TALE, 2, True, "certain by grammar"),
        (TALE, 18, True, "object, recalled"),
        (TALE, 15, True, "character, recalled"),
        ("<bos> the fox sang : owl cat", 2, False, "free choice"),
        ("<bos> the fox sang : owl cat", 5, False, "song word, first time"),
        ("<bos> the fox sang : owl cat . the dog sang : owl", 12, True, "song word, again"),
        ("<bos> where is the key of the hen ? near the barn .", 9, True, "place, from the weights"),
    ],
)
def test_a_token_is_classed_by_what_it_takes_to_predict_it(text, position, is_certain, expected):
    assert measurements._token_class(text.split(), position, is_certain=is_certain) == expected


def test_grammatical_texts_are_told_from_others():
    assert measurements.is_grammatical(tiny_lm.story(3))
    assert not measurements.is_grammatical("one day the old fox found a red key")
    assert not measurements.is_grammatical("the fox sang : owl owl owl owl owl .")
    shares = measurements.grammatical_shares([tiny_lm.story(3), "one day .", "fact : the key", ""])
    assert shares == {"tale": (2, 0.5), "open book": (1, 0.0)}


def test_most_of_what_the_model_writes_is_grammatical():
    texts = measurements.write_documents(tiny_lm.load("base"), 60)
    _, share = measurements.grammatical_shares(texts)["tale"]
    assert share > 0.75


def test_the_report_of_the_committed_models_becomes_a_page():
    stages = []
    measured = report.measure(stages.append, variants=("draft",), documents=100)
    assert stages == ["three seeds", "snapshots", "positions, token classes, heads", "draft"]
    page = report.to_markdown(measured)
    for seed in measured.seeds:
        assert f"{seed.by_kind[-1].loss:.4f}" in page
    assert measured.steps[0].loss > math.log(112)
    assert measured.steps[-1].loss == pytest.approx(measured.seeds[0].by_kind[-1].loss)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables(page))
    assert len(tables(page)) == 9


def tables(page):
    return re.findall(r"(?:^\|.*\|\n)+", page + "\n", flags=re.MULTILINE)


def test_the_committed_page_shows_the_losses_of_the_committed_checkpoints():
    page = PAGE.read_text()
    for name in report.SEEDS:
        facts = tiny_lm.read_facts(tiny_lm.committed_path(name))
        assert re.search(rf"^\| `{name}` \|.* {facts['loss']:.4f} \|$", page, flags=re.MULTILINE)
        assert f"{facts['entropy_floor']:.4f}" in page


@pytest.mark.slow
def test_the_committed_page_is_what_the_report_says_today():
    """Numbers within 5 % and without the samples, because other processors round otherwise; the words exactly."""
    number = re.compile(r"(?<![A-Za-z`])[+-]?\d[\d,]*\.?\d*")
    old, new = (
        "\n".join(line for line in page.splitlines() if not line.startswith(">"))
        for page in (PAGE.read_text(), report.to_markdown(report.measure()))
    )
    assert number.sub("#", old) == number.sub("#", new)
    for before, after in zip(number.findall(old), number.findall(new), strict=True):
        assert float(after.replace(",", "")) == pytest.approx(float(before.replace(",", "")), rel=0.05, abs=0.01)


def test_importing_the_model_loads_no_checkpoint_no_corpus_and_nothing_heavy():
    code = """
import sys
import torch
before = set(sys.modules)
from internals_math.tiny_lm import checkpoints, datasets
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
assert not loaded & {"transformers", "manim", "click", "rich"}, loaded
assert checkpoints._load.cache_info().currsize == 0
assert datasets.held_out.cache_info().currsize == datasets.training_corpus.cache_info().currsize == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])

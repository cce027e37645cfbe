"""The mutants are what they should be, and the tool tells a test that notices from one that does not."""

import json
from dataclasses import asdict

import pytest

from tests.mutation import Result, Target, core_target, mutants, page, prove, topic_of

TOY = '''
"""Adds 1 + 1."""

def check_size(n):
    return n + 1

class Config:
    def size(self):
        return 1 + 1

def f(x: "3 + 4", mask=None):
    """Return 5 + 6."""
    if x < 0:
        raise ValueError(f"x must be at least 0, got {x + 1}")
    y: "7 + 8" = x * 2
    return y
'''


def changes(body: str) -> set[str]:
    return {mutant.after for mutant in mutants(f"def f(x, mask, scale):\n    return {body}\n")}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x + mask", {"x - mask"}),
        ("-x", {"x"}),
        ("x < mask", {"x <= mask"}),
        ("x.sum(dim=0)", {"x.mean(dim=0)", "1"}),
        ("x.amax(dim=-1)", {"x.amin(dim=-1)", "1", "2"}),
        ("softmax(x, mask)", {"softmax(x)"}),
        ("attend(x, is_causal=x)", {"attend(x)"}),
        ("x * scale", {"x / scale", "x"}),
        ("x.masked_fill(x, x)", {"x"}),
        ("f'{x + 1}'", set()),
    ],
)
def test_an_expression_has_its_wrong_versions(body, expected):
    assert changes(body) == expected


def test_only_formulas_are_broken_and_nothing_else_moves():
    found = mutants(TOY)
    assert [(m.line, m.before, m.after) for m in found] == [(15, "x * 2", "x / 2"), (15, "2", "3")]
    assert found[0].source == TOY.replace("= x * 2", "= (x / 2)")


def test_a_mutant_keeps_the_order_of_operations():
    (mutant,) = [m for m in mutants("def f(a, b, c):\n    return a * b * c\n") if m.before == "a * b"]
    assert mutant.source == "def f(a, b, c):\n    return (a / b) * c\n"


@pytest.mark.parametrize(
    ("body", "killed", "timeouts"),
    [
        ("assert toy_formula.double(3) == 6", 2, 0),
        ("assert toy_formula.double(3) > 0", 0, 0),
        ("while toy_formula.double(3) != 6: pass", 2, 2),
    ],
)
def test_mutants_live_or_die_by_the_tests(tmp_path, monkeypatch, body, killed, timeouts):
    formula, test = tmp_path / "toy_formula.py", tmp_path / "test_toy_formula.py"
    formula.write_text("def double(x):\n    return x * 2\n")
    test.write_text(f"import toy_formula\ndef test_double():\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tests.mutation.GRACE_SECONDS", 1)
    result = prove(Target("toy_formula", formula, (str(test),)), most=25, seed=0)
    assert (result.mutants, result.killed, result.timeouts) == (2, killed, timeouts)
    assert len(result.survivors) == 2 - killed
    assert formula.read_text() == "def double(x):\n    return x * 2\n"


@pytest.mark.parametrize(("thorough", "killed"), [(False, 0), (True, 1)])
def test_what_survives_the_quick_tests_meets_the_slow_ones_if_asked(tmp_path, monkeypatch, thorough, killed):
    formula, test = tmp_path / "slow_formula.py", tmp_path / "test_slow_formula.py"
    formula.write_text("def less(x, y):\n    return x - y\n")
    test.write_text(
        "import time, slow_formula\n"
        "def test_zero():\n    assert slow_formula.less(3, 0) == 3\n"
        "def test_all():\n    start = time.process_time()\n    while time.process_time() - start < 0.3: pass\n"
        "    assert slow_formula.less(3, 2) == 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tests.mutation.SLOW_SECONDS", 0.2)
    result = prove(Target("slow_formula", formula, (str(test),)), most=25, seed=0, thorough=thorough)
    assert (result.mutants, result.killed, result.left_out) == (1, killed, 1)


def test_tests_that_fail_anyway_prove_nothing(tmp_path):
    formula, test = tmp_path / "toy_formula.py", tmp_path / "test_toy_formula.py"
    formula.write_text("def double(x):\n    return x * 2\n")
    test.write_text("def test_nothing():\n    assert False\n")
    with pytest.raises(ValueError, match="the tests must pass before they can notice a mutant; they failed"):
        prove(Target("toy_formula", formula, (str(test),)), most=25, seed=0)


def test_rows_of_the_tables_count_as_tests(tmp_path):
    formula, test = tmp_path / "toy_formula.py", tmp_path / "test_toy_formula.py"
    formula.write_text("def double(x):\n    return x * 2\n")
    test.write_text("def test_nothing():\n    pass\n")
    with pytest.raises(ValueError, match="they failed"):
        prove(Target("toy_formula", formula, (str(test),), lambda: False), most=25, seed=0)


def test_an_unknown_module_is_refused_by_name():
    with pytest.raises(ValueError, match="no internals_math/atention.py for module 'atention'"):
        core_target("atention")


def test_parts_of_a_topic_are_tested_with_the_topic():
    assert [topic_of(name) for name in ("rope", "lora_experiment", "normal_float")] == ["rope", "lora", "quantization"]


def kept(folder, module, killed, *, seed=0, thorough=False):
    survivors = [f"{module}.py:{line}  1 → 2" for line in range(10 - killed)]
    result = Result(module, 10, killed, timeouts=1, left_out=2, thorough=thorough, survivors=survivors)
    path = folder / f"{module}.json"
    path.write_text(json.dumps({"seed": seed, "results": [asdict(result)]}))
    return path


def test_a_page_joins_the_results_of_several_runs(tmp_path):
    text = page([kept(tmp_path, "rope", 9, thorough=True), kept(tmp_path, "lora", 10)])
    rows = [line for line in text.splitlines() if line.startswith(("| lora", "| rope", "| **all**"))]
    assert rows == [
        "| lora | 10 | 10 | 100% | 2 | no |",
        "| rope | 10 | 9 | 90% | 2 | yes |",
        "| **all** | 20 | 19 | 95% | | |",
    ]
    assert "- `rope.py:0  1 → 2`" in text


def test_results_of_other_draws_do_not_share_a_page(tmp_path):
    with pytest.raises(ValueError, match="must be drawn with one seed, got .*'lora.json': 1"):
        page([kept(tmp_path, "rope", 9), kept(tmp_path, "lora", 10, seed=1)])


def test_a_page_says_which_file_holds_no_results(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="other.json holds no results of this tool"):
        page([tmp_path / "other.json"])

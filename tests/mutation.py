"""Break the formulas of the core, one at a time, and see whether its tests notice.

    python -m tests.mutation [MODULE…] [--most N] [--seed 0] [--thorough] [--json]
    python -m tests.mutation --page RESULT.json…

A mutant is one changed expression of a function's body. It is tested in a fork of this process, which has imported
torch and pytest but nothing of the core, so that every importer sees the mutant. Nothing on disk is changed.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOW_SECONDS = 3.0  # tests that take longer than this (their fixtures included) are left out
PRELOADED = (
    "hypothesis.strategies",
    "beartype",
    "jaxtyping",
    "scipy.stats",
    "transformers.models.llama.modeling_llama",
)
GRACE_SECONDS = 10  # beyond three times the time of the untouched module, before a mutant counts as run away

# Modules that are parts of a topic are tested in the topic's file, and so is each `<topic>_experiment`.
TESTED_IN = {
    "attention_patterns": "attention",
    "chinchilla_runs": "chinchilla",
    "flash_attention_io": "flash_attention",
    "float_formats": "mixed_precision",
    "next_token": "gpt_pretraining",
    "normal_float": "quantization",
    "paged_blocks": "paged_attention",
    "paged_serving": "paged_attention",
    "pipeline_schedule": "tensor_pipeline_parallelism",
    "pruning_scores": "structured_pruning",
    "retrieval": "rag",
    "rolling_kv_cache": "sliding_window_attention",
    "scaling_fit": "chinchilla",
    "scaling_law": "chinchilla",
    "sliding_window_band": "sliding_window_attention",
    "sliding_window_reach": "sliding_window_attention",
    "tensor_parallel": "tensor_pipeline_parallelism",
    "weight_storage": "model_compression",
    "zero_trainer": "zero",
}

SWAPPED_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
SWAPPED_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
}  # fmt: skip
SWAPPED_NAMES = {
    name: other
    for pair in (("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum"), ("sum", "mean"),
                 ("triu", "tril"), ("floor", "ceil"), ("sin", "cos"))
    for name, other in (pair, pair[::-1])
}  # fmt: skip
DROPPED_CALLS = {"masked_fill", "clamp"}  # x.masked_fill(…) becomes x
DROPPED_ARGUMENTS = ("mask", "causal", "scal")  # parts of an argument's name
SCALES = ("scale", "factor", "sqrt")


@dataclass(frozen=True)
class Mutant:
    """One changed expression; `source` is the whole module with it."""

    line: int
    before: str
    after: str
    source: str = field(repr=False)


@dataclass(frozen=True)
class Target:
    """A module to break, the tests that should notice, and further checks that return whether all is well."""

    name: str  # as imported
    file: Path
    tests: tuple[str, ...]
    checks: Callable[[], bool] = lambda: True


@dataclass
class Result:
    """What the tests of one module noticed."""

    module: str
    mutants: int = 0
    killed: int = 0
    timeouts: int = 0  # counted as killed
    left_out: int = 0  # tests too slow to run for every mutant
    thorough: bool = False  # whether survivors met these too, and traces of their own
    survivors: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return the share that was noticed."""
        return self.killed / self.mutants if self.mutants else 1.0


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of the formulas in the bodies of functions, in the order of the source."""
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = b"".join(lines)
    found = []
    for node in _formulas(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        before = ast.unparse(node)
        for changed in _changes(node):
            after = ast.unparse(changed)
            new = whole[:begin] + f"({after})".encode() + whole[end:]
            found.append(Mutant(node.lineno, before, after, new.decode()))
    return found


def _formulas(node: ast.AST, inside: bool = False) -> Iterator[ast.expr]:
    """Yield the expressions that compute, without messages, checks, annotations, Config and Trace."""
    match node:
        case ast.ClassDef(name=name) if name.endswith(("Config", "Trace")):
            return
        case ast.FunctionDef(name=name):
            if not name.lstrip("_").startswith("check"):
                for statement in node.body:
                    yield from _formulas(statement, True)
            return
        case ast.Raise() | ast.Assert() | ast.JoinedStr():
            return
        case ast.If(body=[*_, ast.Raise()]):  # the test of a refusal
            for statement in node.orelse:
                yield from _formulas(statement, inside)
            return
        case ast.AnnAssign(value=value):
            if value is not None:
                yield from _formulas(value, inside)
            return
        case ast.Call(func=ast.Name(id="ValueError" | "print" | "track")):
            return
    if inside and isinstance(node, ast.expr):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from _formulas(child, inside)


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the wrong versions of one expression."""
    match node:
        case ast.BinOp(left, op, right) if type(op) in SWAPPED_OPERATORS and not isinstance(left, ast.JoinedStr):
            yield ast.BinOp(left, SWAPPED_OPERATORS[type(op)](), right)
            if isinstance(op, ast.Mult | ast.Div) and any(word in ast.unparse(right) for word in SCALES):
                yield left
        case ast.UnaryOp(ast.USub() | ast.Invert() | ast.Not(), operand):
            yield operand
        case ast.Compare(left, [op], [right]) if type(op) in SWAPPED_COMPARISONS:
            yield ast.Compare(left, [SWAPPED_COMPARISONS[type(op)]()], [right])
        case ast.Constant(bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
        case ast.Call(function, arguments, keywords):
            yield from _changed_calls(function, arguments, keywords)


def _changed_calls(function: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[ast.expr]:
    match function:
        case ast.Attribute(value, name) if name in SWAPPED_NAMES:
            yield ast.Call(ast.Attribute(value, SWAPPED_NAMES[name]), arguments, keywords)
        case ast.Attribute(value, name) if name in DROPPED_CALLS:
            yield value
        case ast.Name("min" | "max" as name):
            yield ast.Call(ast.Name(SWAPPED_NAMES[name]), arguments, keywords)
    for index, keyword in enumerate(keywords):
        if keyword.arg and any(word in keyword.arg for word in DROPPED_ARGUMENTS):
            yield ast.Call(function, arguments, keywords[:index] + keywords[index + 1 :])
    match arguments:
        case [*others, ast.Name(id=name)] if others and any(word in name for word in DROPPED_ARGUMENTS):
            yield ast.Call(function, others, keywords)


class _Timing:
    """A plugin of pytest: leaves out what is known to be slow, runs the quick tests first, and times them."""

    def __init__(self, seconds: dict[str, float]):
        self.known = seconds
        self.seconds: dict[str, float] = {}
        self.fixtures: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        quick = [item for item in items if self.known.get(item.nodeid, 0.0) <= SLOW_SECONDS]
        items[:] = sorted(quick, key=lambda item: self.known.get(item.nodeid, 0.0))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        start = time.process_time()
        try:
            return (yield)
        finally:
            self.fixtures[fixturedef.argname] = time.process_time() - start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        start = time.process_time()
        try:
            return (yield)
        finally:
            shared = sum(self.fixtures.get(name, 0.0) for name in item.fixturenames)
            self.seconds[item.nodeid] = time.process_time() - start + shared


class _Anew:
    """A plugin of pytest: the traces that come with the project are not found, so each one is computed."""

    def __init__(self, empty: Path):
        self.empty = empty

    def pytest_collection_finish(self) -> None:  # what checks shapes as modules are imported is in place
        importlib.import_module("internals_math.trace_store").COMMITTED = self.empty


@dataclass(frozen=True)
class Run:
    """How one run of the tests ended; seconds are those of the processor, which other work does not stretch."""

    state: str  # "passed", "failed" or "timeout"
    cpu_seconds: float
    seconds: dict[str, float]  # by test, with its fixtures


def run(target: Target, source: str | None, seconds: dict[str, float], timeout: int, *, anew: bool = False) -> Run:
    """Run the tests in a fork, on other source if given, for at most `timeout` seconds of the processor.

    Args:
        target: what to test.
        source: of the module; None = as it is.
        seconds: what tests are known to take; the slow ones are left out.
        timeout: seconds of the processor.
        anew: compute each trace, also those that come with the project.
    """
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        child = os.fork()
        if not child:
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (timeout, resource.RLIM_INFINITY))
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30 * timeout)  # one that waits forever uses no processor
                os.environ["LLM_INTERNALS_CACHE"] = folder  # wrong traces must not be found later
                code = _run_here(target, source, _Timing(seconds), times, Path(folder) if anew else None)
            finally:
                os._exit(code)
        _, status, usage = os.wait4(child, 0)
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if ended_by in (signal.SIGALRM, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):  # not the mutant's doing
            raise ValueError(f"{target.name}: a run was ended or held up from outside, which proves nothing")
        passed = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        return Run(
            "timeout" if ended_by == signal.SIGXCPU else "passed" if passed else "failed",
            usage.ru_utime + usage.ru_stime,
            json.loads(times.read_text()) if times.exists() else {},
        )


def _run_here(target: Target, source: str | None, timing: _Timing, times: Path, traces: Path | None) -> int:
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    if source is not None:
        _replace(target.file, source.encode())
    sys.dont_write_bytecode = True
    anew = [] if traces is None else [_Anew(traces / "none")]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *target.tests], plugins=[timing, *anew])
    times.write_text(json.dumps(timing.seconds))
    return 0 if code == pytest.ExitCode.OK and target.checks() else 1


def _replace(file: Path, source: bytes) -> None:
    """Let imports read this source for the file, under its own name and with the hooks of pytest in place."""
    read = importlib.machinery.SourceFileLoader.get_data

    def get_data(loader, path):
        if Path(path) == file:
            return source
        if path.endswith(".pyc") and Path(path).name.startswith(f"{file.stem}."):
            raise OSError("compiled from the true source")
        return read(loader, path)

    importlib.machinery.SourceFileLoader.get_data = get_data


def topic_of(module: str) -> str:
    """Return the topic, or shared part, whose tests are also those of this module."""
    return TESTED_IN.get(module, module.removesuffix("_experiment"))


def core_target(module: str) -> Target:
    """Return a module of the core with its own tests and its rows of the oracles and published numbers."""
    topic = topic_of(module)
    file, test = ROOT / "internals_math" / f"{module}.py", ROOT / "tests" / "internals_math" / f"test_{topic}.py"
    for path in (file, test):
        if not path.is_file():
            raise ValueError(f"no {path.relative_to(ROOT)} for module {module!r}")
    tables = [kind for kind in ("oracles", "published") if (ROOT / "tests" / kind / f"{topic}.py").is_file()]

    def rows_hold() -> bool:
        return all(row.ok for kind in tables for row in importlib.import_module(f"tests.{kind}.{topic}").ROWS)

    return Target(f"internals_math.{module}", file, (str(test),), rows_hold)


def prove(target: Target, most: int, seed: int, *, thorough: bool = False) -> Result:
    """Test at most `most` mutants of a module.

    Args:
        target: what to test.
        most: mutants, drawn if there are more.
        seed: of the draw.
        thorough: test those that survive again, with all tests and with traces that they have computed.

    Raises:
        ValueError: the tests fail on the module as it is.
    """
    source = target.file.read_text()
    untouched = cost = run(target, None, {}, timeout=600)
    if untouched.state == "passed":  # once more without slow tests and by the way of a mutant
        cost = run(target, source, untouched.seconds, timeout=300)
    if cost.state != "passed":
        raise ValueError(f"{target.name}: the tests must pass before they can notice a mutant; they {cost.state}")
    timeout = GRACE_SECONDS + int(3 * cost.cpu_seconds)
    slow = sum(seconds > SLOW_SECONDS for seconds in untouched.seconds.values())
    result = Result(target.name.rsplit(".", 1)[-1], left_out=slow, thorough=thorough)
    every = mutants(source)
    chosen = sorted(random.Random(seed).sample(range(len(every)), min(most, len(every))))
    whole: Run | None = None
    for mutant in (every[index] for index in chosen):
        state = run(target, mutant.source, untouched.seconds, timeout).state
        if state == "passed" and thorough:
            whole = whole or run(target, source, {}, timeout=1800, anew=True)
            if whole.state != "passed":
                raise ValueError(f"{target.name}: the tests must pass on traces that were computed anew")
            limit = GRACE_SECONDS + int(3 * whole.cpu_seconds)
            state = run(target, mutant.source, {}, limit, anew=True).state
        result.mutants += 1
        result.killed += state != "passed"
        result.timeouts += state == "timeout"
        line = f"{target.file.name}:{mutant.line}  {mutant.before} → {mutant.after}"
        print(f"{'SURVIVED' if state == 'passed' else state}  {line}", file=sys.stderr)
        if state == "passed":
            result.survivors.append(line)
    return result


def markdown(results: list[Result], seed: int) -> str:
    """Return the page of the documentation."""
    results = sorted(results, key=lambda r: r.module)
    rows = [
        f"| {r.module} | {r.mutants} | {r.killed} | {r.rate:.0%} | {r.left_out} | {'yes' if r.thorough else 'no'} |"
        for r in results
    ]
    whole = Result("all", sum(r.mutants for r in results), sum(r.killed for r in results))
    survivors = [f"- `{line}`" for r in results for line in r.survivors]
    return "\n".join([
        "# Do the tests notice a wrong formula?",
        "",
        "Each mutant is a module of the core with one wrong expression: a sign, an axis, a scale, an index off by one, "
        f"a missing mask. Mutants are drawn with seed {seed}; killed means that a test failed (or, for a mutant that "
        f"ran away, the time ran out). Tests that take over {SLOW_SECONDS:g} s are left out of the runs, and committed "
        "traces are read as they are. Where the last column says yes, what survived was tested again with all tests, "
        "on traces that it had computed itself; elsewhere the full suite notices at least as much.",
        "",
        "| module | mutants | killed | rate | tests left out | survivors tested again |",
        "|---|--:|--:|--:|--:|---|",
        *rows,
        f"| **all** | {whole.mutants} | {whole.killed} | {whole.rate:.0%} | | |",
        "",
        "What survived, some of it equal to the original in effect:",
        "",
        *(survivors or ["nothing"]),
        "",
        "To renew a row: `python -m tests.mutation MODULE [--thorough] --json > FOLDER/MODULE.json`, then "
        "`python -m tests.mutation --page FOLDER/*.json > docs/mutation.md`.",
    ])  # fmt: skip


def page(files: list[Path]) -> str:
    """Return the page of results that were kept as JSON.

    Raises:
        ValueError: a file is no result, or its mutants were drawn with another seed than the first one's.
    """
    results, seeds = [], {}
    for file in files:
        try:
            kept = json.loads(file.read_text())
            seeds[file.name] = kept["seed"]
            results += [Result(**result) for result in kept["results"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file} holds no results of this tool: {error!r}") from error
    if len(set(seeds.values())) > 1:
        raise ValueError(f"results of one page must be drawn with one seed, got {seeds}")
    return markdown(results, next(iter(seeds.values())))


def main() -> None:
    """Parse, prove, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Break the core, watch its tests.")
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help="of internals_math (all with tests if none), or with --page a file"
    )
    parser.add_argument("--most", type=int, default=25, help="mutants per module (default 25)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among more (default 0)")
    parser.add_argument("--thorough", action="store_true", help="test survivors with slow tests and fresh traces too")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print what --page reads")
    form.add_argument("--page", action="store_true", help="print the Markdown page of results kept as JSON")
    chosen = parser.parse_args()
    if chosen.page:
        if not chosen.modules:
            parser.error("--page needs the JSON files of some results")
        try:
            print(page([Path(file) for file in chosen.modules]))
        except ValueError as error:
            parser.error(str(error))
        return
    if chosen.most < 1:
        parser.error(f"--most must be at least 1, got {chosen.most}")
    try:
        targets = [core_target(module) for module in chosen.modules or _tested_modules()]
    except ValueError as error:
        parser.error(str(error))
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    results = []
    for target in targets:
        start = time.perf_counter()
        try:
            result = prove(target, chosen.most, chosen.seed, thorough=chosen.thorough)
        except ValueError as error:
            sys.exit(str(error))
        results.append(result)
        print(
            f"{result.module}: {result.killed} of {result.mutants} killed ({result.rate:.0%}), {result.timeouts} by "
            f"timeout, {result.left_out} slow tests left out, {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
    if chosen.json:
        kept = {"seed": chosen.seed, "results": [asdict(result) for result in results]}
        print(json.dumps(kept, indent=2))
    else:
        for result in results:
            print(f"{result.module:32} {result.killed:3} / {result.mutants:<3} {result.rate:4.0%}")
            print(*(f"    {line}" for line in result.survivors), sep="\n", end="\n" if result.survivors else "")


def _tested_modules() -> list[str]:
    names = sorted(path.stem for path in (ROOT / "internals_math").glob("*.py"))
    tests = ROOT / "tests" / "internals_math"
    return [name for name in names if (tests / f"test_{topic_of(name)}.py").is_file()]


if __name__ == "__main__":
    main()

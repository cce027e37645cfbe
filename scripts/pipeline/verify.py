"""Our numbers beside those of others: what papers print, and what independent implementations compute.

The tables are those of the tests (`tests/published`, `tests/oracles`), so that nothing is shown that is not tested.
"""

import importlib
import math
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from internals_math.sources import ROOT
from scenes import series
from scripts.pipeline.errors import UserError

PUBLISHED, ORACLE = "published", "oracle"
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # what a source calls a package, where its distribution has another name


@dataclass(frozen=True)
class Comparison:
    """One row: of an oracle, `ours` is the largest difference of the two results, and the reference is 0."""

    topic: str
    kind: str
    name: str
    ours: float | None  # None: it could not be computed
    reference: float
    tolerance: float  # absolute
    source: str
    ok: bool
    error: str = ""


def compare(slugs: Iterable[str]) -> Iterator[Comparison]:
    """Yield every comparison of some topics, computed now.

    Raises:
        UserError: the tables are not there, or a package that they compare with is missing.
    """
    for slug in slugs:
        for kind in (PUBLISHED, ORACLE):
            for row in rows(kind, slug):
                yield _computed(slug, kind, row)


def rows(kind: str, slug: str) -> tuple[Any, ...]:
    """Return the rows of a table as the tests have them; () if the topic has none.

    Raises:
        UserError: the tables are not there, or a package that they compare with is missing.
    """
    folder = {PUBLISHED: "published", ORACLE: "oracles"}[kind]
    if slug not in names(folder):
        return ()
    try:
        return importlib.import_module(f"tests.{folder}.{slug}").ROWS
    except ModuleNotFoundError as error:
        raise UserError(
            f"the comparisons need {error.name}, a package of the tests; `scripts/test` sets up all they need "
            "(or: pip install -e '.[dev]' -c constraints.txt)"
        ) from error


def shared_tables() -> tuple[str, ...]:
    """Return the tables of what several topics share, such as model_shapes."""
    topics = {topic.slug for topic in series.TOPICS}
    return tuple(sorted({*names("published"), *names("oracles")} - topics))


def names(folder: str) -> set[str]:
    """Return the names of the tables in a folder of the tests.

    Raises:
        UserError: this is no clone of the project.
    """
    package = _package(f"tests.{folder}")
    return {info.name for info in pkgutil.iter_modules(package.__path__)}


def _package(name: str) -> ModuleType:
    if not (ROOT / "tests" / "published").is_dir():
        raise UserError("the published numbers and the oracles come with a clone of the project, not with the package")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name)


def _computed(slug: str, kind: str, row: Any) -> Comparison:
    reference = row.value if kind == PUBLISHED else 0.0
    tolerance = row.relative_tolerance * abs(row.value) if kind == PUBLISHED else row.tolerance
    ours, error = None, ""
    try:
        ours = float(row.ours() if kind == PUBLISHED else row.difference())
    except Exception:  # one broken row must not hide the others
        error = traceback.format_exc().strip()
    ok = ours is not None and abs(ours - reference) <= tolerance  # False for NaN
    source = row.source if kind == PUBLISHED else with_version(row.source)
    shown = ours if ours is not None and math.isfinite(ours) else None
    return Comparison(slug, kind, row.name, shown, reference, tolerance, source, ok, error)


def with_version(source: str) -> str:
    """Return a source that begins with the name of a package ("torch: SDPA") with the version that is installed."""
    package, mark, rest = source.partition(":")
    try:
        return f"{package} {version(DISTRIBUTIONS.get(package, package))}{mark}{rest}" if mark else source
    except PackageNotFoundError:
        return source


# -- as text ---------------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Write a number with the digits it has, large whole ones in groups of three."""
    if value is None:
        return "none"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1e5 <= abs(value) < 1e15 else f"{value:.6g}"


def allowed(comparison: Comparison) -> str:
    """Write what the two numbers may differ by."""
    return "exact" if comparison.tolerance == 0 else f"± {comparison.tolerance:.2g}"


def to_table(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """Yield one line for each comparison, with a heading for each topic and kind."""
    heading = None
    for one in comparisons:
        if (one.topic, one.kind) != heading:
            heading = (one.topic, one.kind)
            columns = ("ours", "published") if one.kind == PUBLISHED else ("difference", "allowed")
            yield f"{one.topic}: {one.kind}\n   {'':52} {columns[0]:>20} {columns[1]:>20}"
        mark = "ok" if one.ok else "NO"
        if one.kind == PUBLISHED:
            numbers = f"{number(one.ours):>20} {number(one.reference):>20} {allowed(one):>10}"
        else:
            difference = "none" if one.ours is None else f"{one.ours:.1g}"
            numbers = f"{difference:>20} {number(one.tolerance):>20} {'':>10}"
        yield f"{mark} {one.name:52} {numbers}  {one.source}"


def to_markdown(comparisons: Iterable[Comparison]) -> str:
    """Return the page `docs/verification.md`."""
    lines = [
        "# Verification",
        "",
        "Every number that a paper prints and ours beside it, and the largest difference between our results and those",
        "of independent implementations on the same input. The tests run the same tables. `llm-internals verify`",
        "computes them on your machine; `llm-internals verify --markdown > docs/verification.md` renews this page.",
    ]
    heading: tuple[str, ...] = ("", "")
    for one in comparisons:
        if one.topic != heading[0]:
            lines += ["", f"## {_title(one.topic)}"]
        if (one.topic, one.kind) != heading:
            published = one.kind == PUBLISHED
            columns = "published | ours | printed | allowed" if published else "oracle | difference | allowed"
            lines += ["", f"| {columns} | source |", "|---|" + "---:|" * (3 if published else 2) + "---|"]
        heading = (one.topic, one.kind)
        ours = number(one.ours)
        cells = [one.name, ours, number(one.reference), allowed(one), one.source]
        if one.kind == ORACLE:
            ours = "0" if one.ours == 0 else f"{one.ours:.0e}" if one.ours is not None else "none"
            cells = [one.name, ours, number(one.tolerance), one.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    titles = {topic.slug: topic.title for topic in series.TOPICS}
    return titles.get(name, name.replace("_", " ").capitalize())

"""What several commands share: their options, one-line errors, rendering with a progress bar."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from scenes import series
from scripts.pipeline.errors import UserError, WrongUse
from scripts.pipeline.quality import QUALITIES

_Command = TypeVar("_Command", bound=Callable[..., Any])
THEME_NAMES = ("dark", "light")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one clear line."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def check_topics(_: click.Context, __: click.Parameter, slugs: Any) -> Any:
    """Check topics before anything heavy is imported."""
    try:
        if isinstance(slugs, tuple):
            return tuple(dict.fromkeys(series.find(slug).slug for slug in slugs))
        return series.find(slugs).slug
    except ValueError as error:
        fail(str(error))


def list_of(allowed: tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    def parse(_: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            fail(f"{parameter.opts[0]} takes {', '.join(allowed)} separated by commas, got {text!r}")
        return names

    return parse


def quality_option(default: str) -> Callable[[_Command], _Command]:
    return click.option(
        "-q", "--quality", type=click.Choice(list(QUALITIES)), default=default, show_default=True,
        help="l 480p15, m 720p30, h 1080p60, p 1440p60, k 2160p60",
    )  # fmt: skip


settings_option = click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="change a parameter; repeatable"
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("media"),
    show_default=True,
    help="output folder",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON document")
jobs_option = click.option("--jobs", type=click.IntRange(min=1), help="processes  [default: one for each core]")
fresh_option = click.option("--fresh", is_flag=True, help="render again what is cached")
theme_option = click.option(
    "--theme", "themes", default="dark", show_default=True, callback=list_of(THEME_NAMES), help="dark, light, or both"
)


def refuse_unfinished(slugs: tuple[str, ...]) -> None:
    for slug in slugs:
        topic = series.find(slug)
        if topic.status != series.FINISHED:
            ready = ", ".join(t.slug for t in series.finished())
            fail(f"{slug} has no scene yet ({topic.status}); finished: {ready}")


def run(slugs: tuple[str, ...], request: Any) -> list[Any]:
    """Render with a progress bar for each topic; Ctrl-C says what is done."""
    from scripts.pipeline.progress import TopicProgress
    from scripts.pipeline.render import Interrupted
    from scripts.pipeline.render import render as render_topics

    try:
        with user_errors(), TopicProgress() as report:
            return render_topics(slugs, request, report)
    except Interrupted as stop:
        done = ", ".join(result.slug for result in stop.finished) or "nothing"
        click.echo(f"Interrupted. Finished: {done}. Units that were rendered are kept and will be reused.", err=True)
        sys.exit(130)


def print_files(results: list[Any]) -> None:
    for result in results:
        for path in result.files:
            click.echo(str(path))


def end_with_failures(results: list[Any]) -> None:
    """Exit with 1 if a topic failed; the last lines name it and the command that repeats just that."""
    failed = [result.slug for result in results if not result.ok]
    if not failed:
        return
    others = " The others are done." if len(failed) < len(results) else ""
    click.echo(f"Failed: {', '.join(failed)}.{others} To repeat just that:", err=True)
    click.echo(f"  {shlex.join(['llm-internals', *_repeat(failed)])}", err=True)
    sys.exit(1)


def _repeat(slugs: list[str]) -> list[str]:
    """Return the command under way with all its options, for these topics alone."""
    context = click.get_current_context()
    words = [str(context.info_name), *slugs]
    for option in context.command.params:
        value: Any = context.params.get(str(option.name))
        given = context.get_parameter_source(str(option.name)) == click.core.ParameterSource.COMMANDLINE
        if not given or not isinstance(option, click.Option) or option.name == "everything":
            continue
        if option.is_flag:
            words.append(option.opts[-1])
        elif option.multiple:
            words += [word for part in value for word in (option.opts[-1], part)]
        else:
            words += [option.opts[-1], ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def result_json(result: Any) -> dict[str, Any]:
    return {
        "topic": result.slug,
        "ok": result.ok,
        "files": [str(path) for path in result.files],
        "seconds": round(result.seconds, 3),
        "units_rendered": result.rendered,
        "units_reused": result.reused,
        "notes": result.notes,
        "error": result.error,
    }


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user did wrong, or what is missing, into one line."""
    try:
        yield
    except WrongUse as error:
        fail(str(error))
    except UserError as error:
        fail(str(error), 1)

"""The `llm-internals` command: parses, calls the pipeline, prints.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong use.
Heavy modules are imported inside the commands that need them, so that `list`, `--help` and errors answer at once.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from scenes import series
from scripts.pipeline.errors import UserError, WrongUse
from scripts.pipeline.manifest import FORMATS
from scripts.pipeline.quality import QUALITIES

_Command = TypeVar("_Command", bound=Callable[..., Any])
THEME_NAMES = ("dark", "light")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with one clear line."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


def _topic(_: click.Context, __: click.Parameter, slugs: Any) -> Any:
    """Check topics before anything heavy is imported."""
    try:
        if isinstance(slugs, tuple):
            return tuple(dict.fromkeys(series.find(slug).slug for slug in slugs))
        return series.find(slugs).slug
    except ValueError as error:
        fail(str(error))


def _list_of(allowed: tuple[str, ...]) -> Callable[..., tuple[str, ...]]:
    def parse(_: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [name for name in names if name not in allowed]
        if unknown or not names:
            fail(f"{parameter.opts[0]} takes {', '.join(allowed)} separated by commas, got {text!r}")
        return names

    return parse


def _quality(default: str) -> Callable[[_Command], _Command]:
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
    "--theme", "themes", default="dark", show_default=True, callback=_list_of(THEME_NAMES), help="dark, light, or both"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llm-internals")
def main() -> None:
    """Animated deep-dives into the techniques behind modern LLMs.

    \b
    llm-internals list
    llm-internals render kv_cache -q l
    llm-internals trace rope --json
    """


@main.command("list")
@json_option
def list_topics(as_json: bool) -> None:
    """List the thirty topics of the series.

    \b
    llm-internals list
    llm-internals list --json | jq '.[] | select(.status == "finished").slug'
    """
    if as_json:
        fields = ("slug", "title", "tagline", "family", "status")
        click.echo(json.dumps([{name: getattr(topic, name) for name in fields} for topic in series.TOPICS], indent=1))
        return
    for family in series.FAMILIES:
        click.echo(click.style(family, bold=True))
        for topic in series.TOPICS:
            if topic.family == family:
                click.echo(f"  {topic.slug:28} {topic.status:9} {topic.title}")


@main.command()
@click.argument("topics", nargs=-1, callback=_topic)
@click.option("--all", "everything", is_flag=True, help="render every finished topic")
@_quality("h")
@theme_option
@settings_option
@click.option("--chapter", help="render one chapter alone as a clip, by number or name")
@click.option(
    "--formats", default=",".join(FORMATS), show_default=True, callback=_list_of(FORMATS), help="what to make"
)
@jobs_option
@out_option
@fresh_option
@json_option
@click.option("--open", "open_it", is_flag=True, help="open the video when it is done")
def render(
    topics: tuple[str, ...],
    everything: bool,
    quality: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    chapter: str | None,
    formats: tuple[str, ...],
    jobs: int | None,
    out: Path,
    fresh: bool,
    as_json: bool,
    open_it: bool,
) -> None:
    """Render explainer videos and loops into OUT/TOPIC/.

    \b
    llm-internals render kv_cache
    llm-internals render --all -q l --theme dark,light
    llm-internals render rope --set base=10000 --chapter 3 --open
    """
    slugs = tuple(topic.slug for topic in series.finished()) if everything else topics
    if not slugs:
        fail("name a topic or give --all; `llm-internals list` shows the topics")
    _refuse_unfinished(slugs)
    from scripts.pipeline.jobs import Request

    make = "topic" if chapter is None else "clip"
    request = Request(make, QUALITIES[quality], themes, settings, chapter, formats, jobs, out, fresh)
    results = _run(slugs, request)
    if as_json:
        click.echo(json.dumps([_result_json(result) for result in results], indent=1))
    else:
        _print_files(results)
    if open_it:
        _open_videos(results)
    _end_with_failures(results)


@main.command()
@click.argument("topic", callback=_topic)
@click.option("--chapter", help="a chapter by number or name  [default: the loop]")
@click.option("--width", type=click.IntRange(64, 3840), default=640, show_default=True, help="pixels")
@click.option("--fps", type=click.Choice(["10", "20", "25"]), default="25", show_default=True, help="frames per second")
@theme_option
@settings_option
@jobs_option
@out_option
@fresh_option
@json_option
def gif(
    topic: str,
    chapter: str | None,
    width: int,
    fps: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    jobs: int | None,
    out: Path,
    fresh: bool,
    as_json: bool,
) -> None:
    """Make a GIF of a topic's loop or of one chapter, with exact colors.

    \b
    llm-internals gif kv_cache
    llm-internals gif rope --chapter 3 --width 480 --fps 10
    """
    _refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    options = {"width": width, "frame_rate": int(fps)}
    results = _run((topic,), Request("gif", QUALITIES["h"], themes, settings, chapter, (), jobs, out, fresh, options))
    if as_json:
        click.echo(json.dumps(_result_json(results[0]), indent=1))
    else:
        _print_files(results)
    if results[0].ok and shutil.which("gifsicle") is None:
        click.echo("gifsicle was not found, so the file is larger than it could be (`llm-internals doctor`)", err=True)
    _end_with_failures(results)


@main.command()
@click.argument("topic", callback=_topic)
@_quality("l")
@theme_option
@settings_option
@click.option("--chapter", help="only this chapter, by number or name")
@click.option(
    "--stills", type=click.Path(path_type=Path, file_okay=False), help="also write each frame as a PNG into this folder"
)
@click.option(
    "--every", type=click.FloatRange(min=0.05), help="a frame every so many seconds in place of the key frames"
)
@click.option("--columns", type=click.IntRange(1, 12), default=4, show_default=True)
@jobs_option
@out_option
@fresh_option
def sheet(
    topic: str,
    quality: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    chapter: str | None,
    stills: Path | None,
    every: float | None,
    columns: int,
    jobs: int | None,
    out: Path,
    fresh: bool,
) -> None:
    """Draw a contact sheet: the key frames of every chapter in one PNG.

    \b
    llm-internals sheet kv_cache
    llm-internals sheet rope --chapter 3 -q h --stills stills
    llm-internals sheet rope --chapter loop --every 0.25
    """
    _refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    options = {"columns": columns, "stills": stills, "every": every}
    results = _run(
        (topic,), Request("sheet", QUALITIES[quality], themes, settings, chapter, ("sheet",), jobs, out, fresh, options)
    )
    _print_files(results)
    _end_with_failures(results)


@main.command()
@click.argument("topic", callback=_topic)
@settings_option
@json_option
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="write the numbers as a safetensors file")
@fresh_option
def trace(topic: str, settings: tuple[str, ...], as_json: bool, save: Path | None, fresh: bool) -> None:
    """Print the numbers that a topic's video shows.

    \b
    llm-internals trace kv_cache
    llm-internals trace rope --set base=10000 --json
    """
    if series.find(topic).status == series.PLANNED:
        fail(f"{topic} has no core yet; topics with numbers: {', '.join(t.slug for t in series.finished())}")
    from scripts.pipeline import numbers

    with _user_errors():
        values = numbers.load(topic, settings, fresh=fresh)
        if save is not None:
            click.echo(str(numbers.save(values, topic, save)))
        else:
            click.echo(numbers.to_json(values) if as_json else numbers.to_table(values))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is missing on this machine, with the command that fixes it.

    \b
    llm-internals doctor
    """
    from scripts.pipeline import doctor as doctor_module

    findings = doctor_module.examine()
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = "ok     " if finding.ok else ("missing" if finding.needed else "absent ")
            click.echo(f"{mark} {finding.name:16} {finding.found}")
            if not finding.ok:
                click.echo(f"        fix: {finding.fix}")
    sys.exit(0 if all(finding.ok or not finding.needed for finding in findings) else 1)


@main.command()
@click.option("--variant", default="base", show_default=True, help="which model; --list shows them")
@click.option("--seed", type=int, help="another seed than the variant's own")
@click.option("--steps", type=click.IntRange(min=1), help="fewer or more optimizer steps than the recipe's")
@click.option("--list", "list_them", is_flag=True, help="list the variants")
@click.option("--report", "write_report", is_flag=True, help="print what the trained models can do, as Markdown")
@json_option
def train(
    variant: str, seed: int | None, steps: int | None, list_them: bool, write_report: bool, as_json: bool
) -> None:
    """Train the tiny language model or one of its variants again (about a minute on one core).

    \b
    llm-internals train
    llm-internals train --variant draft --seed 3
    llm-internals train --report
    """
    from internals_math.tiny_lm import report, variants
    from internals_math.tiny_lm.checkpoints import committed_path, file_hash, read_facts

    if list_them:
        for name, spec in variants.VARIANTS.items():
            kept = "committed" if spec.committed else "on demand"
            click.echo(f"{name:12} {kept:10} {spec.help}")
        return
    if write_report:
        click.echo(report.to_markdown(report.measure()))
        return
    try:
        variants.variant(variant)
    except ValueError as error:
        fail(str(error))
    with _step_progress(f"train {variant}") as on_step:
        path = variants.train_variant(variant, seed=seed, steps=steps, on_step=on_step)
    facts = read_facts(path)
    excess = facts["loss"] - facts["entropy_floor"]
    same = committed_path(variant).is_file() and file_hash(path) == file_hash(committed_path(variant))
    if as_json:
        click.echo(json.dumps({"path": str(path), "equals_committed": same, **facts}, indent=1))
        return
    click.echo(str(path))
    floor = facts["entropy_floor"]
    click.echo(f"held-out loss {facts['loss']:.4f} nats, entropy floor {floor:.4f}, excess {excess:.4f}", err=True)
    if same:
        click.echo("bit for bit the committed checkpoint", err=True)


# -- helpers of several commands ---------------------------------------------------------------------------------------


def _refuse_unfinished(slugs: tuple[str, ...]) -> None:
    for slug in slugs:
        topic = series.find(slug)
        if topic.status != series.FINISHED:
            ready = ", ".join(t.slug for t in series.finished())
            fail(f"{slug} has no scene yet ({topic.status}); finished: {ready}")


def _run(slugs: tuple[str, ...], request: Any) -> list[Any]:
    """Render with a progress bar for each topic; Ctrl-C says what is done."""
    from scripts.pipeline.progress import TopicProgress
    from scripts.pipeline.render import Interrupted
    from scripts.pipeline.render import render as render_topics

    try:
        with _user_errors(), TopicProgress() as report:
            return render_topics(slugs, request, report)
    except Interrupted as stop:
        done = ", ".join(result.slug for result in stop.finished) or "nothing"
        click.echo(f"Interrupted. Finished: {done}. Units that were rendered are kept and will be reused.", err=True)
        sys.exit(130)


def _print_files(results: list[Any]) -> None:
    for result in results:
        for path in result.files:
            click.echo(str(path))


def _open_videos(results: list[Any]) -> None:
    for result in results:
        videos = [path for path in result.files if path.suffix == ".mp4" and path.stem.startswith(result.slug)]
        if videos:
            click.launch(str(videos[0]))


def _end_with_failures(results: list[Any]) -> None:
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


def _result_json(result: Any) -> dict[str, Any]:
    return {
        "topic": result.slug,
        "ok": result.ok,
        "files": [str(path) for path in result.files],
        "seconds": round(result.seconds, 3),
        "units_rendered": result.rendered,
        "units_reused": result.reused,
        "error": result.error,
    }


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn what a user did wrong, or what is missing, into one line."""
    try:
        yield
    except WrongUse as error:
        fail(str(error))
    except UserError as error:
        fail(str(error), 1)


def _step_progress(title: str) -> Any:
    from scripts.pipeline.progress import StepProgress

    return StepProgress(title)


if __name__ == "__main__":
    main()

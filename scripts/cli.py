"""The `llm-internals` command: parses, calls the pipeline, prints.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 the work failed, 2 wrong use.
Heavy modules are imported inside the commands that need them, so that `list`, `--help` and errors answer at once.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from scenes import series
from scripts.pipeline.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])
QUALITY_NAMES = ("l", "m", "h", "p", "k")
THEME_NAMES = ("dark", "light")
FORMAT_NAMES = ("mp4", "captions", "gif", "webp", "loop", "poster", "sheet")


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
            fail(f"--{parameter.name} takes {', '.join(allowed)} separated by commas, got {text!r}")
        return names

    return parse


def _quality(default: str) -> Callable[[_Command], _Command]:
    return click.option(
        "-q", "--quality", type=click.Choice(QUALITY_NAMES), default=default, show_default=True,
        help="l 480p15, m 720p30, h 1080p60, p 1440p60, k 2160p60",
    )  # fmt: skip


settings_option = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="change a parameter; repeatable")
out_option = click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("media"), show_default=True, help="output folder"
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
@click.option("--chapter", help="render one chapter alone, by number or name, as a clip")
@click.option(
    "--formats", default=",".join(FORMAT_NAMES), callback=_list_of(FORMAT_NAMES), help="what to make  [default: everything]"
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
    from scripts.pipeline.render import Request

    request = Request(quality, themes, settings, chapter, formats, jobs, out, fresh)
    results = _run(slugs, request)
    broken = [result for result in results if not result.ok]
    if as_json:
        click.echo(json.dumps([_result_json(result) for result in results], indent=1))
    else:
        for result in results:
            for path in result.files:
                click.echo(str(path))
    if open_it:
        for result in results:
            videos = [path for path in result.files if path.suffix == ".mp4" and not path.stem.startswith("loop")]
            if videos:
                click.launch(str(videos[0]))
    if broken:
        click.echo(f"Failed: {', '.join(result.slug for result in broken)}. The others are done. To repeat:", err=True)
        command = ["llm-internals", "render", *(result.slug for result in broken), "-q", quality, "--theme", ",".join(themes)]
        command += [part for setting in settings for part in ("--set", setting)]
        click.echo("  " + " ".join(command), err=True)
        sys.exit(1)


@main.command()
@click.argument("topic", callback=_topic)
@click.option("--chapter", help="a chapter by number or name  [default: the loop]")
@click.option("--width", type=click.IntRange(64, 3840), default=640, show_default=True, help="pixels")
@click.option("--fps", type=click.Choice(["10", "20", "25"]), default="20", show_default=True, help="frames per second")
@theme_option
@settings_option
@_quality("m")
@out_option
def gif(
    topic: str,
    chapter: str | None,
    width: int,
    fps: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    quality: str,
    out: Path,
) -> None:
    """Make a GIF of a topic's loop or of one chapter, with exact colors.

    \b
    llm-internals gif kv_cache
    llm-internals gif rope --chapter 3 --width 480 --fps 10
    """
    _refuse_unfinished((topic,))
    from scripts.pipeline import gif as gifs
    from scripts.pipeline.outputs import suffix
    from scripts.pipeline.render import Request

    request = Request(quality, themes, settings, chapter or "loop", (), None, out)
    result = _run((topic,), request)[0]
    if not result.ok:
        sys.exit(1)
    for theme, clip in zip(themes, result.files, strict=True):
        target = clip.with_name(f"{clip.stem}.gif" if chapter else f"loop{suffix(theme)}.gif")
        with _user_errors():
            optimized = gifs.write_gif(clip, target, width=width, frame_rate=int(fps))
        clip.unlink()
        click.echo(str(target))
        click.echo(f"{target.stat().st_size / 1000:.0f} kB", err=True)
        if not optimized:
            click.echo("gifsicle was not found, so the file is larger than it could be", err=True)


@main.command()
@click.argument("topic", callback=_topic)
@_quality("l")
@theme_option
@settings_option
@click.option("--chapter", help="only this chapter, by number or name")
@click.option("--stills", type=click.Path(path_type=Path, file_okay=False), help="also write each key frame into this folder")
@click.option("--columns", type=click.IntRange(1, 12), default=4, show_default=True)
@out_option
def sheet(
    topic: str,
    quality: str,
    themes: tuple[str, ...],
    settings: tuple[str, ...],
    chapter: str | None,
    stills: Path | None,
    columns: int,
    out: Path,
) -> None:
    """Draw a contact sheet: the key frames of every chapter in one PNG.

    \b
    llm-internals sheet kv_cache
    llm-internals sheet rope --chapter 3 -q h --stills /tmp/rope
    """
    _refuse_unfinished((topic,))
    from scripts.pipeline import look

    with _user_errors(), _progress() as report:
        for path in look.sheets(topic, quality, themes, settings, chapter, columns, out, stills, report):
            click.echo(str(path))


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
    from scripts.pipeline.render import Interrupted
    from scripts.pipeline.render import render as render_topics

    try:
        with _user_errors(), _progress() as report:
            return render_topics(slugs, request, report)
    except Interrupted as stop:
        done = ", ".join(result.slug for result in stop.finished) or "nothing"
        click.echo(f"Interrupted. Finished before: {done}. What was rendered is kept and will be reused.", err=True)
        sys.exit(130)


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


class _user_errors:  # noqa: N801 - reads as a statement
    """Turn what a user did wrong into one line and exit code 2; what failed into one line and exit code 1."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if isinstance(error, UserError):
            fail(str(error), 1)
        if isinstance(error, ValueError):
            fail(str(error), 2)


def _progress() -> Any:
    from scripts.pipeline.progress import TopicProgress

    return TopicProgress()


def _step_progress(title: str) -> Any:
    from scripts.pipeline.progress import StepProgress

    return StepProgress(title)


if __name__ == "__main__":
    main()

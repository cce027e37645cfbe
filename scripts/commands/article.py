"""`llm-internals article`: what to paste into an article, with the files it shows."""

import json
import shutil
from pathlib import Path

import click

from scenes import series
from scripts.commands.shared import (
    THEME_NAMES,
    check_topics,
    end_with_failures,
    fail,
    json_option,
    out_option,
    refuse_unfinished,
    run,
    user_errors,
)
from scripts.pipeline.article import FORMATS, Embed, snippet
from scripts.pipeline.manifest import LOOP_FORMATS, suffix
from scripts.pipeline.quality import QUALITIES

FILES = {"gif": "loop.gif", "webp": "loop.webp", "mp4": "loop.mp4", "poster": "poster.png"}


@click.command()
@click.argument("topic", callback=check_topics)
@click.option("--format", "form", type=click.Choice(FORMATS), default="md", show_default=True, help="of the snippet")
@click.option("--theme", type=click.Choice(THEME_NAMES), default="dark", show_default=True, help="of the files")
@click.option("--base-url", help="where the files are published  [default: relative paths]")
@click.option(
    "--copy-to", type=click.Path(path_type=Path, file_okay=False), help="folder of the article; the files go beside it"
)
@out_option
@json_option
def article(
    topic: str, form: str, theme: str, base_url: str | None, copy_to: Path | None, out: Path, as_json: bool
) -> None:
    """Print a snippet that shows a topic's loop in an article.

    It has alt text, a caption, a credit, and a still picture for readers who ask for less motion. The files of
    OUT/TOPIC are used as they are (the command gif makes them to measure); what is missing is made.

    \b
    llm-internals article kv_cache --copy-to blog/images/kv_cache
    llm-internals article rope --format html --theme light --base-url https://example.com/rope
    """
    refuse_unfinished((topic,))
    from scripts.pipeline.jobs import Request

    folder = out / topic
    names = {kind: Path(name).stem + suffix(theme) + Path(name).suffix for kind, name in FILES.items()}
    missing = tuple(kind for kind in LOOP_FORMATS if not (folder / names[kind]).is_file())
    if missing:
        results = run((topic,), Request("gif", QUALITIES["h"], (theme,), formats=missing, out=out))
        end_with_failures(results)
    paths = [folder / names[kind] for kind in LOOP_FORMATS]
    base = base_url if base_url is not None else folder.as_posix()
    if copy_to is not None:
        with user_errors():
            paths = _copy(paths, copy_to)
        base = base_url if base_url is not None else ""
    embed = _embed(topic, theme, base, folder / names["gif"])
    text = snippet(embed, form)
    if as_json:
        facts = {"topic": topic, "snippet": text, "alt": embed.alt, "files": [str(path) for path in paths]}
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    click.echo(text, nl=False)
    for path in paths:
        click.echo(f"{path} ({path.stat().st_size / 1000:.0f} kB)", err=True)


def _copy(paths: list[Path], folder: Path) -> list[Path]:
    """Copy files into a folder; each is whole or absent."""
    from scripts.pipeline.files import written_aside

    with written_aside(folder, "copy") as (aside, _):
        for path in paths:
            shutil.copyfile(path, aside / path.name)
    return [folder / path.name for path in paths]


def _embed(slug: str, theme: str, base: str, gif: Path) -> Embed:
    """Gather what the snippet says from the registry, the scene and the trace store."""
    from PIL import Image

    from internals_math import trace_store

    topic, scene = series.find(slug), series.scene_class(slug)
    if not scene.loop_alt:
        fail(f"{slug} has no text for readers who cannot see its loop (loop_alt)", 1)
    facts = trace_store.provenance(scene.core)
    made_with = ", ".join(f"{name} {value}" for name, value in facts.items())
    numbers = f"every number is measured on a tiny language model, computed, or quoted ({made_with})"
    credit = f"{topic.title}: animation by LLM Internals (MIT); {numbers}."
    with Image.open(gif) as image:
        width, height = image.size
    return Embed(topic.title, topic.tagline, scene.loop_alt, credit, theme, base, width, height)

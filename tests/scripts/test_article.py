import json
import re
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page

from scenes import series
from scripts.pipeline.article import FORMATS, Embed, snippet
from tests.scripts.browser import browser  # noqa: F401
from tests.scripts.conftest import call
from tests.scripts.topics import tiny

EMBED = Embed("T <1>", 'A "tag" & {line} of *stars*_', 'Alt "text" <b> & {x}', "By us.", "dark", "media/t", 640, 360)
ALT = "A grid that moves to the right and back."
small = pytest.mark.usefixtures("small_topics")


@pytest.fixture(scope="module")
def blog(tmp_path_factory) -> Path:
    """A folder of an article with the files of the small topic beside it, and the snippet in every format."""
    folder = tmp_path_factory.mktemp("blog")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "TOPICS", (tiny.TOPIC,))
        out = ("--out", tmp_path_factory.mktemp("out"), "--copy-to", folder)
        for form in FORMATS:
            result = call("article", "tiny", "--format", form, *out)
            assert result.exit_code == 0, result.output
            (folder / f"snippet.{form}").write_text(result.stdout)
    return folder


def as_page(blog: Path, form: str) -> str:
    """Return a snippet as the page that a blog makes of it."""
    text = (blog / f"snippet.{form}").read_text()
    if form == "md":
        text = MarkdownIt("commonmark", {"html": True}).render(text)
    elif form == "rst":
        text = text.replace(".. raw:: html", "").replace("\n   ", "\n")
    elif form == "mdx":
        text = re.sub(r"\{`(.*?)`\}", r"\1", text).replace("className", "class")
    return f"<!doctype html><meta charset=utf-8><title>blog</title>{text}"


def open_page(browser: Browser, blog: Path, form: str, motion: str) -> Page:  # noqa: F811
    (blog / "page.html").write_text(as_page(blog, form))
    page = browser.new_page(reduced_motion=motion, viewport={"width": 500, "height": 400})  # type: ignore[arg-type]
    page.goto((blog / "page.html").as_uri())
    return page


@pytest.mark.parametrize(("motion", "file"), [("reduce", "poster.png"), ("no-preference", "loop.webp")])
@pytest.mark.parametrize("form", ["md", "rst"])
def test_a_picture_moves_unless_the_reader_asked_for_less_motion(browser, blog, form, motion, file):  # noqa: F811
    page = open_page(browser, blog, form, motion)
    image = page.locator("img")
    page.wait_for_function("document.querySelector('img').complete")
    assert image.evaluate("image => image.currentSrc").endswith(f"/{file}")
    assert image.evaluate("image => image.naturalWidth") > 0  # it was found and decoded
    assert image.get_attribute("alt") == ALT
    page.close()


@pytest.mark.parametrize("form", ["html", "mdx"])
def test_a_video_plays_silently_unless_the_reader_asked_for_less_motion(browser, blog, form):  # noqa: F811
    page = open_page(browser, blog, form, "no-preference")
    assert page.locator("video").is_visible()
    assert not page.locator("img").is_visible()
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    facts = page.locator("video").evaluate("v => [v.muted, v.loop, v.paused, v.error, v.controls]")
    assert facts == [True, True, False, None, False]
    assert page.locator("video").get_attribute("aria-label") == ALT
    page.close()


@pytest.mark.parametrize("form", ["html", "mdx"])
def test_with_less_motion_the_poster_stands_still_and_the_video_is_not_loaded(browser, blog, form):  # noqa: F811
    page = open_page(browser, blog, form, "reduce")
    assert page.locator("img").is_visible()
    assert not page.locator("video").is_visible()
    page.wait_for_function("document.querySelector('img').complete")
    assert page.locator("img").evaluate("image => image.naturalWidth") > 0
    assert page.locator("video").evaluate("v => [v.currentSrc, v.currentTime]") == ["", 0]
    page.close()


@pytest.mark.parametrize("form", FORMATS)
def test_a_snippet_says_the_tagline_and_where_the_numbers_come_from_and_fits_the_page(browser, blog, form):  # noqa: F811
    page = open_page(browser, blog, form, "reduce")
    text = page.locator("body").inner_text()
    assert "Two chapters." in text
    assert "animation by LLM Internals (MIT)" in text
    assert re.search(r"model [0-9a-f]{8}, core [0-9a-f]{8}", text)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()


def test_jsx_is_well_formed_whatever_the_texts_hold():
    text = re.sub(r"\b(autoPlay|loop|muted|playsInline)\b(?=[ >])", r'\1=""', snippet(EMBED, "mdx"))
    figure = ElementTree.fromstring(text)
    assert figure.find("img").get("alt") == EMBED.alt  # type: ignore[union-attr]
    caption = figure.find("figcaption")
    assert caption is not None
    assert (caption.text or "").strip() == EMBED.tagline
    assert not re.search(r"[{}]", re.sub(r"\{`.*?`\}", "", text).replace(escape(EMBED.alt), ""))


def test_markdown_shows_marks_of_a_text_as_they_are():
    page = MarkdownIt("commonmark", {"html": True}).render(snippet(EMBED, "md"))
    assert "of *stars*_" in page
    assert 'alt="Alt &quot;text&quot; &lt;b&gt; &amp; {x}"' in page


@pytest.mark.parametrize("form", FORMATS)
def test_files_are_found_below_a_base_and_in_the_theme(form):
    light = Embed("T", "Tag.", "Alt.", "By us.", "light", "https://example.com/a/", 640, 360)
    addresses = re.findall(r'(?:src|srcset|poster)="([^"]+)"', snippet(light, form))
    names = {"html": {"loop-light.mp4", "poster-light.png"}}
    names |= {"mdx": names["html"], "md": {"loop-light.gif", "loop-light.webp", "poster-light.png"}}
    names["rst"] = names["md"]
    assert set(addresses) == {f"https://example.com/a/{name}" for name in names[form]}


def test_an_unknown_format_is_refused_by_name():
    with pytest.raises(ValueError, match="must be one of md, html, mdx, rst, got 'tex'"):
        snippet(EMBED, "tex")


@small
def test_what_is_there_is_used_and_only_what_is_missing_is_made(tmp_path):
    assert call("gif", "tiny", "--width", 80, "--formats", "gif", "--out", tmp_path, "--jobs", 1).exit_code == 0
    mine = (tmp_path / "tiny" / "loop.gif").read_bytes()
    facts = json.loads(call("article", "tiny", "--out", tmp_path, "--json").stdout)
    assert [Path(name).name for name in facts["files"]] == ["loop.gif", "loop.webp", "loop.mp4", "poster.png"]
    assert all(Path(name).is_file() for name in facts["files"])
    assert (tmp_path / "tiny" / "loop.gif").read_bytes() == mine
    assert 'width="80"' in facts["snippet"]
    assert f'src="{(tmp_path / "tiny").as_posix()}/loop.gif"' in facts["snippet"]
    assert facts["alt"] == ALT


@small
def test_files_are_put_beside_the_article_and_named_relative_to_it(tmp_path):
    result = call("article", "tiny", "--theme", "light", "--out", tmp_path / "out", "--copy-to", tmp_path / "blog")
    names = {"loop-light.gif", "loop-light.webp", "loop-light.mp4", "poster-light.png"}
    assert {path.name for path in (tmp_path / "blog").iterdir()} == names
    assert 'src="loop-light.gif"' in result.stdout
    assert "poster-light.png (" in result.stderr


@small
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = call("article", "tiny", "--out", tmp_path / "out", "--copy-to", tmp_path / "file" / "blog")
    assert result.exit_code == 1
    assert f"Error: cannot write to {tmp_path / 'file' / 'blog'}" in result.stderr

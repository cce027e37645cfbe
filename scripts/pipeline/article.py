"""Snippets that put a loop into an article: a video or picture that stands still for readers who ask for that."""

from dataclasses import dataclass
from html import escape

from scripts.pipeline.manifest import suffix

FORMATS = ("md", "html", "mdx", "rst")


@dataclass(frozen=True)
class Embed:
    """What a snippet says and shows; the files of a theme have the names that `gif` gives them."""

    title: str
    tagline: str
    alt: str
    credit: str  # where the animation and its numbers come from
    theme: str
    base: str  # URL or folder of the files, "" = beside the article
    width: int  # pixels
    height: int

    def address(self, name: str) -> str:
        """Return where the article finds a file; `name` is as in the dark theme."""
        stem, dot, ending = name.rpartition(".")
        return f"{self.base.rstrip('/')}{'/' if self.base else ''}{stem}{suffix(self.theme)}{dot}{ending}"


def snippet(embed: Embed, form: str) -> str:
    """Return the snippet as Markdown, HTML, MDX or reStructuredText.

    Markdown and reStructuredText hold `<picture>`, which survives where videos are filtered out (GitHub, many blogs);
    HTML and MDX hold a muted `<video>` for those who do not mind motion and the poster for those who do.
    """
    if form == "md":
        return f"{_picture(embed)}\n\n*{_in_markdown(embed.tagline)}* {_in_markdown(embed.credit)}\n"
    if form == "rst":
        lines = [".. raw:: html", "", *(f"   {line}" for line in _picture(embed).splitlines()), ""]
        return "\n".join([*lines, f"*{_in_rst(embed.tagline)}* {_in_rst(embed.credit)}", ""])
    if form in ("html", "mdx"):
        return _figure(embed, jsx=form == "mdx")
    raise ValueError(f"the format of a snippet must be one of {', '.join(FORMATS)}, got {form!r}")


def _picture(embed: Embed) -> str:
    """The first source that applies is taken: the poster for reduced motion, the WebP where it is known, the GIF."""
    poster, webp, gif = (_attribute(embed.address(name)) for name in ("poster.png", "loop.webp", "loop.gif"))
    return "\n".join(
        [
            "<picture>",
            f'  <source media="(prefers-reduced-motion: reduce)" srcset="{poster}">',
            f'  <source type="image/webp" srcset="{webp}">',
            f'  <img src="{gif}" width="{embed.width}" height="{embed.height}" loading="lazy"',
            f'       style="max-width: 100%; height: auto" alt="{_attribute(embed.alt)}">',
            "</picture>",
        ]
    )


def _figure(embed: Embed, *, jsx: bool) -> str:
    """A video and a picture, of which the reader's setting shows one; no script. The other one is not loaded."""
    video, poster = (_attribute(embed.address(name)) for name in ("loop.mp4", "poster.png"))
    label, size = _attribute(embed.alt), f'width="{embed.width}" height="{embed.height}"'
    still = ".llm-internals .still { display: none } .llm-internals .moving { display: block }"
    reduced = ".llm-internals .still { display: block } .llm-internals .moving { display: none }"
    shape = ".llm-internals video, .llm-internals img { max-width: 100%; height: auto }"
    style = f"{shape} {still} @media (prefers-reduced-motion: reduce) {{ {reduced} }}"
    name, end = ("className", " /") if jsx else ("class", "")
    play = "autoPlay loop muted playsInline" if jsx else "autoplay loop muted playsinline"
    escaped = _in_jsx if jsx else escape
    return "\n".join(
        [
            f'<figure {name}="llm-internals">',
            f"  <style>{{`{style}`}}</style>" if jsx else f"  <style>{style}</style>",
            f'  <video {name}="moving" {play} {size} poster="{poster}" aria-label="{label}">',
            f'    <source src="{video}" type="video/mp4" media="(prefers-reduced-motion: no-preference)"{end}>',
            "  </video>",
            f'  <img {name}="still" src="{poster}" {size} loading="lazy" alt="{label}"{end}>',
            f"  <figcaption>{escaped(embed.tagline)} <small>{escaped(embed.credit)}</small></figcaption>",
            "</figure>",
            "",
        ]
    )


def _attribute(text: str) -> str:
    return escape(text, quote=True)


def _in_jsx(text: str) -> str:
    return escape(text).replace("{", "&#123;").replace("}", "&#125;")


def _in_markdown(text: str) -> str:
    return "".join("\\" + c if c in "\\`*_[]<>" else c for c in text)


def _in_rst(text: str) -> str:
    return "".join("\\" + c if c in "\\`*_|" else c for c in text)

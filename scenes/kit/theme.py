"""The only place with colors, fonts, sizes and durations.

A role is read as an attribute when something is drawn (`theme.QUERY`), so that the same scene draws itself in the
theme that `use` chose. Lengths are in units of a frame 8 units high; text sizes are heights of a capital letter.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from types import MappingProxyType

from manim import config

# Frame
MARGIN = 0.5
HEADER_BASELINE = 3.42  # of the topic and chapter title
STAGE_TOP, STAGE_BOTTOM = 3.05, -2.95
CAPTION_BASELINES = (-3.28, -3.66)  # two lines; a lone line sits between them
CAPTION_LINE_LENGTH = 42  # characters

# Heights of a capital letter or digit
QUESTION = 0.36
TITLE = 0.27
CAPTION = 0.235
LABEL = 0.2
SMALL = 0.16  # the smallest text that is legible in a GIF 640 px wide
BIG_NUMBER = 0.55

# Strokes, in units of the frame
HAIRLINE = 0.02
LINE = 0.035
THICK = 0.06

# Seconds
QUICK = 0.5
MOVE = 0.9
SLOW = 1.6
HOLD = 0.7
READING_SPEED = 17  # characters a second
SHORTEST_CAPTION, LONGEST_CAPTION = 1.2, 7.0

# How much of its own color a dimmed thing keeps
DIMMED = 0.3

_DARK = {
    "BACKGROUND": "#0E1116",
    "SURFACE": "#1A1F28",  # an empty cell, the ground of a panel
    "TEXT": "#E9EDF3",
    "MUTED": "#8B95A5",
    "LINES": "#3A4452",
    "QUERY": "#FF7EB6",
    "KEY": "#5BD98A",
    "VALUE": "#B79CFF",
    "LATENT": "#2DD4BF",  # what keys and values are rebuilt from
    "SCORE": "#F4D35E",
    "WEIGHT": "#5CC8F2",
    "GRADIENT": "#F28A2E",
    "LOSS": "#FF6B6B",
    "FROZEN": "#8B95A5",
    "OUTPUT": "#E9EDF3",
    "INPUT": "#C9D1DC",
    "NEGATIVE": "#2F7FE0",
    "ZERO": "#1A1F28",
    "POSITIVE": "#F28A2E",
    "MAXIMUM": "#F4D35E",
    "INK_ON_LIGHT": "#04060A",
    "INK_ON_DARK": "#FFFFFF",
}
_LIGHT = {
    "BACKGROUND": "#FBFBF9",
    "SURFACE": "#F1F2F0",
    "TEXT": "#1B1F24",
    "MUTED": "#5F6978",
    "LINES": "#C4CAD3",
    "QUERY": "#C2256E",
    "KEY": "#147B3B",
    "VALUE": "#6D3FD1",
    "LATENT": "#0B7A75",
    "SCORE": "#96600D",
    "WEIGHT": "#0D739B",
    "GRADIENT": "#AF5105",
    "LOSS": "#C62F2F",
    "FROZEN": "#5F6978",
    "OUTPUT": "#1B1F24",
    "INPUT": "#3B434E",
    "NEGATIVE": "#2166C4",
    "ZERO": "#F1F2F0",
    "POSITIVE": "#D9660A",
    "MAXIMUM": "#96600D",
    "INK_ON_LIGHT": "#04060A",
    "INK_ON_DARK": "#FFFFFF",
}
THEMES = MappingProxyType({"dark": _DARK, "light": _LIGHT})
# A pair of a role and its aliases: the same thing under the names that topics use for it.
_ALIASES = {"PROBABILITY": "SCORE", "ATTENTION": "SCORE", "ERROR": "LOSS", "REFERENCE": "FROZEN"}

_current = "dark"


def use(name: str) -> None:
    """Draw everything made from now on in the theme `name`."""
    global _current
    if name not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(THEMES)}, got {name!r}")
    _current = name
    config.background_color = THEMES[name]["BACKGROUND"]


def current() -> str:
    """Return the name of the theme in use."""
    return _current


@contextmanager
def using(name: str) -> Iterator[None]:
    """Draw in the theme `name` for a while."""
    before = _current
    use(name)
    try:
        yield
    finally:
        use(before)


def __getattr__(role: str) -> str:
    palette = THEMES[_current]
    role = _ALIASES.get(role, role)
    if role == "PALETTE":
        return list(dict.fromkeys(palette.values()))  # type: ignore[return-value]
    if role in palette:
        return palette[role]
    raise AttributeError(f"the theme has no {role}; its roles are {', '.join(palette)}")


def rgb(color: str) -> tuple[float, float, float]:
    """Return the three channels of `#RRGGBB` in 0..1."""
    return _rgb(color)


@cache
def _rgb(color: str) -> tuple[float, float, float]:
    return tuple(int(color[k : k + 2], 16) / 255 for k in (1, 3, 5))  # type: ignore[return-value]


@lru_cache(4096)
def hex_color(channels: tuple[float, float, float]) -> str:
    """Return `#RRGGBB` for three channels in 0..1."""
    return "#" + "".join(f"{round(max(0.0, min(1.0, c)) * 255):02X}" for c in channels)


@cache
def mix(first: str, second: str, share: float) -> str:
    """Return the color that holds `share` of the second and the rest of the first."""
    a, b = _rgb(first), _rgb(second)
    return hex_color(tuple(x + (y - x) * share for x, y in zip(a, b, strict=True)))  # type: ignore[arg-type]


def recede(color: str, emphasis: float, share: float = 1.0) -> str:
    """Return a color as it stands back for what leads: dimmed at emphasis 0, full at 1, of which a share; in steps."""
    strength = share * (DIMMED + (1 - DIMMED) * emphasis)
    return mix(THEMES[_current]["BACKGROUND"], color, round(strength * 32) / 32)


@cache
def luminance(color: str) -> float:
    """Return the relative luminance of WCAG 2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of WCAG 2, 1..21."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@cache
def ink_on(ground: str, theme: str) -> str:
    """Return the theme's dark or light ink, whichever reads better on `ground`."""
    inks = (THEMES[theme]["INK_ON_LIGHT"], THEMES[theme]["INK_ON_DARK"])
    return max(inks, key=lambda ink: contrast(ink, ground))


# Steps of the color maps: few enough that a palette of 64 colors holds every cell to the bit.
SIGNED_STEPS = 16
SEQUENTIAL_STEPS = 24


def signed_color(share: float) -> str:
    """Return the diverging color of a value in -1..1; 0 is the neutral middle."""
    return _signed(round(max(-1.0, min(1.0, share)) * SIGNED_STEPS), _current)


@cache
def _signed(step: int, theme: str) -> str:
    palette = THEMES[theme]
    end = palette["POSITIVE"] if step > 0 else palette["NEGATIVE"]
    return mix(palette["ZERO"], end, abs(step) / SIGNED_STEPS)


def sequential_color(share: float, role: str = "MAXIMUM") -> str:
    """Return the color of a value in 0..1 on the way from nothing to the full color of `role`."""
    return _sequential(round(max(0.0, min(1.0, share)) * SEQUENTIAL_STEPS), role, _current)


@cache
def _sequential(step: int, role: str, theme: str) -> str:
    palette = THEMES[theme]
    return mix(palette["ZERO"], palette[_ALIASES.get(role, role)], step / SEQUENTIAL_STEPS)


use(os.environ.get("LLM_INTERNALS_THEME", "dark"))

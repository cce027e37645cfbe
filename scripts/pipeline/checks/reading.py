"""Reading: captions can be read, end with their chapter, and a video has its length."""

from collections.abc import Iterator

from scenes.kit import theme
from scenes.kit.recorder import Recording
from scenes.kit.topic_scene import CaptionBand
from scripts.pipeline.checks import Finding, finding

SHORTEST_VIDEO, LONGEST_VIDEO = 85.0, 120.0
SHORTEST_CAPTION = 1.0
ROUNDING = 0.12  # seconds: a beat ends on a frame


def check_captions(recording: Recording) -> Iterator[Finding]:
    """Yield captions that are too fast, too long, too many lines, or cut off by the end of their chapter."""
    captions = recording.captions
    chapters = {unit.name for unit in recording.scene.chapter_units()}
    if recording.unit in chapters and not captions:
        yield finding(recording, 0.0, "chapter", "caption", "says nothing")
    yield from _unsaid(recording)
    for caption in captions:
        seconds = caption.end - caption.start
        for problem in _problems(caption.text, seconds):
            yield finding(recording, caption.start, f"caption {caption.text!r}", "caption", problem)
        if caption.end > recording.seconds + 1e-6:
            message = f"ends {caption.end - recording.seconds:.2f} s after its chapter"
            yield finding(recording, caption.start, f"caption {caption.text!r}", "caption", message)
    read = sum(max(theme.SHORTEST_CAPTION, len(caption.text) / theme.READING_SPEED) for caption in captions)
    if recording.error is None and read > recording.seconds:
        message = f"lasts {recording.seconds:.1f} s, its captions need {read:.1f} s"
        yield finding(recording, 0.0, "chapter", "length", message)


def _unsaid(recording: Recording) -> Iterator[Finding]:
    """Yield captions that are in the picture alone, or in the tracks alone."""
    things = ((look, thing.picture) for look in recording.looks for thing in look.things)
    shown = {band.text: look.start for look, band in things if isinstance(band, CaptionBand)}
    said = {caption.text: caption.start for caption in recording.captions}
    for text in (text for text in shown if text not in said):
        yield finding(recording, shown[text], f"caption {text!r}", "caption", "is shown, but not said: use self.say")
    for text in (text for text in said if text not in shown):
        yield finding(recording, said[text], f"caption {text!r}", "caption", "is said, but not shown")


def _problems(text: str, seconds: float) -> Iterator[str]:
    if len(text) > theme.READING_SPEED * seconds + 1e-6:
        speed = len(text) / max(seconds, 1e-6)
        yield f"runs at {speed:.1f} characters a second; {theme.READING_SPEED} can be read"
    if not SHORTEST_CAPTION - 1e-6 <= seconds <= theme.LONGEST_CAPTION + ROUNDING:
        yield f"stands for {seconds:.1f} s; allowed are {SHORTEST_CAPTION:g} to {theme.LONGEST_CAPTION:g} s"


def check_length(topic: str, file: str, seconds: float) -> Iterator[Finding]:
    """Yield that the whole video is too short or too long."""
    if not SHORTEST_VIDEO <= seconds <= LONGEST_VIDEO:
        message = f"lasts {seconds:.1f} s; a video has {SHORTEST_VIDEO:g} to {LONGEST_VIDEO:g} s"
        yield Finding(topic, file, 0, "", 0.0, "video", "length", message)

"""What `llm-internals check` looks for, one module for each kind of rule. Each finding is plain data."""

from dataclasses import dataclass

from scenes.kit.recorder import Recording


@dataclass(frozen=True)
class Finding:
    """One thing that breaks a rule, and where to look for it."""

    topic: str
    file: str
    line: int  # of the scene's file that was being played; 0 if none was
    chapter: str
    seconds: float  # from the start of the chapter
    object: str
    rule: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}  {self.chapter} {self.seconds:.1f} s  {self.object}: {self.message} [{self.rule}]"


def finding(recording: Recording, seconds: float, thing: str, rule: str, message: str, line: int = 0) -> Finding:
    """Return a finding in a recorded unit."""
    scene = recording.scene
    file = f"{type(scene).__module__.replace('.', '/')}.py"
    line = line or recording.line_at(seconds)
    return Finding(scene.slug(), file, line, recording.unit, round(seconds, 2), thing, rule, message)

"""Progress bars on stderr."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.pipeline.render import TopicResult


def _bars(unit: str) -> Progress:
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=False,
    )


class TopicProgress:
    """One bar for each topic, in units; a failed topic shows its traceback."""

    def __init__(self) -> None:
        self.bars = _bars("units")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def begin(self, slug: str, units: int) -> None:
        self.tasks[slug] = self.bars.add_task(slug, total=units)

    def step(self, slug: str) -> None:
        self.bars.advance(self.tasks[slug])

    def end(self, result: TopicResult) -> None:
        if result.error is not None:
            self.bars.console.print(f"[bold red]{result.slug} failed[/]")
            self.bars.console.print(result.error, markup=False, highlight=False)
            return
        reused = f", {result.reused} reused" if result.reused else ""
        self.bars.console.print(
            f"{result.slug}: {result.seconds:.0f} s of video, {result.rendered} units rendered{reused}", highlight=False
        )


class StepProgress:
    """One bar for training steps; used as the callback (step, total, loss)."""

    def __init__(self, title: str) -> None:
        self.bars = _bars("steps")
        self.task = self.bars.add_task(title, total=None)
        self.title = title

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def __call__(self, step: int, total: int, loss: float) -> None:
        self.bars.update(self.task, completed=step, total=total, description=f"{self.title} {loss:.3f}")

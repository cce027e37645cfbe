"""Progress bars on stderr."""

from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from scripts.pipeline.jobs import TopicResult


def _bars(*columns: ProgressColumn) -> Progress:
    name = TextColumn("{task.description:24}")
    return Progress(name, BarColumn(), *columns, TimeRemainingColumn(compact=True), console=Console(stderr=True))


class TopicProgress:
    """One bar for each topic, over the seconds of its video; a failed topic shows its traceback."""

    def __init__(self) -> None:
        self.bars = _bars(TaskProgressColumn(), TextColumn("{task.fields[what]}"))
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def begin(self, slug: str) -> None:
        self.tasks[slug] = self.bars.add_task(slug, total=None, what="reading the numbers")

    def update(self, slug: str, done: float, total: float) -> None:
        self.bars.update(self.tasks[slug], completed=min(done, total), total=total, what=f"{done:.0f} of {total:.0f} s")

    def end(self, result: TopicResult) -> None:
        if result.slug in self.tasks:
            self.bars.remove_task(self.tasks.pop(result.slug))
        console = self.bars.console
        if result.error is not None:
            console.print(f"{result.slug} failed:", style="bold red")
            console.print(result.error, markup=False, highlight=False, soft_wrap=True)
            return
        counts = [
            f"{count} {what}" for count, what in ((result.rendered, "rendered"), (result.reused, "reused")) if count
        ]
        console.print(f"{result.slug}: {result.seconds:.1f} s, units: {', '.join(counts)}", highlight=False)


class StepProgress:
    """One bar for training steps; used as the callback (step, total, loss)."""

    def __init__(self, title: str) -> None:
        self.bars = _bars(MofNCompleteColumn(), TextColumn("steps"))
        self.task = self.bars.add_task(title, total=None)
        self.title = title

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bars.stop()

    def __call__(self, step: int, total: int, loss: float) -> None:
        self.bars.update(self.task, completed=step, total=total, description=f"{self.title} {loss:.3f}")


class WorkProgress:
    """A bar for each long computation that reports steps; nothing is drawn if none does."""

    def __init__(self) -> None:
        self.bars = _bars(MofNCompleteColumn(), TextColumn("steps"))
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.tasks:  # bars that never started end with an empty line too
            self.bars.stop()

    def __call__(self, title: str, done: int, total: int) -> None:
        if title not in self.tasks:
            self.bars.start()
            self.tasks[title] = self.bars.add_task(title, total=total)
        self.bars.update(self.tasks[title], completed=done)

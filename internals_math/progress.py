"""News from long computations: a training run reports its steps, whoever waits may listen.

with progress.listening(lambda title, done, total: print(title, done, total)):
    trace_store.get(mixture_of_experts)
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]  # (what is running, steps done, steps in all)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hand all news of this block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(title: str, done: int, total: int) -> None:
    """Say how far something is; nobody needs to listen."""
    listener = _listener.get()
    if listener is not None:
        listener(title, done, total)


def on_step(title: str) -> Callable[[int, int, float], None]:
    """Return a callback for `tiny_lm.train` that reports its steps under this title."""
    return lambda done, total, loss: report(title, done, total)

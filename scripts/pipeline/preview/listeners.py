"""Pages that listen: each hears that the state has changed, and of the newest still; a slow one misses what is old."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

KEEP_ALIVE_SECONDS = 15.0


class Listener:
    """One page's ear."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._still: dict[str, Any] | None = None
        self._closed = False

    def tell(self, still: dict[str, Any] | None = None) -> None:
        """Say that the state has changed, and that there is a still."""
        self._still = still or self._still
        self._news.set()

    def close(self) -> None:
        self._closed = True
        self._news.set()

    async def news(self) -> AsyncIterator[dict[str, Any] | None]:
        """Yield at each change the newest still that was not yet heard of, or None."""
        while True:
            with contextlib.suppress(TimeoutError):  # what is sent now and then finds out whether the page is there
                await asyncio.wait_for(self._news.wait(), KEEP_ALIVE_SECONDS)
            if self._closed:
                return
            self._news.clear()
            still, self._still = self._still, None
            yield still

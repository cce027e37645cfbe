"""The server's side of the processes that fork: it starts them, hears them, and ends those whose work is stale."""

import asyncio
import contextlib
import itertools
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from scripts.pipeline.preview.forks import HEADER
from scripts.pipeline.preview.mistakes import ROOT

FORKS = "scripts.pipeline.preview.forks"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # processes share the cores, and none forks a thread


class Process:
    """A process that was ordered; it may not have begun yet."""

    def __init__(self, name: str, parent: "Process | None" = None) -> None:
        self.name = name
        self.parent = parent
        self.pid: int | None = None
        self.ended = False
        self._writer: asyncio.StreamWriter | None = None
        self._orders: list[bytes] = []
        self._messages: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def kill(self) -> None:
        """End it and the programs it runs."""
        if self.ended:
            return
        self.lose()
        self._kill_group()

    def _kill_group(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what it sends until it ends or is killed."""
        while (message := await self._messages.get()) is not None:
            yield message

    def order(self, child: "Process", function: str, *arguments: Any) -> None:
        """Let it fork a child, as soon as it has begun."""
        if self.ended:
            child.lose()
            return
        data = pickle.dumps({"name": child.name, "function": f"{FORKS}:{function}", "arguments": arguments})
        self._orders.append(HEADER.pack(len(data)) + data)
        self._pass_on()

    def greet(self, pid: int, writer: asyncio.StreamWriter) -> None:
        """Take note that it has begun."""
        self.pid, self._writer = pid, writer
        if self.ended:  # it was killed before it had begun
            self._kill_group()
        self._pass_on()

    def _pass_on(self) -> None:
        if self._writer is not None:
            self._writer.write(b"".join(self._orders))
            self._orders.clear()

    def hear(self, message: dict[str, Any]) -> None:
        if not self.ended:
            self._messages.put_nowait(message)

    def lose(self) -> None:
        """Take it as ended: its socket is closed, or it will never begin."""
        if not self.ended:
            self.ended = True
            self._messages.put_nowait(None)


class Processes:
    """All processes of a preview: one root, one base at a time, and leaves."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.base_files: set[str] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="llm-internals-")
        self._address = str(Path(self._folder.name) / "socket")
        self._numbers = itertools.count()
        self._known: dict[str, Process] = {}
        self._root: Process | None = None
        self._base: Process | None = None
        self._server: asyncio.Server | None = None
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the root; orders may follow at once, they wait for it."""
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._accept, self._address)
        self._root = self._new("root")
        environment = {**os.environ, **ONE_THREAD}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        code = f"from {FORKS} import main; main()"
        self._running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            self._address,
            self._root.name,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
        )

    async def leaf(self, task: str, *arguments: Any) -> Process:
        """Order a leaf that does one task of the module `tasks`; it has ended at once if its base is replaced."""
        if self._root is None or self._root.ended:
            await self.start()
        if self._base is None or self._base.ended:
            assert self._root is not None
            self._base, self.base_files = self._new("base", self._root), set()
            self._root.order(self._base, "be_base", self.module)
        leaf, base = self._new("leaf", self._base), self._base
        base.order(leaf, "be_leaf", task, *arguments)
        return leaf

    def forget(self, files: set[str]) -> None:
        """Let a base that has imported one of these files be replaced."""
        if self._base is not None and (not self.base_files or files & self.base_files):
            self._base.kill()
            self._base = None

    async def stop(self) -> None:
        """End everything; `leaf` starts it again."""
        for process in list(self._known.values()):
            process.kill()
        self._known.clear()
        self._root = self._base = None
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                self._running.kill()
            await self._running.wait()
            self._running = None

    async def close(self) -> None:
        """End everything for good."""
        await self.stop()
        if self._server is not None:
            self._server.close()
        self._folder.cleanup()

    def _new(self, kind: str, parent: Process | None = None) -> Process:
        process = Process(f"{kind}-{next(self._numbers)}", parent)
        self._known[process.name] = process
        return process

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: Process | None = None
        try:
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = pickle.loads(await reader.readexactly(size))
                if process is None:
                    process = self._known.get(message["name"]) or Process(message["name"])
                    if message["name"] not in self._known:
                        process.ended = True  # of a time before `stop`
                    process.greet(message["pid"], writer)
                elif message["kind"] == "files" and process is self._base:
                    self.base_files = set(message["files"])
                else:
                    process.hear(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if process is not None:
                self._lost(process)
            writer.close()

    def _lost(self, process: Process) -> None:
        """Forget an ended process, and those it will never fork."""
        process.lose()
        self._known.pop(process.name, None)
        for child in [child for child in self._known.values() if child.parent is process and child.pid is None]:
            self._lost(child)

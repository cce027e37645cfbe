"""Processes that fork: what is costly to import is imported once, what was saved is imported anew.

The root has imported torch and Manim but nothing of this project. A base, forked from it, has imported the kit and a
topic's core as well; it is replaced when one of their files changes. A leaf, forked from the base, imports the scene,
does one task and ends. All of them speak to the server over its private socket, and end when it closes.
"""

import contextlib
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.pipeline.preview.mistakes import PACKAGES, ROOT, describe, is_ours

# Libraries that tasks use; nothing of this project, so that no save can make them stale.
LIBRARIES = (
    "torch", "manim", "numpy", "av", "cairo", "PIL.Image", "PIL.ImageFont", "safetensors.torch", "jaxtyping",
    "uharfbuzz", "ffmpeg", "platformdirs", "rich.progress", "click",
)  # fmt: skip
HEADER = struct.Struct("<Q")
_imported: dict[str, float] = {}  # project files in this process, and when their import began at the earliest


class Channel:
    """A process's end of the socket: whole messages of plain data, each as long as its header says."""

    def __init__(self, address: str, name: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.lock = threading.Lock()
        self.send({"kind": "hello", "name": name, "pid": os.getpid()})

    def send(self, message: dict[str, Any]) -> None:
        data = pickle.dumps(message)
        with self.lock:
            self.socket.sendall(HEADER.pack(len(data)) + data)

    def receive(self) -> dict[str, Any] | None:
        """Wait for a message; None when the server is gone."""
        header = self._read(HEADER.size)
        data = header and self._read(HEADER.unpack(header)[0])
        return pickle.loads(data) if data else None

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            with contextlib.suppress(ConnectionError):
                part = self.socket.recv(count - len(data))
                if part:
                    data += part
                    continue
            return None
        return data


def serve(channel: Channel) -> None:
    """Fork whatever the server orders, until it is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children vanish by themselves
    while order := channel.receive():
        if os.fork() == 0:
            channel.socket.close()
            work(channel.address, order["name"], order["function"], order["arguments"])


def work(address: str, name: str, function: str, arguments: tuple[Any, ...]) -> None:
    """Be the process `name`: call `function` ("module:name") with a channel and the arguments, and end."""
    os.setpgid(0, 0)  # a group of its own: it ends together with the programs it runs
    channel = Channel(address, name)
    try:
        module, _, attribute = function.partition(":")
        getattr(importlib.import_module(module), attribute)(channel, *arguments)
        last = {"kind": "end"}
    except BaseException as error:
        last = {"kind": "error", "unit": None, **describe(error)}
    with contextlib.suppress(OSError):
        channel.send(last)
    os._exit(0)  # what the parent left in buffers and exit handlers is not this process's to run


def be_base(channel: Channel, module: str) -> None:
    """Import all that the scene `module` uses, forget the scene itself, and fork leaves that import it as it is."""
    began = time.time()
    # Compiled code carries a time stamp of whole seconds: what was saved just now could change again within it.
    sys.dont_write_bytecode = _seconds_since_save() < 3
    with contextlib.suppress(Exception):  # a mistake in the sources is the leaf's to report
        importlib.import_module("scripts.pipeline.preview.tasks")
        importlib.import_module(module)
    folder = module.rpartition(".")[0]
    for name in [name for name in sys.modules if name.rpartition(".")[0] == folder and not _is_package(name)]:
        if name != "scenes.series":  # the registry is one for all
            del sys.modules[name]
    sys.dont_write_bytecode = True
    _note_imports(began)
    channel.send({"kind": "files", "files": list(_imported)})
    serve(channel)


def be_leaf(channel: Channel, task: str, *arguments: Any) -> None:
    """Do one task of the module `tasks`; end at once when the server does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=_end_with_server, args=(channel,), daemon=True).start()
    began = time.time()
    do: Callable[..., None] = getattr(importlib.import_module("scripts.pipeline.preview.tasks"), task)
    try:
        do(channel, began, *arguments)
    finally:
        _note_imports(began)
        channel.send({"kind": "files", "files": list(_imported)})


def _end_with_server(channel: Channel) -> None:
    channel.receive()  # nothing is ever sent to a leaf
    os.killpg(0, signal.SIGKILL)


def is_as_saved(began: float) -> bool:
    """Return whether the code in this process, whose imports began then, is still what its files hold."""
    _note_imports(began)
    return all(Path(file).exists() and Path(file).stat().st_mtime <= since for file, since in _imported.items())


def _note_imports(began: float) -> None:
    """Note the project files that have been imported since `began`; those of the base keep its time."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for file in files:
        if is_ours(file):
            _imported.setdefault(str(file), began)


def _seconds_since_save() -> float:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return time.time() - max((file.stat().st_mtime for file in files), default=0.0)


def _is_package(name: str) -> bool:
    return hasattr(sys.modules[name], "__path__")


def main() -> None:
    """Be the root; the arguments are the address of the server's socket and the name to greet it with."""
    os.setpgid(0, 0)  # Ctrl-C is the server's to answer
    channel = Channel(*sys.argv[1:3])
    for name in LIBRARIES:
        importlib.import_module(name)
    channel.send({"kind": "ready"})
    serve(channel)

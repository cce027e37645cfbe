"""The server of the live page: files of the page, pictures and videos, events, and what the page asks for."""

import asyncio
import contextlib
import json
import signal
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from scripts.pipeline.preview.guard import Guard
from scripts.pipeline.preview.mistakes import ROOT
from scripts.pipeline.preview.studio import Studio
from scripts.pipeline.preview.view import View
from scripts.pipeline.preview.watcher import saves
from scripts.pipeline.quality import QUALITIES
from scripts.pipeline.units import VIDEO

PAGE = Path(__file__).parent / "page"
FONTS = ROOT / "scenes" / "kit" / "fonts"
THEMES = ("dark", "light")
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # what has a name of its own never changes
NEVER = {"Cache-Control": "no-store"}


def serve(
    view: View, *, out: Path, renders: int, port: int = 0, open_page: bool = True, say: Callable[[str], None]
) -> None:
    """Serve the live page of a topic until Ctrl-C.

    Args:
        view: what is looked at first.
        out: folder for exported GIFs.
        renders: how many units may be rendered at a time.
        port: 0 = any free one.
        open_page: in the browser.
        say: is told the address.

    Raises:
        OSError: the port is not free.
    """
    with socket.socket(socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()  # from here on a page may call, though it is answered a little later
        asyncio.run(_serve(Studio(view, out, renders), listening, open_page, say))


async def _serve(studio: Studio, listening: socket.socket, open_page: bool, say: Callable[[str], None]) -> None:
    port = listening.getsockname()[1]
    config = uvicorn.Config(application(studio, port), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = _Server(config)
    watching = asyncio.create_task(_watch(studio))
    studio.begin()
    address = f"http://127.0.0.1:{port}/"
    say(address)
    if open_page:
        opening = asyncio.create_task(asyncio.to_thread(webbrowser.open, address))
        opening.add_done_callback(lambda task: task.exception())  # the address is printed anyway
    stopping = asyncio.create_task(_close_when_asked(studio, server))
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()
        stopping.cancel()
        await studio.close()


class _Server(uvicorn.Server):
    """Ends quietly when it is told to: uvicorn's own would pass the signal on before the workers have ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(name, self.handle_exit, name, None)
        yield


async def _watch(studio: Studio) -> None:
    async for files in saves(studio.view.module):
        studio.saved(files)


async def _close_when_asked(studio: Studio, server: uvicorn.Server) -> None:
    """Close the streams of events as soon as the server is to end: it waits for them."""
    while not server.should_exit:
        await asyncio.sleep(0.1)
    studio.hang_up()


def application(studio: Studio, port: int) -> Starlette:
    """Return the ASGI application for one preview."""
    answers = {
        "events": _events,
        "facts/{unit}": _facts,
        "still/{name}": _still,
        "video/{folder}": _video,
        "gif/{name}": _gif,
    }
    asks = {"watch": _watch_moment, "choose": _choose, "export": _export}
    routes = [Route("/", partial(_page, studio))]
    routes += [Route(f"/{path}", partial(answer, studio)) for path, answer in answers.items()]
    routes += [Route(f"/{path}", partial(ask, studio), methods=["POST"]) for path, ask in asks.items()]
    mounts = [Mount("/page", StaticFiles(directory=PAGE)), Mount("/fonts", StaticFiles(directory=FONTS))]
    return Starlette(routes=[*routes, *mounts], middleware=[Middleware(Guard, port=port)])


async def _page(studio: Studio, request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers=NEVER)


async def _events(studio: Studio, request: Request) -> Response:
    listener = studio.listen()

    async def stream() -> AsyncIterator[str]:
        try:
            async for still in listener.news():
                yield f"event: state\ndata: {json.dumps(studio.state())}\n\n"
                if still is not None:
                    yield f"event: still\ndata: {json.dumps(still)}\n\n"
        finally:
            studio.unlisten(listener)

    return StreamingResponse(stream(), media_type="text/event-stream", headers=NEVER)


async def _facts(studio: Studio, request: Request) -> Response:
    unit = studio.units.get(request.path_params["unit"])
    if unit is None:
        raise HTTPException(404)
    return JSONResponse(unit.facts, headers=NEVER)


async def _still(studio: Studio, request: Request) -> Response:
    picture = studio.stills.get(request.path_params["name"])
    if picture is None:
        raise HTTPException(404)
    return Response(picture, media_type="image/png", headers=FOREVER)


async def _video(studio: Studio, request: Request) -> Response:
    name = request.path_params["folder"]
    folder = next((u.folder for u in studio.units.values() if u.folder is not None and u.folder.name == name), None)
    if folder is None or not (folder / VIDEO).is_file():
        raise HTTPException(404)
    return FileResponse(folder / VIDEO, media_type="video/mp4", headers=FOREVER)


async def _gif(studio: Studio, request: Request) -> Response:
    files = studio.gif["files"] if studio.gif is not None else []
    path = next((file["path"] for file in files if file["name"] == request.path_params["name"]), None)
    if path is None or not Path(path).is_file():
        raise HTTPException(404)
    return FileResponse(path, headers=NEVER)


async def _watch_moment(studio: Studio, request: Request) -> Response:
    asked = await _asked(request, unit=str, time=float | int, draw=bool)
    studio.watch(asked["unit"], float(asked["time"]), draw=asked["draw"])
    return JSONResponse({"generation": studio.generation})


async def _choose(studio: Studio, request: Request) -> Response:
    asked = await _asked(request, theme=str, quality=str, settings=list)
    settings = tuple(map(str, asked["settings"]))
    if asked["theme"] not in THEMES or asked["quality"] not in QUALITIES:
        raise HTTPException(400, f"theme is one of {', '.join(THEMES)}, quality one of {', '.join(QUALITIES)}")
    studio.choose(theme=asked["theme"], quality=asked["quality"], settings=settings)
    return JSONResponse({"generation": studio.generation})


async def _export(studio: Studio, request: Request) -> Response:
    asked = await _asked(request, unit=str)
    if not studio.export(asked["unit"]):
        raise HTTPException(409, "a GIF is being made, or there is no such chapter")
    return JSONResponse({})


async def _asked(request: Request, **kinds: Any) -> dict[str, Any]:
    """Return the JSON object of a request, which must have exactly these fields."""
    try:
        asked = await request.json()
    except ValueError as error:
        raise HTTPException(400, "the body must be JSON") from error
    if not isinstance(asked, dict) or asked.keys() != kinds.keys():
        raise HTTPException(400, f"the fields must be {', '.join(kinds)}")
    wrong = [name for name, kind in kinds.items() if not isinstance(asked[name], kind)]
    if wrong:
        raise HTTPException(400, f"of the wrong kind: {', '.join(wrong)}")
    return asked

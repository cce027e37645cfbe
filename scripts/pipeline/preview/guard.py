"""Keeps other web sites out: a page on the internet may send requests to this machine, and a name may point to it."""

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Answers requests that this machine's own page makes, or a program on this machine, and refuses all others.

    The Host header must name this server (against DNS rebinding), Origin and Sec-Fetch-Site must not name another
    site (against requests forged by one).
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reason = self._refusal(Headers(scope=scope), scope["method"])
        if reason is not None:
            await PlainTextResponse(f"refused: {reason}\n", 403)(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, method: str) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self.hosts:
            return f"the host must be one of {', '.join(sorted(self.hosts))}, got {host!r}"
        if origin is not None and origin.removeprefix("http://") not in self.hosts:
            return f"requests from {origin} are not answered"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "requests from other sites are not answered"
        if method not in ("GET", "HEAD") and headers.get("content-type") != "application/json":
            return "a request that changes something must be application/json"
        return None

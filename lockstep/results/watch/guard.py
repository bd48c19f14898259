"""Who may read the page: a check of each request, before anything else sees it.

Any web page that the same browser has open can reach a page on loopback. Three things keep it out. The `Host` header
has to be one that leads here, since a name of an attacker's may resolve to 127.0.0.1 (DNS rebinding). No answer allows
another origin to read it. And nothing is computed for another site: browsers report where a request comes from. For any
address but loopback, the path begins with a random token.
"""

import hmac
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Nothing from elsewhere, no script or style in the page itself. A notebook on this machine may show it in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

#: Most bytes of a request's body: a drawing takes some thousand.
MOST_BODY_BYTES = 64 * 1024

#: Requests that are answered in `WINDOW_S` seconds, from all clients together; more are refused.
MOST_REQUESTS, WINDOW_S = 2000, 10.0


@dataclass
class RequestLimit:
    """At most so many requests within the last seconds."""

    most: int = MOST_REQUESTS
    window_s: float = WINDOW_S
    _times: deque[float] = field(default_factory=deque)

    def allows(self, now: float) -> bool:
        """Count a request; return whether it may be answered."""
        while self._times and self._times[0] <= now - self.window_s:
            self._times.popleft()
        if len(self._times) >= self.most:
            return False
        self._times.append(now)
        return True


@dataclass
class Guard:
    """An application behind its checks."""

    app: ASGIApp
    #: Names, each with its port, by which a browser may call us.
    hosts: frozenset[str]
    now: Callable[[], float]
    #: What the path begins with, empty if none is needed.
    token: str = ""
    limit: RequestLimit = field(default_factory=RequestLimit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Neither web sockets nor anything else is served; the lifespan is the application's own.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app(self._inner(scope), _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        host = Headers(scope=scope).get("host", "").lower()
        if host not in self.hosts:
            return _refused(421, f"this page is at {' or '.join(sorted(self.hosts))}, and not at the host of this link")
        if not self.limit.allows(self.now()):
            return _refused(429, "too many requests: expected fewer; try again in some seconds")
        origin = Headers(scope=scope).get("sec-fetch-site", "none")
        if "/api/" in scope["path"] and origin not in ("same-origin", "none"):
            return _refused(403, "only the page itself may ask for this")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refused(405, "nothing can be changed here")
        if self.token and not self._has_token(scope["path"]):
            return _refused(403, "this link lacks the token, or has a wrong one: use the link that was printed")
        if self.token and scope["path"] == f"/{self.token}":
            # Without the last slash, what the page asks for would not be below it.
            return RedirectResponse(f"/{self.token}/")
        return None

    def _has_token(self, path: str) -> bool:
        first = path[1:].partition("/")[0]
        return hmac.compare_digest(first.encode("utf-8", "replace"), self.token.encode())

    def _inner(self, scope: Scope) -> Scope:
        """Return the request without the token."""
        if not self.token:
            return scope
        prefix = f"/{self.token}"
        path = scope["path"].removeprefix(prefix) or "/"
        return {**scope, "path": path, "raw_path": path.encode(), "root_path": ""}


def _refused(code: int, text: str) -> PlainTextResponse:
    return PlainTextResponse(f"{text}\n", status_code=code)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return sending


def _limited(receive: Receive) -> Receive:
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > MOST_BODY_BYTES:
            raise HTTPException(413, "the request is too long: expected a drawing\n")
        return message

    return receiving

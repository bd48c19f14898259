"""The check of each request for the page, before anything else sees it.

Any web page that the same browser has open can reach a page on loopback. Three things keep it out. The `Host` header
has to be one that leads here, since a name of an attacker's may resolve to 127.0.0.1 (DNS rebinding). No answer allows
another origin to read it. And nothing is computed for another site: browsers report where a request comes from. If
another machine may reach the page, the path begins with a random token.

Refused requests are not counted. So those who may ask are never kept out by the requests of those who may not.
"""

import hmac
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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

#: Requests of one client that are answered in `WINDOW_S` seconds; more are refused. And most clients that are counted.
MOST_REQUESTS, WINDOW_S = 2000, 10.0
MOST_CLIENTS = 1000

#: A browser's mark of a request that comes from the page itself, or from a typed address.
OWN_SITES = ("same-origin", "none")


@dataclass
class RequestLimit:
    """At most so many requests of each client within the last seconds."""

    most: int = MOST_REQUESTS
    window_s: float = WINDOW_S
    #: By client, the one that asked last at the end.
    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def allows(self, client: str, now: float) -> bool:
        """Count a request of a client; return whether it may be answered."""
        times = self._times.setdefault(client, deque())
        self._times.move_to_end(client)
        if len(self._times) > MOST_CLIENTS:
            self._times.popitem(last=False)
        while times and times[0] <= now - self.window_s:
            times.popleft()
        if len(times) >= self.most:
            return False
        times.append(now)
        return True


@dataclass
class Guard:
    """An application behind its checks."""

    app: ASGIApp
    #: Names, each with its port, by which a browser may call us.
    hosts: frozenset[str]
    now: Callable[[], float]
    #: The begin of the path, empty if none is needed.
    token: str = ""
    limit: RequestLimit = field(default_factory=RequestLimit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Neither web sockets nor anything else is served; the application handles its lifespan itself.
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, _with_headers(send))
            return
        await self.app({**scope, **self._below(scope["path"])}, _limited(receive), _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if headers.get("host", "").lower() not in self.hosts:
            return _refused(421, f"this page is at {' or '.join(sorted(self.hosts))}, and not at the host of this link")
        if self.token and not self._has_token(path):
            return _refused(403, "this link lacks the token, or has a wrong one: use the link that was printed")
        site = headers.get("sec-fetch-site", "none")
        if self._below(path)["path"].startswith("/api/") and site not in OWN_SITES:
            return _refused(403, "only the page itself may ask for this")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return _refused(405, "nothing can be changed here")
        # Another site may open the page, and so it is counted by itself.
        if not self.limit.allows(f"{client_of(scope)} {site in OWN_SITES}", self.now()):
            return _refused(429, "too many requests: expected fewer; try again in some seconds")
        if self.token and path == f"/{self.token}":
            # Without the last slash, what the page asks for would not be below it.
            return RedirectResponse(f"/{self.token}/")
        return None

    def _has_token(self, path: str) -> bool:
        first = path[1:].partition("/")[0]
        return hmac.compare_digest(first.encode("utf-8", "replace"), self.token.encode())

    def _below(self, path: str) -> Mapping[str, Any]:
        """Return the path of a request without the token, as a scope has it."""
        if not self.token:
            return {"path": path}
        inner = path.removeprefix(f"/{self.token}") or "/"
        return {"path": inner, "raw_path": inner.encode("utf-8", "replace"), "root_path": ""}


def client_of(scope: Scope) -> str:
    """Return the address that a request comes from, of a proxy's client if we trust the proxy; empty if unknown."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _refused(code: int, text: str) -> PlainTextResponse:
    # A refused browser does not keep its connection.
    return PlainTextResponse(f"{text}\n", status_code=code, headers={"Connection": "close"})


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

"""Serves the pages of runs, reads their files when it is asked, and keeps what a server says of its run up to date.

Connections cost little: there are limits in time and in number for browsers that connect and ask for nothing, or do not
read. uvicorn limits how long a connection may be idle after an answer, but not before the first request, nor how long a
request may take to come. It refuses all alike once there are too many connections."""

import asyncio
import hashlib
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from lockstep.common.errors import AddressError, LockstepError, RemoteProtocolError, UsageError
from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.address import TcpAddress, parse
from lockstep.common.transport.auth.keys import read_ours
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.client import SILENCE_S, StatusClient
from lockstep.launch.endpoints import credential_of
from lockstep.results.evaluation.model_answers import ModelAnswers
from lockstep.results.evaluation.pictures import FIELD
from lockstep.results.watch.figures import exposition
from lockstep.results.watch.guard import Guard
from lockstep.results.watch.run_files import NOWHERE, curves
from lockstep.results.watch.run_view import RunView
from lockstep.results.watch.sources import ONLY, WatchedRuns

#: Seconds in which a request has to come whole, from the begin of its connection or the end of the answer before it;
#: and in which a browser has to take what it is sent.
REQUEST_S, READ_S = 10.0, 20.0

#: Most connections that wait for a request. One more ends another: the oldest of the client that has most of them.
MOST_WAITING = 128


class LimitedConnection(H11Protocol):
    """One connection of a browser."""

    #: When it began to wait for a request, by the loop's clock; None while one is answered.
    waits_since: float | None = None
    _request_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's has it
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once a request is whole."""
        super().data_received(data)
        self._note_request()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._wait()
        super().on_response_complete()
        # It may have come together with the one before.
        self._note_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget all timers."""
        self._end_wait()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the browser time to read what it was sent."""
        super().pause_writing()
        self._read_timer = self._read_timer or self.loop.call_later(READ_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the browser has read."""
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None
        super().resume_writing()

    def _note_request(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body:
            self._end_wait()

    def _wait(self) -> None:
        self._end_wait()
        self.waits_since = self.loop.time()
        self._request_timer = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _end_wait(self) -> None:
        self.waits_since = None
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _make_room(self) -> None:
        waiting: list[Any] = [one for one in self.connections if getattr(one, "waits_since", None) is not None]
        if len(waiting) <= MOST_WAITING:
            return
        ((busiest, _),) = Counter(_host(one) for one in waiting).most_common(1)
        oldest = min((one for one in waiting if _host(one) == busiest), key=lambda one: one.waits_since)
        oldest.transport.abort()


def _host(connection: H11Protocol) -> str:
    return connection.client[0] if connection.client is not None else ""


#: The folder of the page, and the files that a browser may ask for next to `index.html`.
PAGE = Path(__file__).parent / "page"
FILES = frozenset(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.*") if path.name != "index.html")

#: Most places of a curve.
MOST_POINTS = 4000

#: Models whose answers are asked for at the same time, at most; one is computed, the others wait.
MOST_ASKED = 4


@dataclass
class WatchApp:
    """One page server."""

    source: WatchedRuns
    now: Callable[[], float]
    #: Whether only the figures for Prometheus are served.
    is_metrics_only: bool = False
    _asked: int = 0
    #: Of the run whose model was asked last: each holds its data.
    _model: ModelAnswers | None = None

    def asgi(self) -> Starlette:
        """Return the application without its guard."""
        routes = [Route("/metrics", self.metrics)]
        if not self.is_metrics_only:
            routes += [
                Route("/", self.page),
                Route("/page/{name:path}", self.file),
                Route("/api/source", self.what),
                Route("/api/runs", self.runs),
                Route("/api/runs/{run}/facts", self.facts),
                Route("/api/runs/{run}/snapshot", self.snapshot),
                Route("/api/runs/{run}/curves", self.curves),
                Route("/api/runs/{run}/evaluation", self.evaluation),
                Route("/api/runs/{run}/drawing", self.drawing),
                Route("/api/runs/{run}/answer", self.answer, methods=["POST"]),
            ]
        return Starlette(routes=routes, exception_handlers={LockstepError: _on_error})

    # The page

    async def page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def file(self, request: Request) -> Response:
        if request.path_params["name"] not in FILES:
            raise _refusal(404, "no such file")
        return FileResponse(PAGE / request.path_params["name"])

    async def what(self, request: Request) -> Response:
        """Tell whether one run is watched, or many."""
        self.source.decide()
        folder = "" if self.source.folder == NOWHERE else str(self.source.folder)
        run = None if self.source.is_many else ONLY
        return _json({"is_many": self.source.is_many, "run": run, "folder": folder})

    async def runs(self, request: Request) -> Response:
        return _json(await anyio.to_thread.run_sync(self.source.listing))

    # One run

    async def _view(self, name: str, missing: str = "no such run") -> RunView:
        view = await anyio.to_thread.run_sync(self.source.view, name, self.now())
        if view is None:
            raise _refusal(404, missing)
        return view

    async def facts(self, request: Request) -> Response:
        view = await self._view(request.path_params["run"])
        with view.lock:
            return _json(view.facts())

    async def snapshot(self, request: Request) -> Response:
        """Return the snapshot of a run; nothing to a browser that has it already, as it asks several times a second."""
        view = await self._view(request.path_params["run"])
        content = view.encoded_snapshot()
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(content, media_type="application/json", headers={"ETag": tag})

    async def curves(self, request: Request) -> Response:
        view = await self._view(request.path_params["run"])
        try:
            asked = request.query_params
            first, last = float(asked.get("first", "-inf")), float(asked.get("last", "inf"))
            points = min(int(asked.get("points", "800")), MOST_POINTS)
        except ValueError:
            raise _refusal(400, "first, last and points: expected numbers") from None
        with view.lock:
            found = curves(view.files.metrics.steps, first, last, points)
            return _json({**found, "is_whole": view.is_whole})

    # Its model

    async def _asked_of(self, view: RunView, question: Callable[[ModelAnswers], dict[str, Any]]) -> Response:
        folder = view.files.folder
        if self._model is None or self._model.folder != folder:
            self._model = ModelAnswers(folder)
        if self._asked >= MOST_ASKED:
            raise _refusal(429, "the model is busy: try again in a moment")
        self._asked += 1
        try:
            return _json(await anyio.to_thread.run_sync(question, self._model))
        finally:
            self._asked -= 1

    async def evaluation(self, request: Request) -> Response:
        return await self._asked_of(await self._view(request.path_params["run"]), ModelAnswers.evaluation)

    async def drawing(self, request: Request) -> Response:
        """Tell whether the model can be shown a drawing, and what its classes are called."""
        return await self._asked_of(await self._view(request.path_params["run"]), ModelAnswers.drawing)

    async def answer(self, request: Request) -> Response:
        """Return what the model sees in a drawing: gray values of 28 by 28 pixels, from 0 to 255."""
        view = await self._view(request.path_params["run"])
        body = await request.body()
        if len(body) != FIELD * FIELD:
            raise _refusal(400, f"a drawing of {len(body)} bytes: expected {FIELD * FIELD}, a byte per pixel")
        pixels = np.frombuffer(body, np.uint8).reshape(FIELD, FIELD) / 255.0
        return await self._asked_of(view, lambda model: model.probabilities(pixels))

    # For Prometheus

    async def metrics(self, request: Request) -> Response:
        missing = "metrics are those of one run: expected its folder, as `lockstep watch runs/NAME`"
        view = await self._view(ONLY, missing)
        with view.lock:
            snapshot, totals = view.snapshot(), view.totals()
        return Response(exposition(snapshot, totals), media_type=CONTENT_TYPE_LATEST)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _refusal(code: int, text: str) -> HTTPException:
    return HTTPException(code, f"{text}\n")


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer what cannot be done: the page shows the text."""
    return PlainTextResponse(f"{error}\n", status_code=409)


#: Seconds to wait for the answer of a server, and until the next question.
ASK_S = 1.0

#: Seconds in which a thread that asks a server ends at most, once it is to.
ENDS_S = 2.0 * ASK_S

#: Seconds that answers have at the end.
GRACE_S = 1

#: Most connections at the same time: those that are answered, and those that wait.
MOST_CONNECTIONS = 600

#: Names of this machine by which a browser on it may call.
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

#: The longest line of a status.
MOST_STATUS_BYTES = 2**21


def parse_place(text: str) -> TcpAddress:
    """Return the address that HOST:PORT, or PORT alone, names; `UsageError` if it is malformed."""
    try:
        address = parse(f"tcp://{text}" if ":" in text else f"tcp://127.0.0.1:{text}")
    except AddressError:
        raise UsageError(f"{text!r} is not a valid address: expected HOST:PORT or PORT, as 127.0.0.1:8000") from None
    assert isinstance(address, TcpAddress)
    return address


def listen(place: TcpAddress) -> socket.socket:
    """Return a socket that listens there; `UsageError` if the port is in use, or the address is not ours."""
    family = socket.AF_INET6 if place.is_ipv6 else socket.AF_INET
    try:
        return socket.create_server((place.host, place.port), family=family, backlog=128)
    except OSError as error:
        # Without the address, which `create_server` adds in its own way.
        reason = str(error.strerror).partition(" (while")[0]
        host = _bracketed(place.host)
        raise UsageError(
            f"cannot listen on {host}:{place.port}: {reason}: choose another port, as --listen {host}:0 for any that "
            "is free"
        ) from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@dataclass
class PageServer:
    """Serves one source of runs."""

    source: WatchedRuns
    place: TcpAddress
    is_metrics_only: bool = False
    #: The token in the link; by default a new one, and none if only this machine can reach us.
    token: str = ""
    #: By which browsers reach us, if that is another place: a proxy's, or one outside of a container.
    published: TcpAddress | None = None

    @property
    def is_reachable(self) -> bool:
        """True if other machines may reach us: directly, or by way of a proxy, as of a container."""
        return not self.place.is_loopback or self.published is not None

    def secret(self) -> str:
        """Return the token of the link, empty if none is needed; by default a new one each time."""
        return self.token or (secrets.token_urlsafe(24) if self.is_reachable else "")

    def run(self, say: Callable[[str], None]) -> None:
        """Say the link, and serve until SIGINT or SIGTERM."""
        with listen(self.place) as listening:
            port = listening.getsockname()[1]
            token = self.secret()
            names = [_bracketed(self.place.host)] if self.place.is_loopback else _names_of(self.place)
            hosts = {f"{name.lower()}:{port}" for name in (*LOOPBACK, *names)}
            shown = f"{_named(self.place)}:{port}"
            if self.published is not None:
                shown = f"{_bracketed(self.published.host)}:{self.published.port}"
                # Browsers leave out the port that is usual.
                hosts |= {shown.lower(), _bracketed(self.published.host).lower()}
            clock = SystemClock()
            app = WatchApp(self.source, clock.now, is_metrics_only=self.is_metrics_only)
            guard = Guard(app.asgi(), frozenset(hosts), clock.now, token)
            config = uvicorn.Config(
                guard,
                http=LimitedConnection,
                ws="none",
                log_level="error",
                access_log=False,
                server_header=False,
                # Only a proxy of ours may say for whom it asks: otherwise, every process here could.
                proxy_headers=self.published is not None,
                timeout_graceful_shutdown=GRACE_S,
                limit_concurrency=MOST_CONNECTIONS,
            )
            page = "metrics" if self.is_metrics_only else ""
            say(f"http://{shown}/{f'{token}/' if token else ''}{page}")
            asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))


def _named(place: TcpAddress) -> str:
    return socket.gethostname() if place.host in ("0.0.0.0", "::") else _bracketed(place.host)


def _names_of(place: TcpAddress) -> list[str]:
    """Return the names by which other machines may call us."""
    names = {_bracketed(place.host), _named(place), socket.gethostname(), socket.getfqdn()}
    with suppress(OSError):
        names.update(socket.gethostbyname_ex(socket.gethostname())[2])
    return sorted(names)


# What the server of the run says


def read_statuses(source: WatchedRuns) -> None:
    """Take statuses from lines of standard input, as `train` writes them to its page; end this process with it."""
    while line := sys.stdin.buffer.readline(MOST_STATUS_BYTES):
        with suppress(msgspec.MsgspecError):
            source.status = msgspec.json.decode(line, type=Status)
    os.kill(os.getpid(), signal.SIGTERM)


def ask_statuses(source: WatchedRuns, address: str, key: Path | None, is_over: threading.Event) -> None:
    """Ask the server of a run for its status, every one or two seconds, until `is_over` is set."""
    clock = SystemClock()
    with closing(StatusClient(dial(address, credential=credential_of(key, None)), clock)) as run:
        heard = clock.now()
        while not is_over.is_set():
            answer = None
            with suppress(RemoteProtocolError):  # a server of another version may listen there by now
                answer = run.ask(ASK_S)
            if answer is not None:
                heard = clock.now()
                source.take(answer, heard)
            elif clock.now() > heard + SILENCE_S:
                source.status = None
            is_over.wait(ASK_S)


def read_token(path: Path) -> str:
    """Return the token in a file of ours that no other user can read; `UsageError` if it is not fit to be one."""
    token = read_ours(path, forbidden=0o077).strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{16,200}", token):
        raise UsageError(
            f"{str(path)!r} does not hold a token: expected 16 to 200 letters, digits, - and _, as printed by "
            "`openssl rand -hex 24`"
        )
    return token

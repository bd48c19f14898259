"""The pages, and what they ask for: reads runs, and changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from lockstep.common.errors import LockstepError
from lockstep.results.evaluation.model_answers import ModelAnswers
from lockstep.results.evaluation.pictures import FIELD
from lockstep.results.watch.curves import curves
from lockstep.results.watch.exposition import exposition
from lockstep.results.watch.guard import client_of
from lockstep.results.watch.run_view import RunView
from lockstep.results.watch.sources import ONLY, WatchedRuns

#: Where the page is, and what a browser may ask for next to `index.html`.
PAGE = Path(__file__).parent / "page"
FILES = frozenset(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.*") if path.name != "index.html")

#: Seconds between two looks at a run's files, and at least between two messages to a browser.
LOOK_S, SEND_S = 0.15, 0.25

#: Seconds without a message after which one says that all is well, and in which a browser has to take one.
PING_S, SEND_TIMEOUT_S = 15.0, 20.0

#: Most browsers that are kept informed, of one client and of all, and places of a curve.
MOST_STREAMS_EACH, MOST_STREAMS, MOST_POINTS = 50, 200, 4000

#: Models whose answers are asked for at the same time, at most; one is computed, the others wait.
MOST_ASKED = 4


@dataclass
class WatchApp:
    """One page server."""

    source: WatchedRuns
    now: Callable[[], float]
    #: Whether only the figures for Prometheus are served.
    is_metrics_only: bool = False
    #: Set when the process ends, so that streams end too.
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    #: The clients of streams that are open, each as long as somebody holds its stream.
    _streams: WeakKeyDictionary[AsyncIterator[dict[str, str]], str] = field(default_factory=WeakKeyDictionary)
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
                Route("/api/runs/{run}/live", self.live),
                Route("/api/runs/{run}/evaluation", self.evaluation),
                Route("/api/runs/{run}/drawing", self.drawing),
                Route("/api/runs/{run}/answer", self.answer, methods=["POST"]),
            ]
        return Starlette(routes=routes, lifespan=self.lifespan, exception_handlers={LockstepError: _on_error})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Follow the runs' files for as long as the server lives."""
        task = asyncio.create_task(self.follow())
        try:
            yield
        finally:
            self.is_over.set()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def follow(self) -> None:
        """Look at the files of the runs that are shown, again and again."""
        if not self.source.is_many:
            self.source.view(ONLY, self.now())
        while True:
            has_more = False
            for view in self.source.open_views(self.now()):
                has_more |= await anyio.to_thread.run_sync(self.source.refresh, view, self.now())
            await asyncio.sleep(0.0 if has_more else LOOK_S)

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
        folder = None if self.source.folder is None else str(self.source.folder)
        return _json({"is_many": self.source.is_many, "run": None if self.source.is_many else ONLY, "folder": folder})

    async def runs(self, request: Request) -> Response:
        return _json(await anyio.to_thread.run_sync(self.source.listing))

    # One run

    async def _view(self, name: str, missing: str = "no such run") -> RunView:
        view = self.source.view(name, self.now())
        if view is None:
            raise _refusal(404, missing)
        if not view.version:
            # It has just been opened: after a moment, what is small is there at once.
            await anyio.to_thread.run_sync(self.source.refresh, view, self.now())
        return view

    async def facts(self, request: Request) -> Response:
        view = await self._view(request.path_params["run"])
        with view.lock:
            return _json(view.facts())

    async def snapshot(self, request: Request) -> Response:
        view = await self._view(request.path_params["run"])
        return Response(view.encoded_snapshot(), media_type="application/json")

    async def curves(self, request: Request) -> Response:
        view = await self._view(request.path_params["run"])
        try:
            asked = request.query_params
            first, last = float(asked.get("first", "-inf")), float(asked.get("last", "inf"))
            points = min(int(asked.get("points", "800")), MOST_POINTS)
        except ValueError:
            raise _refusal(400, "first, last and points: expected numbers") from None
        with view.lock:
            found = curves(view.metrics.steps, first, last, points)
            return _json({**found, "is_whole": view.is_whole})

    async def live(self, request: Request) -> Response:
        """Stream the snapshots of a run."""
        name = request.path_params["run"]
        view = await self._view(name)
        client, open_ones = client_of(request.scope), list(self._streams.values())
        for most, count in ((MOST_STREAMS_EACH, open_ones.count(client)), (MOST_STREAMS, len(open_ones))):
            if count >= most:
                raise _refusal(503, f"{most} pages are open already: expected at most as many; close one")
        snapshots = self._snapshots_of(name, view)
        self._streams[snapshots] = client
        return EventSourceResponse(snapshots, ping=int(PING_S), send_timeout=SEND_TIMEOUT_S)

    async def _snapshots_of(self, name: str, view: RunView) -> AsyncIterator[dict[str, str]]:
        sent = -1
        while not self.is_over.is_set():
            if view.version != sent:
                sent = view.version
                yield {"event": "snapshot", "data": view.encoded_snapshot().decode()}
            with suppress(TimeoutError):
                await asyncio.wait_for(self.is_over.wait(), SEND_S)
            # Somebody still looks at it.
            self.source.view(name, self.now())

    # Its model

    async def _asked_of(self, view: RunView, question: Callable[[ModelAnswers], dict[str, Any]]) -> Response:
        if self._model is None or self._model.folder != view.folder:
            self._model = ModelAnswers(view.folder)
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
        return Response(exposition(await self._view(ONLY, missing)), media_type=CONTENT_TYPE_LATEST)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _refusal(code: int, text: str) -> HTTPException:
    return HTTPException(code, f"{text}\n")


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer what cannot be done: the page shows the text."""
    return PlainTextResponse(f"{error}\n", status_code=409)

"""The pages, and what they ask for: reads runs, and changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lockstep.common.errors import LockstepError
from lockstep.results.evaluation.predictions import FIELD
from lockstep.results.watch.curves import curves
from lockstep.results.watch.exposition import CONTENT_TYPE, exposition
from lockstep.results.watch.guard import BodyTooLongError
from lockstep.results.watch.model_answers import ModelAnswers
from lockstep.results.watch.run_view import RunView
from lockstep.results.watch.sources import ONLY, WatchedRuns

#: The files of the page, by what a browser asks for.
PAGE = Path(__file__).parent / "page"
FILES: Mapping[str, str] = {
    "watch.js": "text/javascript",
    "draw.js": "text/javascript",
    "charts.js": "text/javascript",
    "timeline.js": "text/javascript",
    "watch.css": "text/css",
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
    "uPlot.LICENSE": "text/plain",
}

#: Seconds between two looks at a run's files, and at least between two messages to a browser.
LOOK_S, SEND_S = 0.15, 0.25

#: Seconds without a message after which one says that all is well, and in which a browser has to take one.
PING_S, SEND_TIMEOUT_S = 15.0, 20.0

#: Most browsers that are kept informed, and places of a curve.
MOST_STREAMS, MOST_POINTS = 100, 4000

#: Models whose answers are asked for at the same time, at most; one is computed, the others wait.
MOST_ASKED = 4


@dataclass(eq=False)
class _Stream:
    """A browser that is kept informed of a run."""

    name: str
    view: RunView


@dataclass
class WatchApp:
    """One page server."""

    source: WatchedRuns
    now: Callable[[], float]
    #: Whether only the figures for Prometheus are served.
    is_metrics_only: bool = False
    #: Set when the process ends, so that streams end too.
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    #: The streams that are open, each as long as somebody holds it.
    _streams: WeakSet["_Stream"] = field(default_factory=WeakSet)
    _asked: int = 0
    #: Of the run whose model was asked last: each holds its data.
    _model: ModelAnswers | None = None

    def asgi(self) -> Starlette:
        """Return the application without its guard."""
        routes = [Route("/metrics", self.metrics)]
        if not self.is_metrics_only:
            routes += [
                Route("/", self.page),
                Route("/page/{name}", self.file),
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
        handlers: dict[Any, Any] = {LockstepError: _on_error, BodyTooLongError: _on_long_body}
        return Starlette(routes=routes, lifespan=self.lifespan, exception_handlers=handlers)

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
        return FileResponse(PAGE / "index.html", media_type="text/html")

    async def file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return _missing("no such file")
        return FileResponse(PAGE / name, media_type=FILES[name])

    async def what(self, request: Request) -> Response:
        """Tell whether one run is watched, or many."""
        self.source.decide()
        return JSONResponse({"is_many": self.source.is_many, "run": None if self.source.is_many else ONLY})

    async def runs(self, request: Request) -> Response:
        found = await anyio.to_thread.run_sync(self.source.briefs)
        return _json(found)

    # One run

    def _view(self, request: Request) -> RunView | None:
        return self.source.view(request.path_params["run"], self.now())

    async def _read(self, view: RunView) -> None:
        """Wait a moment for a run that has just been opened, so that what is small is there at once."""
        if not view.version:
            await anyio.to_thread.run_sync(self.source.refresh, view, self.now())

    async def facts(self, request: Request) -> Response:
        view = self._view(request)
        if view is None:
            return _missing("no such run")
        await self._read(view)
        with view.lock:
            return _json(view.facts())

    async def snapshot(self, request: Request) -> Response:
        view = self._view(request)
        if view is None:
            return _missing("no such run")
        await self._read(view)
        return Response(view.encoded_snapshot(), media_type="application/json")

    async def curves(self, request: Request) -> Response:
        view = self._view(request)
        if view is None:
            return _missing("no such run")
        try:
            first = float(request.query_params.get("first", "-inf"))
            last = float(request.query_params.get("last", "inf"))
            points = min(int(request.query_params.get("points", "800")), MOST_POINTS)
        except ValueError:
            return _refused("first, last and points: expected numbers")
        with view.lock:
            return _json(curves(view.metrics.steps, first, last, points))

    async def live(self, request: Request) -> Response:
        """Stream the snapshots of a run."""
        view = self._view(request)
        if view is None:
            return _missing("no such run")
        if len(self._streams) >= MOST_STREAMS:
            return PlainTextResponse(
                f"{MOST_STREAMS} pages are open already: expected at most as many; close one\n", status_code=503
            )
        stream = _Stream(request.path_params["run"], view)
        self._streams.add(stream)
        await self._read(view)
        return EventSourceResponse(self._snapshots_of(stream), ping=int(PING_S), send_timeout=SEND_TIMEOUT_S)

    async def _snapshots_of(self, stream: "_Stream") -> AsyncIterator[dict[str, str]]:
        view, sent = stream.view, -1
        while not self.is_over.is_set():
            if view.version != sent:
                sent = view.version
                yield {"event": "snapshot", "data": view.encoded_snapshot().decode()}
            with suppress(TimeoutError):
                await asyncio.wait_for(self.is_over.wait(), SEND_S)
            # Somebody still looks at it.
            self.source.view(stream.name, self.now())

    # Its model

    def _model_of(self, view: RunView) -> ModelAnswers:
        if self._model is None or self._model.folder != view.folder:
            self._model = ModelAnswers(view.folder)
        return self._model

    async def _asked_of(self, view: RunView, question: Callable[[ModelAnswers], dict[str, Any]]) -> Response:
        if self._asked >= MOST_ASKED:
            return PlainTextResponse("the model is busy: try again in a moment\n", status_code=429)
        self._asked += 1
        try:
            return _json(await anyio.to_thread.run_sync(question, self._model_of(view)))
        finally:
            self._asked -= 1

    async def evaluation(self, request: Request) -> Response:
        view = self._view(request)
        return _missing("no such run") if view is None else await self._asked_of(view, ModelAnswers.evaluation)

    async def drawing(self, request: Request) -> Response:
        """Tell whether the model can be shown a drawing, and what its classes are called."""
        view = self._view(request)
        return _missing("no such run") if view is None else await self._asked_of(view, ModelAnswers.drawing)

    async def answer(self, request: Request) -> Response:
        """Return what the model sees in a drawing: gray values of 28 by 28 pixels, from 0 to 255."""
        view = self._view(request)
        if view is None:
            return _missing("no such run")
        body = await request.body()
        if len(body) != FIELD * FIELD:
            return _refused(f"a drawing of {len(body)} bytes: expected {FIELD * FIELD}, a byte per pixel")
        pixels = np.frombuffer(body, np.uint8).reshape(FIELD, FIELD) / 255.0
        return await self._asked_of(view, lambda model: model.probabilities(pixels))

    # For Prometheus

    async def metrics(self, request: Request) -> Response:
        view = self.source.view(ONLY, self.now())
        if view is None:
            return _missing("metrics are those of one run: expected its folder, as `lockstep watch runs/NAME`")
        await self._read(view)
        return Response(exposition(view), media_type=CONTENT_TYPE)


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _missing(text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=404)


def _refused(text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=400)


async def _on_error(request: Request, error: Exception) -> Response:
    """Answer what cannot be done: the page shows the text."""
    return PlainTextResponse(f"{error}\n", status_code=409)


async def _on_long_body(request: Request, error: Exception) -> Response:
    return PlainTextResponse("the request is too long: expected a drawing\n", status_code=413)

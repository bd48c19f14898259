"""Connections that cost little: limits in time and in number for those who connect and ask for nothing, or do not read.

uvicorn limits how long a connection may be idle after an answer, but not before the first request, nor how long a
request may take to come. It refuses everybody alike once there are too many connections.
"""

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

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

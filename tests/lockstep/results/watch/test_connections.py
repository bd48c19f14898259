"""How long a connection may wait, and how many: in virtual time, over transports that send nothing."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the page is served by uvicorn: .venv/bin/pip install -e '.[watch]'")

import uvicorn
from uvicorn.server import ServerState

from lockstep.results.watch.serving import MOST_WAITING, READ_S, REQUEST_S, LimitedConnection

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


@dataclass
class Timer:
    due: float
    action: Callable[[], object]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Loop:
    """What a connection asks of an event loop, with time that moves only by `advance`."""

    seconds: float = 0.0
    timers: list[Timer] = field(default_factory=list)

    def time(self) -> float:
        return self.seconds

    def call_later(self, delay: float, action: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.seconds + delay, action))
        return self.timers[-1]

    def create_task(self, work: Coroutine[Any, Any, None]) -> "Task":
        work.close()
        return Task()

    def advance(self, seconds: float) -> None:
        self.seconds += seconds
        due = [timer for timer in self.timers if timer.due <= self.seconds and not timer.is_cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.action()


class Task:
    def add_done_callback(self, action: object) -> None:
        pass


@dataclass
class Transport:
    host: str
    is_open: bool = True

    def get_extra_info(self, name: str) -> Any:
        return (self.host, 5000) if name == "peername" else None

    def abort(self) -> None:
        self.is_open = False

    close = abort

    def is_closing(self) -> bool:
        return not self.is_open

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def write(self, data: bytes) -> None:
        pass


@dataclass
class Server:
    """Accepts connections in virtual time."""

    loop: Loop = field(default_factory=Loop)
    state: ServerState = field(default_factory=ServerState)
    config: uvicorn.Config = field(init=False)

    def __post_init__(self) -> None:
        self.config = uvicorn.Config(lambda: None, log_level="error", http=LimitedConnection)
        self.config.load()

    def connect(self, host: str = "10.0.0.1") -> tuple[LimitedConnection, Transport]:
        connection = LimitedConnection(self.config, self.state, {}, self.loop)  # type: ignore[arg-type]  # virtual
        transport = Transport(host)
        connection.connection_made(transport)  # type: ignore[arg-type]  # in memory
        return connection, transport

    def is_closed_after(self, transport: Transport, seconds: float) -> bool:
        """Tell whether a connection ends at that time, and not before."""
        self.loop.advance(seconds - 0.01)
        was_open = transport.is_open
        self.loop.advance(0.02)
        return was_open and not transport.is_open


def test_a_connection_that_asks_for_nothing_ends() -> None:
    server = Server()
    _, transport = server.connect()
    assert server.is_closed_after(transport, REQUEST_S)


def test_headers_that_come_byte_by_byte_win_no_time() -> None:
    server = Server()
    connection, transport = server.connect()
    for place in range(9):
        connection.data_received(REQUEST[place : place + 1])
        server.loop.advance(1.0)
    assert transport.is_open
    assert server.is_closed_after(transport, REQUEST_S - 9.0)


def test_a_body_has_no_more_time() -> None:
    server = Server()
    connection, transport = server.connect()
    connection.data_received(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 784\r\n\r\nsome")
    assert server.is_closed_after(transport, REQUEST_S)


def test_an_answer_may_take_long_and_then_the_next_request_has_its_time() -> None:
    server = Server()
    connection, transport = server.connect()
    server.loop.advance(1.0)
    connection.data_received(REQUEST)
    server.loop.advance(100.0 * REQUEST_S)
    assert transport.is_open
    connection.cycle.response_complete = True
    connection.on_response_complete()
    connection.data_received(REQUEST[:5])
    assert server.is_closed_after(transport, REQUEST_S)


def test_a_browser_that_does_not_read_is_disconnected_and_one_that_does_is_not() -> None:
    server = Server()
    (slow, ended), (quick, kept) = server.connect(), server.connect()
    for connection in (slow, quick):
        connection.data_received(REQUEST)
        connection.pause_writing()
    server.loop.advance(READ_S / 2)
    quick.resume_writing()
    assert server.is_closed_after(ended, READ_S / 2)
    assert kept.is_open


def test_too_many_that_wait_end_one_another_and_nobody_elses() -> None:
    server = Server()
    _, first = server.connect("10.0.0.7")
    answered, busy = server.connect("10.0.0.8")
    answered.data_received(REQUEST)
    others = [server.connect()[1]]
    server.loop.advance(0.1)
    others += [server.connect()[1] for _ in range(MOST_WAITING + 30)]
    assert first.is_open
    assert busy.is_open
    assert not others[0].is_open
    assert others[-1].is_open


def test_a_connection_that_has_gone_leaves_no_timer() -> None:
    server = Server()
    connection, _ = server.connect()
    connection.pause_writing()
    connection.connection_lost(None)
    assert [timer for timer in server.loop.timers if not timer.is_cancelled] == []
    assert server.state.connections == set()

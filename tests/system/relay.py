"""A bad network between real processes: a TCP relay that delays, limits, cuts and falls silent, each way by itself.

It runs in a thread of the test; what it does to the bytes of a connection it does by the clock, since that is what a
network is. Draws come from a seed.
"""

import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.clock import SystemClock

#: Bytes that are taken from a socket at a time: a bandwidth is met to about this much.
CHUNK = 16 * 1024

#: Bytes on their way in one direction, beside those in the sockets' own buffers; then nothing more is read.
WINDOW = 256 * 1024

#: Seconds between two looks at the clock.
TICK_S = 0.001


@dataclass
class Way:
    """One direction of all connections; its values may be changed at any time."""

    #: Seconds that bytes take: the least, and how many more at most.
    delay_s: float = 0.0
    jitter_s: float = 0.0
    #: Bytes in a second, 0 for no limit.
    bandwidth: float = 0.0
    #: Until then nothing comes through, and nothing is lost; in seconds of the clock.
    silent_until: float = 0.0
    #: Bytes that came through.
    carried: int = 0


@dataclass
class _Stream:
    """One direction of one connection."""

    way: Way
    source: socket.socket
    target: socket.socket
    #: What is on its way, with when it arrives.
    flying: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    last: float = 0.0
    #: When the limit of bandwidth lets the next bytes through.
    free: float = 0.0
    has_ended: bool = False


class Relay:
    """Stands before a server at 127.0.0.1; clients dial `port`."""

    def __init__(self, port: int, seed: int = 0) -> None:
        self.target = port
        self.up, self.down = Way(), Way()
        self._rng = generator(seed, Purpose.SIMULATE, layer=5)
        self._clock = SystemClock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._streams: list[_Stream] = []
        self._is_cut = threading.Event()
        self._is_over = threading.Event()
        #: Connections that were made.
        self.accepted = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break all connections, with what is on its way; new ones may be made."""
        self._is_cut.set()

    def silence(self, seconds: float, *, up: bool = True, down: bool = True) -> None:
        """Let nothing through for so long, one way or both."""
        until = self._clock.now() + seconds
        for way, is_meant in ((self.up, up), (self.down, down)):
            if is_meant:
                way.silent_until = until

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as self._selector:
            self._selector.register(self._listener, selectors.EVENT_READ)
            while not self._is_over.is_set():
                ready = {key.fileobj for key, _ in self._selector.select(TICK_S)}
                if self._is_cut.is_set():
                    self._is_cut.clear()
                    self._break(self._streams)
                if self._listener in ready:
                    self._accept()
                for stream in list(self._streams):
                    if stream in self._streams and not self._carry(stream, is_ready=stream.source in ready):
                        self._break([one for one in self._streams if stream.source in (one.source, one.target)])
            self._break(self._streams)
            self._listener.close()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self.accepted += 1
        for one in (client, server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Small buffers, lest the system's hide what we do to the bytes.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WINDOW // 4)
        self._streams += [_Stream(self.up, client, server), _Stream(self.down, server, client)]
        self._watch(client)
        self._watch(server)

    def _watch(self, source: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.register(source, selectors.EVENT_READ)

    def _break(self, streams: list[_Stream]) -> None:
        for stream in list(streams):
            for one in (stream.source, stream.target):
                with suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
            self._streams.remove(stream)

    def _carry(self, stream: _Stream, *, is_ready: bool) -> bool:
        """Take in what comes and let out what is due; return whether the connection is still there."""
        try:
            if is_ready and not stream.has_ended and stream.size < WINDOW:
                self._take(stream)
            self._let_out(stream)
        except OSError:
            return False
        # One that will not read wakes us for nothing.
        if stream.size >= WINDOW or stream.has_ended:
            with suppress(KeyError):
                self._selector.unregister(stream.source)
        else:
            self._watch(stream.source)
        return not (stream.has_ended and not stream.flying)

    def _take(self, stream: _Stream) -> None:
        try:
            data = stream.source.recv(CHUNK)
        except BlockingIOError:
            return
        if not data:
            stream.has_ended = True
            return
        way, now = stream.way, self._clock.now()
        if way.bandwidth:
            stream.free = max(now, stream.free) + len(data) / way.bandwidth
        sent = max(now, stream.free) if way.bandwidth else now
        # In order, as TCP has it: what is delayed less waits for what is before it.
        stream.last = max(stream.last, sent + way.delay_s + way.jitter_s * float(self._rng.random()))
        stream.flying.append((stream.last, data))
        stream.size += len(data)

    def _let_out(self, stream: _Stream) -> None:
        now = self._clock.now()
        while stream.flying and max(stream.flying[0][0], stream.way.silent_until) <= now:
            arrival, data = stream.flying.popleft()
            try:
                count = stream.target.send(data)
            except BlockingIOError:
                count = 0
            stream.way.carried += count
            stream.size -= count
            if count < len(data):
                stream.flying.appendleft((arrival, data[count:]))
                return


@contextmanager
def relayed(address: str, seed: int = 0) -> Iterator[Relay]:
    """Stand before the server at `address`, tcp://127.0.0.1:PORT."""
    relay = Relay(int(address.rpartition(":")[2]), seed)
    try:
        yield relay
    finally:
        relay.close()

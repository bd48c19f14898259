"""The ports within one process and one thread: a network in virtual time, for simulations and tests.

Messages of one connection arrive in order and at most once, unless the link repeats them; between connections there is
no order. A connection that breaks loses its frames on the way, and its client dials again under another name. `receive`
never waits. Over the default link and where no time passes, everything arrives at once, and the client that is
heard next is drawn from the seed.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec

from lockstep.common.errors import AddressError, Diagnosis, ProtocolError
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.transport.port import Frame, Frames, Limits, PeerGone, PeerSlow

Message = list[memoryview]

#: Seconds after which a silent connection counts as broken.
SILENCE_S = 8.0

#: The address of a network's only server.
ADDRESS = "memory://"


@dataclass
class Timeline:
    """Virtual time, and a record of what happens in it. In this one no time passes: a later event never happens."""

    now: float = 0.0

    def after(self, seconds: float, action: Callable[[], None]) -> None: ...
    def record(self, who: str, what: str) -> None: ...
    def record_message(self, who: str, frames: Sequence[memoryview]) -> None: ...


@dataclass
class Host:
    """The owner of a port. The calls of a simulated process take it a moment, in which it may be killed."""

    name: str
    timeline: Timeline
    #: When the next message arrives, for each of its ports.
    arrivals: list[Callable[[], float]] = field(default_factory=list)

    def time(self) -> float:
        return self.timeline.now

    def tick(self) -> None: ...
    def wake(self, at: float) -> None: ...
    def reschedule(self) -> None: ...


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of all connections; perfect by default."""

    #: Seconds that every message takes, and the mean of what some take longer.
    least_s: float = 0.0
    delay_s: float = 0.0
    #: Share of messages that are repeated, of those that `may_repeat`: our transport never does, but senders may.
    repeats: float = 0.0
    may_repeat: Callable[[Message], bool] = lambda message: True
    #: Share of ended connections that are not reported to the server.
    swallows: float = 0.0
    #: Least and most seconds between two attempts to dial; None connects as soon as there is a server.
    redial_s: tuple[float, float] | None = None


@dataclass
class Direction:
    """The messages on their way in one direction, in order, with their times of arrival."""

    messages: deque[tuple[float, Message]] = field(default_factory=deque)
    last: float = 0.0
    is_silent: bool = False

    def put(self, time: float, message: Message) -> None:
        # Never before an earlier message, and not at all while the way is silent.
        self.last = max(self.last, time)
        self.messages.append((math.inf if self.is_silent else self.last, message))

    def next_arrival(self) -> float:
        return self.messages[0][0] if self.messages else math.inf

    def silence(self, now: float) -> None:
        """Hold back the frames that have not arrived."""
        self.is_silent = True
        self.messages = deque((at if at <= now else math.inf, message) for at, message in self.messages)

    def heal(self, next_time: Callable[[], float]) -> None:
        """Deliver, one after the other, the frames that were held back."""
        self.is_silent, self.last = False, 0.0
        held, self.messages = self.messages, deque()
        for at, message in held:
            self.last = at if at < math.inf else max(self.last, next_time())
            self.messages.append((self.last, message))

    def drop(self, now: float) -> None:
        """Lose the frames that have not arrived."""
        self.messages = deque((at, message) for at, message in self.messages if at <= now)
        self.last = now


class MemoryNetwork:
    """All servers and clients; what happens depends on the seed and the calls alone."""

    def __init__(
        self, seed: int, limits: Limits | None = None, link: Link | None = None, timeline: Timeline | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.link = link or Link()
        self.timeline = timeline or Timeline()
        self.servers: dict[str, MemoryServer] = {}
        self.clients: list[MemoryClient] = []
        self._rng = generator(seed, Purpose.SIMULATE, layer=3)
        self._drawn: list[float] = []
        #: Names of connections.
        self.names = (number.to_bytes(5, "big") for number in count(1))

    def server(self, address: str = ADDRESS, host: Host | None = None) -> "MemoryServer":
        """Return the server at an address. Raises AddressError while there is another."""
        if address in self.servers:
            raise AddressError(f"address {address!r} is in use: close that server first")
        self.servers[address] = server = MemoryServer(self, address, host or Host("", self.timeline))
        if self.link.redial_s is None:
            for client in self.clients:
                client.connect()
        return server

    def client(self, address: str = ADDRESS, host: Host | None = None) -> "MemoryClient":
        """Return another client of an address, before or after its server."""
        client = MemoryClient(self, address, host or Host("", self.timeline))
        self.clients.append(client)
        client.connect()
        return client

    def connections_of(self, host: Host) -> list["MemoryClient"]:
        """Return the connected clients of which either end belongs to a host."""
        served = [
            client for server in self.servers.values() if server.host is host for client in server.connections.values()
        ]
        return served + [client for client in self.clients if client.host is host and client.peer is not None]

    def draw(self) -> float:
        """Return the next random number in [0, 1)."""
        if not self._drawn:
            # Many at once cost as much as one.
            self._drawn = self._rng.random(256).tolist()
        return self._drawn.pop()

    def delay_s(self) -> float:
        """Return the seconds that a message takes, exponentially distributed."""
        return self.link.least_s - self.link.delay_s * math.log(1.0 - self.draw())


class MemoryServer:
    """The end that all clients of an address dial."""

    def __init__(self, network: MemoryNetwork, address: str, host: Host) -> None:
        self.network, self.address, self.host = network, address, host
        #: The connected clients, by the names of their connections.
        self.connections: dict[bytes, MemoryClient] = {}
        self._queue = network.limits.queue
        #: The frames that had arrived before its connection ended.
        self._left: list[tuple[bytes, Message]] = []
        #: The peers that were heard, and the ended connections that were not reported yet.
        self._known: set[bytes] = set()
        self._lost: list[bytes] = []
        #: Whether `receive` is to return at once although nothing has arrived.
        self._has_news = False
        self.is_open = True
        host.arrivals.append(self.next_arrival)

    def receive(self, timeout_s: float | None) -> tuple[bytes, Message] | None:
        _demand_open(self.is_open)
        self.host.tick()
        received = self._next(self.host.time())
        if received is None:
            self._has_news = False
        else:
            self._known.add(received[0])
            self.network.timeline.record_message(self.host.name, received[1])
        return received

    def send(self, peer: bytes, frames: Frames) -> None:
        _demand_open(self.is_open)
        self.host.tick()
        self.network.limits.check(frames)
        client = self.connections.get(peer)
        if client is None:
            raise PeerGone("no connection to this peer: expected one that was heard and has not gone")
        _demand_room(client.down.messages, self._queue)
        client.down.put(self.host.time() + self.network.delay_s(), _copy(frames))
        client.host.wake(client.down.next_arrival())

    def shared(self, frame: Frame) -> Frame:
        return bytes(frame)

    def lost(self) -> list[bytes]:
        _demand_open(self.is_open)
        waiting = {peer for peer, _ in self._left}
        lost = [peer for peer in self._lost if peer not in waiting]
        self._lost = [peer for peer in self._lost if peer in waiting]
        return lost

    def key_name(self, peer: bytes) -> str:
        client = self.connections.get(peer)
        return "" if client is None else client.key

    def cut(self, peer: bytes) -> None:
        _demand_open(self.is_open)
        client = self.connections.get(peer)
        if client is not None:
            client.disconnect()

    def make_room(self, queue: int) -> None:
        # Connections stay, as nothing has to be opened again: that they may break is tried by other faults.
        self._queue = max(self._queue, queue)

    def close(self, linger_s: float = 0.0) -> None:
        if not self.is_open:
            return
        self.is_open = False
        for client in list(self.connections.values()):
            client.disconnect(keeps_down=linger_s > 0.0)
        del self.network.servers[self.address]

    def disconnected(self, peer: bytes, arrived: list[Message]) -> None:
        """Record the end of a connection; its last messages are still received. The link may swallow the news."""
        del self.connections[peer]
        self._left += [(peer, message) for message in arrived]
        is_known = peer in self._known or bool(arrived)
        if is_known and self.network.draw() >= self.network.link.swallows:
            self._lost.append(peer)
            self._has_news = True
            self.host.wake(self.network.timeline.now)

    def next_arrival(self) -> float:
        if self._left or self._has_news:
            return 0.0
        return min((client.up.next_arrival() for client in self.connections.values()), default=math.inf)

    def _next(self, now: float) -> tuple[bytes, Message] | None:
        """Return the frames that arrived first; one of them is drawn if several have at once."""
        if self._left:
            return self._left.pop(0)
        first = self.next_arrival()
        peers = [peer for peer, client in self.connections.items() if client.up.next_arrival() == first <= now]
        if not peers:
            return None
        peer = peers[int(self.network.draw() * len(peers))] if len(peers) > 1 else peers[0]
        return peer, self.connections[peer].up.messages.popleft()[1]


class MemoryClient:
    """The end that dials, and dials again; the connection can be broken and silenced."""

    def __init__(self, network: MemoryNetwork, address: str, host: Host) -> None:
        self.network, self.address, self.host = network, address, host
        #: The name of its key, empty if it needs none.
        self.key = ""
        #: The obstacle to a connection that a diagnosis finds, None if it finds none.
        self.obstacle: Diagnosis | None = None
        #: Names the connection; None while it is broken.
        self.peer: bytes | None = None
        self.up, self.down = Direction(), Direction()
        #: The frames that wait for a connection.
        self._unsent: deque[Message] = deque()
        self._is_open = True
        host.arrivals.append(self.down.next_arrival)

    def receive(self, timeout_s: float | None) -> Message | None:
        _demand_open(self._is_open)
        self.host.tick()
        if self.down.next_arrival() > self.host.time():
            return None
        _, message = self.down.messages.popleft()
        self.network.timeline.record_message(self.host.name, message)
        return message

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        _demand_open(self._is_open)
        self.host.tick()
        limits = self.network.limits
        limits.check(frames)
        _demand_room(self._unsent if self.peer is None else self.up.messages, limits.queue)
        if self.peer is None:
            self._unsent.append(_copy(frames))
        else:
            self._send_up(_copy(frames))

    def diagnosis(self) -> Diagnosis | None:
        return self.obstacle

    def close(self, linger_s: float = 0.0) -> None:
        if not self._is_open:
            return
        self._is_open = False
        # Later frames are not read: their host would look for it again and again.
        self.host.arrivals.remove(self.down.next_arrival)
        self.network.clients.remove(self)
        now, last = self.network.timeline.now, self.up.last
        if linger_s > 0.0 and now < last and self.up.next_arrival() < math.inf:
            # The frames sent last may still arrive.
            self.network.timeline.after(min(last, self.host.time() + linger_s) - now, self.disconnect)
        else:
            self.disconnect()

    def connect(self) -> None:
        """Connect to the server, if there is one that can be reached, or try again later."""
        if not self._is_open or self.peer is not None:
            return
        server = self.network.servers.get(self.address)
        if server is None or not server.is_open or self.up.is_silent or self.down.is_silent:
            self._redial_later()
            return
        self.peer = next(self.network.names)
        server.connections[self.peer] = self
        self.network.timeline.record(self.host.name, f"is connected to {server.host.name}")
        while self._unsent:
            self._send_up(self._unsent.popleft())

    def _redial_later(self) -> None:
        if self._is_open and self.network.link.redial_s is not None:
            low, high = self.network.link.redial_s
            self.network.timeline.after(low + (high - low) * self.network.draw(), self.connect)

    def _send_up(self, message: Message) -> None:
        network = self.network
        is_repeated = network.draw() < network.link.repeats and network.link.may_repeat(message)
        for _ in range(1 + is_repeated):
            self.up.put(self.host.time() + network.delay_s(), message)
        self._wake_server()

    def _wake_server(self) -> None:
        server = self.network.servers.get(self.address)
        if server is not None:
            server.host.wake(self.up.next_arrival())

    def disconnect(self, *, keeps_down: bool = False) -> None:
        """Lose the connection with its frames on the way; `keeps_down` spares what a server sent before it closed."""
        if self.peer is None:
            return
        timeline = self.network.timeline
        arrived = [message for at, message in self.up.messages if at <= timeline.now]
        peer, self.peer = self.peer, None
        self.up.messages.clear()
        if not keeps_down:
            self.down.drop(timeline.now)
        self.network.servers[self.address].disconnected(peer, arrived)
        timeline.record(self.host.name, f"loses its connection to {self.address}")
        self.host.reschedule()
        if self.network.link.redial_s is None:
            self.connect()
        else:
            self._redial_later()

    def silence(self, *, up: bool, down: bool) -> None:
        """Let nothing through in one direction or both; after a while the connection counts as broken."""
        timeline, peer = self.network.timeline, self.peer
        for direction, is_meant in ((self.up, up), (self.down, down)):
            if is_meant:
                direction.silence(timeline.now)
        timeline.after(SILENCE_S, lambda: self._break_silent(peer))

    def _break_silent(self, peer: bytes | None) -> None:
        if peer == self.peer and (self.up.is_silent or self.down.is_silent):
            self.disconnect()

    def heal(self) -> None:
        """Let everything through again."""
        for direction in (self.up, self.down):
            direction.heal(lambda: self.network.timeline.now + self.network.delay_s())
        self._wake_server()
        self.host.wake(self.down.next_arrival())


def _demand_room(queue: deque[Message] | deque[tuple[float, Message]], limit: int) -> None:
    if len(queue) >= limit:
        raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")


def _copy(frames: Frames) -> Message:
    # A sender that overwrites its buffer must not be seen, as over a socket.
    return [memoryview(bytes(frame)) for frame in frames]


def _demand_open(is_open: bool) -> None:
    if not is_open:
        raise ProtocolError("this port is closed: expected no more sends and receives after close()")

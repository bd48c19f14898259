"""The network of a simulation: our two ports over wires that are slow, break, fall silent and say things twice.

As the ports promise: what comes over one connection comes in order and once at most; between connections there is no
order. A connection that breaks loses what is on its way, and its client dials again.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.errors import AddressError
from common.transport.port import Frames, Limits, PeerGone, PeerSlow
from lockstep.simulation.world import Process, World

Message = list[memoryview]

#: How often a server does not hear that a connection has ended.
SWALLOWED = 0.2

#: Seconds after which a connection over which nothing comes counts as broken.
PATIENCE_S = 8.0

#: Seconds between two attempts to dial, at least and at most.
REDIAL_S = (0.02, 0.5)


@dataclass
class Direction:
    """One way of a wire: what is on its way, in order, with the time of its arrival."""

    flying: deque[tuple[float, Message]] = field(default_factory=deque)
    last: float = 0.0
    #: Nothing comes through.
    is_silent: bool = False

    def put(self, time: float, message: Message) -> None:
        # Not before what was sent earlier, and nothing at all while the way is cut.
        self.last = max(self.last, time)
        self.flying.append((math.inf if self.is_silent else self.last, message))

    def next_arrival(self) -> float:
        return self.flying[0][0] if self.flying else math.inf

    def silence(self, now: float) -> None:
        """Hold back what has not arrived."""
        self.is_silent = True
        self.flying = deque((at if at <= now else math.inf, message) for at, message in self.flying)

    def heal(self, times: Callable[[], float]) -> None:
        """Let come, one after the other, what was held back."""
        self.is_silent, self.last = False, 0.0
        held, self.flying = self.flying, deque()
        for at, message in held:
            self.last = at if at < math.inf else max(self.last, times())
            self.flying.append((self.last, message))

    def drop(self, now: float) -> None:
        """Lose what has not arrived."""
        self.flying = deque((at, message) for at, message in self.flying if at <= now)
        self.last = now


@dataclass(frozen=True)
class Quality:
    """How good wires are."""

    #: Mean seconds that a message takes, beside the least that any takes.
    delay_s: float = 0.001
    #: How often a message that may be heard twice is. Not by our transport, but whoever sends may do it again.
    doubling: float = 0.0
    #: Tells of a message whether it may.
    may_double: Callable[[Message], bool] = lambda message: True


@dataclass(eq=False)
class Wire:
    """A client's connection to an address, broken or not."""

    network: "Network"
    address: str
    client: Process
    #: Names the connection; None while there is none.
    peer: bytes | None = None
    up: Direction = field(default_factory=Direction)
    down: Direction = field(default_factory=Direction)
    #: What waits for a connection.
    unsent: deque[Message] = field(default_factory=deque)
    is_closed: bool = False
    #: How often it broke.
    breaks: int = 0

    def connect(self) -> None:
        """Dial; where nobody answers, again later."""
        if self.is_closed or self.peer is not None:
            return
        server = self.network.servers.get(self.address)
        if server is None or self.up.is_silent or self.down.is_silent:
            self.redial()
            return
        self.peer = self.network.next_peer()
        server.wires[self.peer] = self
        self.network.world.note(self.client.name, f"is connected to {server.owner.name}")
        while self.unsent:
            self._send_up(self.unsent.popleft())

    def redial(self) -> None:
        low, high = REDIAL_S
        self.network.world.after(low + (high - low) * self.network.draw(), self.connect)

    def send(self, message: Message, limit: int) -> None:
        if self.peer is None:
            _put(self.unsent, message, limit)
        elif len(self.up.flying) >= limit:
            raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")
        else:
            self._send_up(message)

    def _send_up(self, message: Message) -> None:
        network = self.network
        quality = network.quality
        is_double = network.draw() < quality.doubling and quality.may_double(message)
        for _ in range(1 + is_double):
            self.up.put(self.client.time() + network.delay(), message)
        self._wake_server()

    def _wake_server(self) -> None:
        server = self.network.servers.get(self.address)
        if server is not None:
            server.owner.look_after(self.up.next_arrival())

    def send_down(self, message: Message, limit: int, time: float) -> None:
        if len(self.down.flying) >= limit:
            raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")
        self.down.put(time + self.network.delay(), message)
        self.client.look_after(self.down.next_arrival())

    def break_off(self, *, keeps_down: bool = False) -> None:
        """Lose the connection, with what is on its way; not what a server said that lingers."""
        if self.peer is None:
            return
        world = self.network.world
        server = self.network.servers.get(self.address)
        if server is not None:
            # What has arrived is heard, although nobody is there to be answered.
            server.heard += [(self.peer, message) for at, message in self.up.flying if at <= world.now]
            del server.wires[self.peer]
            server.miss(self.peer)
        self.peer = None
        self.breaks += 1
        self.up.flying.clear()
        if not keeps_down:
            self.down.drop(world.now)
        world.note(self.client.name, f"loses its connection to {self.address}")
        self.client.look()
        if not self.is_closed:
            self.redial()

    def silence(self, *, up: bool, down: bool) -> None:
        """Let nothing through, one way or both."""
        now = self.network.world.now
        for direction, is_meant in ((self.up, up), (self.down, down)):
            if is_meant:
                direction.silence(now)
        breaks = self.breaks
        self.network.world.after(PATIENCE_S, lambda: self._lose_patience(breaks))

    def _lose_patience(self, breaks: int) -> None:
        if breaks == self.breaks and (self.up.is_silent or self.down.is_silent):
            self.break_off()

    def heal(self) -> None:
        """Let everything through again."""
        network = self.network
        for direction in (self.up, self.down):
            direction.heal(lambda: network.world.now + network.delay())
        self._wake_server()
        self.client.look_after(self.down.next_arrival())

    def close(self, linger_s: float) -> None:
        """Close the client's end; what it said last may still arrive."""
        self.is_closed = True
        if self in self.network.wires:
            self.network.wires.remove(self)
        if linger_s > 0.0 and self.up.next_arrival() < math.inf:
            self.network.world.at(min(self.up.last, self.client.time() + linger_s), self.break_off)
        else:
            self.break_off()


@dataclass
class Network:
    """All addresses and wires."""

    world: World
    rng: np.random.Generator
    quality: Quality
    limits: Limits = field(default_factory=Limits)
    servers: dict[str, "SimulatedServer"] = field(default_factory=dict)
    wires: list[Wire] = field(default_factory=list)
    _peers: int = 0
    _drawn: list[float] = field(default_factory=list)

    def draw(self) -> float:
        """Return the next random number in [0, 1)."""
        if not self._drawn:
            # Many at once: one costs as much.
            self._drawn = self.rng.random(256).tolist()
        return self._drawn.pop()

    def delay(self) -> float:
        """Return the seconds that a message takes: mostly few, seldom many."""
        return 1e-4 - self.quality.delay_s * math.log(1.0 - self.draw())

    def of(self, process: Process) -> list[Wire]:
        """Return the wires of a process that are connected, at either end."""
        served = [wire for server in self.servers.values() if server.owner is process for wire in server.wires.values()]
        return served + [wire for wire in self.wires if wire.client is process and wire.peer is not None]

    def next_peer(self) -> bytes:
        self._peers += 1
        return self._peers.to_bytes(5, "big")

    def serve(self, address: str, owner: Process) -> "SimulatedServer":
        """Return the server at an address; `AddressError` while there is another."""
        if address in self.servers:
            raise AddressError(f"address {address!r} is in use: close that server first")
        self.servers[address] = SimulatedServer(self, address, owner)
        return self.servers[address]

    def dial(self, address: str, owner: Process) -> "SimulatedClient":
        """Return a client of an address, whether there is a server yet or not."""
        wire = Wire(self, address, owner)
        self.wires.append(wire)
        wire.connect()
        return SimulatedClient(self.limits, wire)


class SimulatedServer:
    """The end that hears all clients of an address."""

    def __init__(self, network: Network, address: str, owner: Process) -> None:
        self._network, self._address, self.owner = network, address, owner
        self._queue = network.limits.queue
        #: By the name of the connection.
        self.wires: dict[bytes, Wire] = {}
        #: What had arrived before its connection broke.
        self.heard: list[tuple[bytes, Message]] = []
        #: Who has been heard, and of these whose connection has ended since the last call of `lost`.
        self._known: set[bytes] = set()
        self._lost: list[bytes] = []
        self._has_news = False
        owner.arrivals.append(self.next_arrival)

    @property
    def address(self) -> str:
        return self._address

    def miss(self, peer: bytes) -> None:
        """Take in that a connection has ended; a network may swallow that."""
        if peer in self._known and self._network.draw() >= SWALLOWED:
            self._lost.append(peer)
            self._has_news = True
            self.owner.look_after(self._network.world.now)

    def lost(self) -> list[bytes]:
        lost, self._lost = self._lost, []
        return lost

    def next_arrival(self) -> float:
        if self.heard or self._has_news:
            return 0.0
        return min((wire.up.next_arrival() for wire in self.wires.values()), default=math.inf)

    def receive(self, timeout_s: float | None) -> tuple[bytes, Message] | None:
        self.owner.tick()
        received = self._next()
        if received is None:
            self._has_news = False
        else:
            self._known.add(received[0])
            self._network.world.note_message(self.owner.name, received[1])
        return received

    def _next(self) -> tuple[bytes, Message] | None:
        if self.heard:
            return self.heard.pop(0)
        first = min(self.wires.items(), key=lambda item: item[1].up.next_arrival(), default=None)
        if first is None or first[1].up.next_arrival() > self.owner.time():
            return None
        return first[0], first[1].up.flying.popleft()[1]

    def send(self, peer: bytes, frames: Frames) -> None:
        self.owner.tick()
        self._network.limits.check(frames)
        wire = self.wires.get(peer)
        if wire is None:
            raise PeerGone("no connection to this peer: expected one that was heard and has not gone")
        wire.send_down(_copy(frames), self._queue, self.owner.time())

    def cut(self, peer: bytes) -> None:
        wire = self.wires.get(peer)
        if wire is not None:
            wire.break_off()

    def allow(self, queue: int) -> None:
        self._queue = max(self._queue, queue)

    def close(self, linger_s: float = 0.0) -> None:
        if self._network.servers.get(self._address) is not self:
            return
        for wire in list(self.wires.values()):
            wire.break_off(keeps_down=linger_s > 0.0)
        del self._network.servers[self._address]


class SimulatedClient:
    """The end that dials, and dials again."""

    def __init__(self, limits: Limits, wire: Wire) -> None:
        self._limits, self._wire = limits, wire
        wire.client.arrivals.append(wire.down.next_arrival)

    def receive(self, timeout_s: float | None) -> Message | None:
        wire = self._wire
        wire.client.tick()
        if wire.down.next_arrival() > wire.client.time():
            return None
        message = wire.down.flying.popleft()[1]
        wire.network.world.note_message(wire.client.name, message)
        return message

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._wire.client.tick()
        self._limits.check(frames)
        self._wire.send(_copy(frames), self._limits.queue)

    def close(self, linger_s: float = 0.0) -> None:
        self._wire.close(linger_s)


def wait_in_the_world(ports: Sequence[object], timeout_s: float | None) -> None:
    """Wait as a process of the world does: by acting later."""


def _copy(frames: Frames) -> Message:
    # A copy, so that a sender that overwrites its buffer is not seen, as over a socket.
    return [memoryview(bytes(frame)) for frame in frames]


def _put(queue: deque[Message], message: Message, limit: int) -> None:
    if len(queue) >= limit:
        raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")
    queue.append(message)

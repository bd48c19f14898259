"""The network of a simulation: wires from clients to hubs, that are slow, break, fall silent and say things twice.

What comes over one connection comes in order and once at most, unless its sender says it twice; between connections
there is no order. A connection that breaks loses what is on its way, and its client dials again.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from common.errors import AddressError
from common.transport.port import Limits, PeerSlow
from lockstep.simulation.network.direction import Direction, Message
from lockstep.simulation.world import Process, World

#: How often a server does not hear that a connection has ended.
SWALLOWED = 0.2

#: Seconds after which a connection over which nothing comes counts as broken.
PATIENCE_S = 8.0

#: Seconds between two attempts to dial, at least and at most.
REDIAL_S = (0.02, 0.5)


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
class SimulatedWire:
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
        hub = self.network.hubs.get(self.address)
        if hub is None or self.up.is_silent or self.down.is_silent:
            self.redial()
            return
        self.peer = self.network.next_peer()
        hub.wires[self.peer] = self
        self.network.world.note(self.client.name, f"is connected to {hub.owner.name}")
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
        hub = self.network.hubs.get(self.address)
        if hub is not None:
            hub.owner.look_after(self.up.next_arrival())

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
        hub = self.network.hubs.get(self.address)
        if hub is not None:
            # What has arrived is heard, although nobody is there to be answered.
            hub.heard += [(self.peer, message) for at, message in self.up.flying if at <= world.now]
            del hub.wires[self.peer]
            hub.miss(self.peer)
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


@dataclass(eq=False)
class Hub:
    """An address at which a process hears all who dial it."""

    network: "Network"
    address: str
    owner: Process
    #: By the name of the connection.
    wires: dict[bytes, SimulatedWire] = field(default_factory=dict)
    #: What had arrived before its connection broke.
    heard: list[tuple[bytes, Message]] = field(default_factory=list)
    #: Who has been heard, and of these whose connection has ended and has not been told of.
    known: set[bytes] = field(default_factory=set)
    lost: list[bytes] = field(default_factory=list)
    #: Whether the owner has to look although nothing arrives.
    has_news: bool = False

    def miss(self, peer: bytes) -> None:
        """Take in that a connection has ended; a network may swallow that."""
        if peer in self.known and self.network.draw() >= SWALLOWED:
            self.lost.append(peer)
            self.has_news = True
            self.owner.look_after(self.network.world.now)

    def next_arrival(self) -> float:
        if self.heard or self.has_news:
            return 0.0
        return min((wire.up.next_arrival() for wire in self.wires.values()), default=math.inf)

    def next(self, now: float) -> tuple[bytes, Message] | None:
        """Return what has arrived first, with whom it is from."""
        if self.heard:
            return self.heard.pop(0)
        first = min(self.wires.items(), key=lambda item: item[1].up.next_arrival(), default=None)
        if first is None or first[1].up.next_arrival() > now:
            return None
        return first[0], first[1].up.flying.popleft()[1]

    def close(self, linger_s: float) -> None:
        """End all connections; what was said last may still arrive."""
        if self.network.hubs.get(self.address) is not self:
            return
        for wire in list(self.wires.values()):
            wire.break_off(keeps_down=linger_s > 0.0)
        del self.network.hubs[self.address]


@dataclass
class Network:
    """All addresses and wires."""

    world: World
    rng: np.random.Generator
    quality: Quality
    limits: Limits = field(default_factory=Limits)
    #: By the address at which they hear.
    hubs: dict[str, "Hub"] = field(default_factory=dict)
    wires: list[SimulatedWire] = field(default_factory=list)
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

    def of(self, process: Process) -> list[SimulatedWire]:
        """Return the wires of a process that are connected, at either end."""
        served = [wire for hub in self.hubs.values() if hub.owner is process for wire in hub.wires.values()]
        return served + [wire for wire in self.wires if wire.client is process and wire.peer is not None]

    def next_peer(self) -> bytes:
        self._peers += 1
        return self._peers.to_bytes(5, "big")

    def open(self, address: str, owner: Process) -> Hub:
        """Let a process hear at an address; `AddressError` while another does."""
        if address in self.hubs:
            raise AddressError(f"address {address!r} is in use: close that server first")
        self.hubs[address] = Hub(self, address, owner)
        return self.hubs[address]

    def dial(self, address: str, client: Process) -> SimulatedWire:
        """Connect a process to an address, as soon as somebody hears there."""
        wire = SimulatedWire(self, address, client)
        self.wires.append(wire)
        wire.connect()
        return wire


def _put(queue: deque[Message], message: Message, limit: int) -> None:
    if len(queue) >= limit:
        raise PeerSlow(f"too many messages wait for this peer: expected at most {limit}")
    queue.append(message)

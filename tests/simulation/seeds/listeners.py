"""Processes that note what they receive, over a network of a given quality."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lockstep.common.statemachine.client import Exit
from lockstep.common.transport.in_memory import Link, MemoryNetwork, Message
from lockstep.common.transport.port import ClientPort, ServerPort
from tests.simulation.simulator.simulation import LEAST_S, REDIAL_S, SWALLOWED
from tests.simulation.simulator.world import Process, SimulatedShell, World


@dataclass
class Listener(SimulatedShell):
    """A shell that notes when it receives what, and wakes at a time of its own."""

    process: Process
    port: ServerPort | ClientPort | None = None
    alarm: float | None = None
    heard: list[tuple[float, bytes]] = field(default_factory=list)
    peers: list[bytes] = field(default_factory=list)
    rang: list[float] = field(default_factory=list)
    #: Moments that an act takes.
    moments: int = 0
    is_done: bool = False
    is_closed: bool = False

    def step(self) -> bool:
        received = None if self.port is None else self.port.receive(0.0)
        if isinstance(received, tuple):
            self.peers.append(received[0])
            received = received[1]
        if received is not None:
            self.heard.append((self.process.time(), bytes(received[0])))
        elif self.alarm is not None:
            self.rang.append(self.process.now())
            self.alarm = None
            for _ in range(self.moments):
                self.process.tick()
        return received is not None

    def words(self) -> list[bytes]:
        return [word for _, word in self.heard]

    def deadline(self) -> float | None:
        return self.alarm

    def exit(self) -> Exit | None:
        return Exit(code=0, reason="") if self.is_done else None

    def interrupt(self) -> None:
        self.is_done = True

    def close(self) -> None:
        self.is_closed = True


def listener(world: World, name: str, alarm: float | None = None) -> Listener:
    """Start a process that listens."""
    process = Process(name, world)
    shell = Listener(process, alarm=alarm)
    process.start(lambda: shell)
    return shell


def link_of(repeats: float = 0.0, may_repeat: Callable[[Message], bool] = lambda message: True) -> Link:
    """Return a link as the simulator has it."""
    return Link(
        least_s=LEAST_S,
        delay_s=0.01,
        repeats=repeats,
        may_repeat=may_repeat,
        swallows=SWALLOWED,
        redial_s=REDIAL_S,
    )


@dataclass
class Scene:
    """A server with two clients."""

    world: World = field(default_factory=World)
    link: Link = field(default_factory=lambda: link_of())

    def __post_init__(self) -> None:
        self.network = MemoryNetwork(1, link=self.link, timeline=self.world)
        self.server, self.one, self.two = (listener(self.world, name) for name in ("server", "one", "two"))
        self.server_port = self.network.server("here", self.server.process)
        self.server.port = self.server_port
        self.ports = [self.network.client("here", client.process) for client in (self.one, self.two)]
        self.one.port, self.two.port = self.ports

    def run(self, until: float = 100.0) -> None:
        """Let all happen that does before a time."""
        self.world.at(until, lambda: None)
        while self.world.now < until:
            assert self.world.turn()

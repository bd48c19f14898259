"""Whatever a peer says that the codec lets through: nobody raises, nobody else is dropped, and the run has its bits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
import pytest

from lockstep.common.protocol.codec import Buffer, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Lease, Weights, Welcome
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import Admit, Begin, Hello, ShardJoin, ShardWelcome
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.client import ClientConfig
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork, MemoryServer
from lockstep.common.transport.port import wait_for_nothing
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.shard.shell import ShardShell
from lockstep.ps.shard.state import ShardState
from lockstep.worker.shell import WorkerShell
from lockstep.worker.state import WorkerState
from tests.fuzz.bar import ROOM_BYTES, amounts, bounded, examine
from tests.fuzz.strangers import Stage
from tests.fuzz.tape import Tape
from tests.fuzz.wire import frames_of, made_up
from tests.lockstep.common.protocol.test_codec import EXAMPLES
from tests.lockstep.worker.states import worker_at
from tests.simulation.simulator.jobs import data, jobs

#: Lies that are told to one run.
TOLD = 40


@amounts("server")
@pytest.mark.parametrize("servers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_server_with_somebody_who_lies(cases: int, servers: int) -> None:
    told = 0
    stage = Stage(servers)

    def check(tape: Tape) -> None:
        nonlocal stage, told
        if told == TOLD or stage.is_over():
            stage.end()
            stage, told = Stage(servers), 0
        told += 1
        stage.lie(stage.anything(tape))

    examine(cases // 2, lambda tape: tape, check)
    stage.end()


OPENING: RunSetup = open_run("fuzz", jobs()["plain"], data(), RunOptions())
FRAME = OPENING.layout.size


def anywhere(network: MemoryNetwork) -> Callable[..., MemoryClient]:
    """Return what finds the same server at any address."""
    return lambda address, public="": network.client()


def send_all(network: MemoryNetwork, port: MemoryServer, messages: Iterable[list[Buffer]]) -> None:
    """Send messages to the only client of a network, as long as it is connected."""
    (client,) = network.clients
    for frames in messages:
        if client.peer is not None:
            port.send(client.peer, frames)


@dataclass
class Employer:
    """A server that lies to a worker."""

    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(0))
    clock: ManualClock = field(default_factory=ManualClock)
    port: MemoryServer = field(init=False)
    runner: WorkerShell = field(init=False)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = self.network.server()
        join = Join(protocol=PROTOCOL_VERSION, incarnation="a", host="h", pid=1, fingerprint=fingerprint())
        state = WorkerState(ClientConfig(address="memory://", join=join, silence_s=600.0))
        client = self.network.client()
        self.runner = worker_at(client, state, self.clock, data, self.said.append, dial=anywhere(self.network))
        self.runner.begin()

    def tell(self, *messages: list[Buffer]) -> None:
        """Send the worker messages, and let it act until it waits."""
        send_all(self.network, self.port, messages)
        for _ in range(50):
            if self.runner.ended is not None or not self.runner.step():
                break
        while self.port.receive(0.0) is not None:
            pass

    def welcome(self) -> Welcome:
        return OPENING.info.welcome(0)


def employ(tape: Tape) -> Employer:
    """Return a worker that has come some way."""
    employer = Employer()
    if tape.happens():
        employer.tell(encode(employer.welcome()))
        if tape.happens():
            employer.tell(encode(Weights(step=0, start=0), [OPENING.shard.weights]))
    return employer


def order(tape: Tape) -> list[Buffer]:
    """Return what a server might say to a worker."""
    lo = tape.below(5)
    lease = Lease(
        work=tape.choose(("train", "evaluate", "audit", "validate")),
        step=tape.choose((0, 0, 1, 2, 7, 2**31, 2**62)),
        lo=lo,
        hi=lo + tape.choose((1, 1, 2, 4, 0, 2**31 - 8)),
        number=tape.below(3),
    )
    match tape.below(6):
        case 0 | 1:
            values = OPENING.shard.weights[: tape.choose((FRAME, FRAME - 1, 0))]
            carrier = msgspec.structs.replace(lease, start=tape.choose((0, 0, 1, 4096)))
            return encode(carrier, [values]) if tape.happens() else encode(lease)
        case 2:
            values = OPENING.shard.weights[: tape.choose((FRAME, FRAME, FRAME - 1, 1, 0))]
            step, start = tape.choose((0, 0, 1, 2, 2**62)), tape.choose((0, 0, 1, 4096))
            return encode(Weights(step=step, start=start), [values])
        case 3:
            info = OPENING.info
            odd = {
                "source": "f" * 64,
                "dataset": "0" * 64,
                "layout": "0" * 64,
                "memory": "lockstep-0-1-0123456789abcdef",
                "shards": ["tcp://127.0.0.1:1"],
                "rank": 2**62,
            }
            name = tape.choose(tuple(odd))
            return encode(msgspec.structs.replace(info.welcome(0), **{name: odd[name]}))
        case _:
            return [made_up(tape), *([tape.raw(4 * tape.below(9))] if tape.happens() else [])]


@amounts("worker")
def test_a_worker_whose_server_lies(cases: int) -> None:
    def make(tape: Tape) -> tuple[Employer, list[list[Buffer]]]:
        return employ(tape), [order(tape) for _ in range(3)]

    def check(case: tuple[Employer, list[list[Buffer]]]) -> None:
        employer, orders = case
        for frames in orders:
            employer.tell(frames)

    examine(cases, make, check)


@dataclass
class Employed:
    """A shard, its server, and somebody who calls on it: both lie."""

    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(0))
    visited: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(1))
    clock: ManualClock = field(default_factory=ManualClock)
    port: MemoryServer = field(init=False)
    shard: ShardShell = field(init=False)
    visitor: MemoryClient = field(init=False)

    def __post_init__(self) -> None:
        self.port = self.network.server()
        address = "memory://1"
        join = ShardJoin(
            protocol=PROTOCOL_VERSION, incarnation="a", host="h", pid=1, fingerprint=fingerprint(), address=address
        )
        state = ShardState(ClientConfig(address="memory://", join=join))
        upstream, port = self.network.client(), self.visited.server()
        self.shard = ShardShell(state, port, upstream, self.clock, lambda text: None, wait_for_nothing)
        self.shard.begin()
        self.visitor = self.visited.client()

    def tell(self, *messages: list[Buffer]) -> None:
        """Let the server say something."""
        send_all(self.network, self.port, messages)
        self.act()

    def visit(self, frames: list[Buffer]) -> None:
        """Let somebody call."""
        self.visitor.send(frames)
        self.act()

    def act(self) -> None:
        for _ in range(50):
            if self.shard.ended is not None or not self.shard.step():
                break
        if self.shard.service is not None:
            self.shard.service.validate()
        while self.port.receive(0.0) is not None:
            pass
        while self.visitor.receive(0.0) is not None:
            pass


WIDE = jobs()["wide"]
SHARD_WELCOME = ShardWelcome(
    index=1,
    options=RunOptions(servers=2),
    run="r",
    job=WIDE,
    training_samples=20,
    size=10_403,
    parameter_size=10_403,
)


@amounts("shard")
def test_a_shard_whose_server_and_visitors_lie(cases: int) -> None:
    def make(tape: Tape) -> tuple[Employed, list[tuple[bool, list[Buffer]]]]:
        employed = Employed()
        if tape.happens():
            employed.tell(encode(SHARD_WELCOME))
            if tape.happens():
                employed.tell(encode(Begin(steps=3)), encode(Admit(rank=0, incarnation="w")))
                employed.visit(encode(Hello(rank=0, incarnation="w")))
        said: list[tuple[bool, list[Buffer]]] = [
            (tape.happens(), [made_up(tape), *([tape.raw(4 * tape.below(9))] if tape.happens() else [])])
        ]
        said += [(tape.happens(), list(frames_of(tape.choose(EXAMPLES)))) for _ in range(2)]
        return employed, said

    def check(case: tuple[Employed, list[tuple[bool, list[Buffer]]]]) -> None:
        employed, said = case
        for is_server, frames in said:
            (employed.tell if is_server else employed.visit)(frames)

    examine(cases, make, check)


def test_a_slice_that_no_memory_holds_ends_the_shard_with_the_reason() -> None:
    employed = Employed()
    with bounded(ROOM_BYTES):
        employed.tell(encode(msgspec.structs.replace(SHARD_WELCOME, size=2**31 + 10_403)))
    assert employed.shard.ended is not None
    assert "does not fit into the memory" in employed.shard.ended.reason

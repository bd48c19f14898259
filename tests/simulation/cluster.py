"""A whole run in one thread: the real server and workers over the seeded network, in virtual time.

Who acts next is drawn from the seed. A worker can be killed, hang, or be heard twice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Join, Result, SumsFrame, WorkerMessage
from lockstep.common.protocol.shard_messages import Hello, ShardJoin
from lockstep.common.random import Purpose, generator
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.client import ClientConfig, Exit
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork
from lockstep.common.transport.links import wait_for_nothing
from lockstep.common.transport.port import ClientPort, Frames, Shortcut
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.records.ledger import Account, LedgerShare
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import RunFolder
from lockstep.ps.run.info import RunInfo
from lockstep.ps.server.server import Server
from lockstep.ps.setup import AdmissionPolicy, RunSetup, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_process.shell import ShardShell
from lockstep.ps.shard_process.state import SILENCE_S, ShardState
from lockstep.ps.shared_memory.memory import ServerSharedMemory, share
from lockstep.ps.shared_memory.parallel_update import ParallelUpdateConfig
from lockstep.worker.setup import Loader
from lockstep.worker.shell import WorkerShell
from lockstep.worker.slice_update import PART
from lockstep.worker.state import WorkerState
from tests.simulation.small import digits

#: Seconds that one act takes, and turns after which a run counts as stuck.
TICK_S, LIMIT = 0.01, 20_000


@dataclass
class DoublingClient:
    """A connection over which every part and every result arrives twice."""

    client: MemoryClient

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return self.client.receive(timeout_s)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.client.send(frames)
        if isinstance(decode(frames, WorkerMessage | Hello)[0], SumsFrame | Result):
            self.client.send(frames)

    def shorten(self, shortcut: Shortcut | None) -> None:
        self.client.shorten(shortcut)

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


class Killed(BaseException):  # nothing that a worker would catch
    """The end of a worker in the middle of what it does."""


@dataclass
class Life:
    """How many parts a worker sends before it is killed; with 0 it is not."""

    parts: int


@dataclass
class DyingClient:
    """A connection whose worker is killed once it has sent so many parts, over this one and others."""

    client: MemoryClient
    life: Life

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return self.client.receive(timeout_s)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.client.send(frames)
        if isinstance(decode(frames, WorkerMessage | Hello)[0], SumsFrame):
            self.life.parts -= 1
            if self.life.parts == 0:
                raise Killed

    def shorten(self, shortcut: Shortcut | None) -> None:
        self.client.shorten(shortcut)

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


@dataclass
class SpoilingClient:
    """A connection of a worker whose sums of some step are not finite at one place, wherever it leaves them."""

    client: MemoryClient
    spoils: "Spoils"

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return self.client.receive(timeout_s)

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        message, arrays = decode(frames, WorkerMessage | Hello)
        if isinstance(message, SumsFrame | Result) and message.step == self.spoils.step:
            frames = encode(message, [self.spoils.words(array) for array in arrays])
            self.spoils.shared()
        self.client.send(frames)

    def shorten(self, shortcut: Shortcut | None) -> None:
        self.client.shorten(shortcut)

    def close(self, linger_s: float = 0.0) -> None:
        self.client.close(linger_s)


@dataclass
class Spoils:
    """At which step, and of which of its values; `runner` is set once there is one."""

    step: int
    place: int
    runner: WorkerShell | None = None

    def words(self, sums: Vector) -> Vector:
        """Return sums, or what they travel as, that hold no number."""
        words = sums.copy()
        words.view(np.uint32)[self.place] = 0xFFFFFFFF  # in float32, and in each type of the wire
        return words

    def shared(self) -> None:
        """Spoil sums in memory, where they are the server's as well."""
        compute = None if self.runner is None else self.runner._compute
        if compute is not None:
            compute.into[self.place] = np.nan


@dataclass
class Worker:
    """A worker and whether it acts at all."""

    runner: WorkerShell
    is_hanging: bool = False
    is_dead: bool = False

    def can_act(self) -> bool:
        return not (self.is_hanging or self.is_dead) and self.runner.ended is None

    def act(self) -> bool:
        """Let it handle a message, or the passing of time; return whether anything happened."""
        try:
            return self.runner.step()
        except Killed:
            self.die()
            return True

    def die(self) -> None:
        """End as by SIGKILL: the connection breaks, and nothing is said."""
        if not self.is_dead:
            self.is_dead = True
            self.runner.close()


@dataclass
class ShardProcess:
    """A shard and whether it acts at all."""

    server: ShardShell
    network: MemoryNetwork
    is_hanging: bool = False
    is_dead: bool = False

    def can_act(self) -> bool:
        return not (self.is_hanging or self.is_dead) and self.server.ended is None

    def die(self) -> None:
        """End as by SIGKILL."""
        if not self.is_dead:
            self.is_dead = True
            self.server.port.close()
            self.server.upstream.close()

    def close(self) -> None:
        """Give back what the system would take from a process that has ended: connections, and shared memory."""
        self.server.close()


@dataclass
class CountingRecorder(MetricsRecorder):
    """A recorder that also remembers who computed which micro-batches of each step, whether it has a folder or not."""

    shares: dict[int, list[LedgerShare]] = field(default_factory=dict)

    def account(self, step: int, account: Account, checksum: int) -> None:
        super().account(step, account, checksum)
        assert step not in self.shares, f"step {step} is recorded twice"
        self.shares[step] = list(account.shares)


@dataclass
class Simulation:
    """One run: a server, its workers, the network between them.

    One that offers memory, or keeps a run folder, has to be closed: it is the subject of a `with`.
    """

    job: Job
    seed: int = 0
    admission: AdmissionPolicy = field(default_factory=AdmissionPolicy)
    data: Callable[[], TrainTest] = digits
    folder: RunFolder | None = None
    #: Where the memory is that the server offers, None where it offers none.
    root: Path | None = None
    #: What makes a shard of that which the run opens with: a test double to show that the hash can differ.
    shard_of: Callable[[Shard], Shard] = lambda shard: shard
    #: Makes the coordinator: a test double to show the same.
    coordinator_of: Callable[[RunInfo], Coordinator] = Coordinator
    #: How workers help with updates, and the values of a slice that they make at once.
    helping: ParallelUpdateConfig = field(default_factory=ParallelUpdateConfig)
    part: int = PART
    #: Whether the shards see the memory that is offered.
    shards_share: bool = True
    workers: list[Worker] = field(default_factory=list)
    shards: list[ShardProcess] = field(default_factory=list)
    #: What the person at the server, and those at the workers, were told.
    said: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    clock: ManualClock = field(default_factory=ManualClock)
    network: MemoryNetwork = field(init=False)
    opening: RunSetup = field(init=False)
    recorder: CountingRecorder = field(init=False)
    server: Server = field(init=False)
    sharing: ServerSharedMemory | None = None

    def __post_init__(self) -> None:
        self._rng = generator(self.seed, Purpose.SHUFFLE, layer=2)
        self.network = MemoryNetwork(self.seed)
        self.opening = open_run("simulation", self.job, self.data(), self.admission)
        if self.root is not None:
            self.opening, self.sharing = share(self.opening, self.root)
        self.opening = replace(self.opening, shard=self.shard_of(self.opening.shard))
        setting = Setting(servers=self.admission.servers, transport="memory", started=self.clock.now())
        self.recorder = CountingRecorder(self.opening.info, setting, self.opening.layout, self.folder)
        self.recorder.begin(self.opening.shard.digest())
        self.server = Server(
            self.coordinator_of(self.opening.info),
            self.opening,
            self.recorder,
            self.network.server(),
            self.clock,
            self.said.append,
            sharing=self.sharing,
            helping=self.helping,
        )
        for _ in range(self.admission.servers - 1):
            self.add_shard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, and remove the memory that was offered."""
        for worker in self.workers:
            worker.die()
        for shard in self.shards:
            shard.close()
        self.server.port.close()
        self.server.group.updating.close()
        self.recorder.close()
        if self.sharing is not None:
            self.sharing.close()

    def add_shard(self, *, numerics: Fingerprint | None = None) -> ShardProcess:
        """Start a shard."""
        number = len(self.shards)
        network = MemoryNetwork(self.seed + 1 + number)
        join = ShardJoin(
            protocol=PROTOCOL_VERSION,
            incarnation=f"shard-{number}",
            host="host",
            pid=number,
            fingerprint=numerics or fingerprint(),
            address=f"memory://{number}",
        )
        server = ShardShell(
            ShardState(ClientConfig(address="memory://", join=join, silence_s=SILENCE_S)),
            network.server(),
            self.network.client(),
            self.clock,
            self.heard.append,
            wait_for_nothing,
            self.root if self.shards_share else None,
        )
        shard = ShardProcess(server, network)
        self.shards.append(shard)
        server.begin()
        return shard

    def add_worker(
        self,
        *,
        load: Loader | None = None,
        numerics: Fingerprint | None = None,
        doubles: bool = False,
        shares: bool = True,
        dies_after_parts: int = 0,
        spoils: Spoils | None = None,
        cache: Path | None = None,
    ) -> Worker:
        """Start a worker; one that `shares` does so where memory is offered."""
        join = Join(
            protocol=PROTOCOL_VERSION,
            incarnation=f"life-{len(self.workers)}",
            host="host",
            pid=len(self.workers),
            fingerprint=numerics or fingerprint(),
        )
        state = WorkerState(ClientConfig(address="memory://", join=join, silence_s=600.0))
        life = Life(dies_after_parts)

        def connect(network: MemoryNetwork) -> ClientPort:
            if spoils is not None:
                return SpoilingClient(network.client(), spoils)
            return DoublingClient(network.client()) if doubles else DyingClient(network.client(), life)

        def dial(address: str) -> ClientPort:
            return connect(self.shards[int(address.removeprefix("memory://"))].network)

        port = connect(self.network)
        root = self.root if shares else None
        load = load or (lambda name: self.data())
        runner = WorkerShell(state, port, self.clock, load, self.heard.append, root, dial, cache=cache, part=self.part)
        worker = Worker(runner)
        if spoils is not None:
            spoils.runner = runner
        self.workers.append(worker)
        runner.begin()
        return worker

    def turn(self) -> bool:
        """Let the server or a worker act, whichever is drawn; where nobody can, let time pass instead."""
        actors: list[Callable[[], bool]] = [worker.act for worker in self.workers if worker.can_act()]
        actors += [shard.server.step for shard in self.shards if shard.can_act()]
        actors.append(self.server.step)
        for place in self._rng.permutation(len(actors)):
            if actors[place]():
                self.validate()
                self.clock.advance(TICK_S)
                return True
        return self._let_time_pass()

    def validate(self) -> None:
        """Check the books of all servers."""
        self.server.coordinator.validate()
        self.server.group.state.validate()
        self.server.group.updating.state.validate()
        for shard in self.shards:
            shard.server.state.validate()

    def _let_time_pass(self) -> bool:
        """Move time to the next deadline of anybody; return False where there is none."""
        deadlines = [worker.runner.deadline() for worker in self.workers if worker.can_act()]
        deadlines += [shard.server.state.deadline() for shard in self.shards if shard.can_act()]
        deadlines.append(self.server.deadline())
        due = [at for at in deadlines if at is not None]
        if not due:
            return False
        self.clock.advance(max(0.0, min(due) - self.clock.now()))
        return True

    def wait(self, seconds: float) -> None:
        """Let time pass; the server looks at it each second, and reads nothing meanwhile."""
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            self.server.step()

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Act until the run has ended, or `until` holds."""
        for _ in range(LIMIT):
            if self.server.ended is not None or until():
                return
            assert self.turn(), "nobody acts, and nobody waits"
        raise AssertionError(f"the run is stuck: {self.said[-3:]}")

    def run_until_quiet(self) -> None:
        """Let the server act until it waits for a message or for time to pass."""
        while self.server.step():
            pass

    def run_to(self, step: int) -> None:
        """Act until the run is at that step."""
        self.run(until=lambda: self.server.coordinator.round.step >= step)

    def drain(self) -> None:
        """Let the workers read what was last sent to them."""
        while any(worker.act() for worker in self.workers if worker.can_act()):
            pass
        while any(shard.server.step() for shard in self.shards if shard.can_act()):
            pass

    def finish(self) -> str:
        """Run to the end, which is to be a good one; return the digest of the weights."""
        self.run()
        assert self.server.ended == Finish(), self.server.ended
        assert self.recorder.result is not None
        self.check_records()
        return self.recorder.result.weights_sha256

    def check_records(self) -> None:
        """Check what a run that ended well has recorded and released, whatever happened on the way."""
        assert self.recorder.result is not None
        assert list(self.recorder.shares) == list(range(self.recorder.result.steps))
        for step, shares in self.recorder.shares.items():
            counted = sorted(one for share in shares for one in range(share.lo, share.hi))
            assert counted == list(range(self.job.micro_batches)), f"step {step} counted {counted}"
        state, group = self.server.coordinator.state, self.server.group.state
        assert not state.leases.held, "leases are held after the end"
        assert not state.pending.results, "sums are awaited after the end"
        assert not group.awaited, "the shards are waited for after the end"

    def check_released(self) -> None:
        """Let everybody read what was last sent; all that can act have ended, and their sockets are closed."""
        self.drain()
        self.server.port.close()
        for worker in self.workers:
            if not (worker.is_dead or worker.is_hanging):
                assert worker.runner.ended == Exit(code=0, reason=""), worker.runner.ended
                worker.runner.close()
        for shard in self.shards:
            if not (shard.is_dead or shard.is_hanging):
                assert shard.server.ended == Exit(code=0, reason=""), shard.server.ended
                shard.server.close()
        for network in (self.network, *(shard.network for shard in self.shards)):
            assert not network.servers, "a server is still there"
            assert not network.clients, "a connection is still open"


def digest_with(job: Job, workers: int, seed: int, servers: int = 1) -> str:
    """Return the digest of the weights after a run with so many workers from the start, and so many servers."""
    simulation = Simulation(job, seed, AdmissionPolicy(min_workers=workers, servers=servers))
    for _ in range(workers):
        simulation.add_worker()
    return simulation.finish()

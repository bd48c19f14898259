"""A team whose processes are all in this one: a seed decides whose turn it is, also in the middle of what one does.

Others see what a process writes as it comes: at each of its barriers (`keep_order`), somebody else may have a turn, or
the process may be killed, or stand still until all is over, and then wake up.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common import nn
from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.source import with_validation
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import Metrics
from lockstep.common.job.tally import Tally
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.description import describe
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Lease, MultiStepLease, Work
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.team_memory import ENTRIES, ROWS, WEIGHTS, TeamShape, UpdateMarks, weights_shape
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.ps.server.shared_memory import ServerSharedMemory, share
from lockstep.ps.setup import RunSetup, open_run
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import SendBucket
from lockstep.worker.team.leader import Leader
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.memory import TeamMemory
from lockstep.worker.team.pace import Pace, Waking
from lockstep.worker.team.progress import PATIENT, OrderOutcome, Patience
from lockstep.worker.team.updates import SharedPlace
from tests.lockstep.common.model.built import build_model
from tests.simulation.small import JOBS, digits, job_of

#: Seconds that a turn takes, and turns after which a team counts as stuck.
TICK_S, LIMIT = 1e-4, 4000

#: Of the team, at the server.
RANK = 0


class Stuck(BaseException):
    """Nothing that the processes do leads to anything: not an exception that a process would take for a model's."""


class Killed(BaseException):
    """A process was killed in the middle of what it did."""


def wide(**values: Any) -> Job:
    """Return a job whose vector is three slices long, the last with statistics of BatchNorm; no step is short."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    return job_of(**{"model": describe(net), "global_batch": 8, "micro_batches": 4, "steps": 9, **values})


@dataclass
class Turns:
    """Whose turn it is; what becomes of a process at one of its barriers."""

    seed: int = 0
    #: How often others have turns at a barrier; and how many at most.
    share: float = 0.3
    most: int = 12
    #: How often a process does nothing for some time when it is its turn; and for how many seconds at most.
    pauses: float = 0.02
    longest_s: float = 0.02
    #: By process, the barrier at which it is killed, or at which it stands still until `wake`.
    killed: dict[int, int] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    #: By process, the barriers that it has come to.
    barriers: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = generator(self.seed, Purpose.SIMULATE)

    def reset(self) -> None:
        """Let nothing happen to any process, and count barriers from here on."""
        self.killed, self.stopped, self.barriers = {}, {}, {}

    def choose(self, from_: list[int]) -> int:
        return from_[int(self.rng.integers(len(from_)))]


@dataclass
class Crew:
    """A team, and the server's end of what it shares if it makes steps by itself."""

    job: Job
    members: list[TeamMember]
    clock: ManualClock
    folder: SharedFolder
    turns: Turns = field(default_factory=Turns)
    opening: RunSetup | None = None
    sharing: ServerSharedMemory | None = None
    #: Called after each turn.
    check: Callable[[], None] = lambda: None
    #: What happens while a process stands still, before it wakes up.
    meanwhile: Callable[[], None] = lambda: None
    gone: set[int] = field(default_factory=set)
    #: By process, until when it does nothing.
    paused: dict[int, float] = field(default_factory=dict)
    leader: Leader = field(init=False)
    #: The processes in the middle of something, the innermost last; how the last order has ended for which.
    acting: list[int] = field(default_factory=list)
    ended: dict[int, OrderOutcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leader = Leader(self.members[0], None)

    @classmethod
    def of(cls, job: Job, processes: int, root: Path, turns: Turns | None = None, **values: Any) -> "Crew":
        """Return a team of so many processes with the first weights of a job, in a folder below `root`."""
        clock, folder, first = ManualClock(), SharedFolder.create(root), weights_of(job)
        slots = folder.make(WEIGHTS, weights_shape(first.size)).vectors
        slots[0][:] = slots[1][:] = first
        members = list(_members(job, folder, processes, clock, (slots[0], slots[1]), **values))
        return cls(job, members, clock, folder, turns or Turns())

    @classmethod
    def serving(cls, job: Job, processes: int, root: Path, turns: Turns | None = None, **values: Any) -> "Crew":
        """Return a team that shares the memory of a server, with which a run begins."""
        clock, folder = ManualClock(), SharedFolder.create(root)
        opening, sharing = share(open_run("crew", job, digits(), RunOptions()), root)
        place = SharedPlace.attach(root, opening.info.welcome(RANK), opening.layout.size)
        sharing.admit(RANK, place.nonce, shape_of(job, processes, opening.layout.size))
        members = list(_members(job, folder, processes, clock, place.slots, place, **values))
        return cls(job, members, clock, folder, turns or Turns(), opening, sharing)

    def close(self) -> None:
        for member in self.members:
            member.close()
        if self.sharing is not None:
            self.sharing.close()
        self.folder.remove()

    # Turns

    def is_due(self, process: int) -> bool:
        """Tell whether a process has something to do now."""
        if process in self.gone or process in self.acting or self.paused.get(process, 0.0) > self.clock.now():
            return False
        member = self.members[process]
        due = member.due()
        return member.newest() is not None if due is None else due <= self.clock.now()

    def act(self, process: int) -> None:
        """Let a process do one thing; if it is killed in the middle of that, the system lets go of what it had."""
        self._listen(process)
        self.acting.append(process)
        try:
            outcome = self._act(process, self.members[process])
        except Killed:
            self.leave(process)
        else:
            if outcome is not None:
                self.ended[process] = outcome
        self.acting.pop()
        self.clock.advance(TICK_S)
        self.check()

    def _act(self, process: int, member: TeamMember) -> OrderOutcome | None:
        if member.is_busy:
            return self.leader.advance(self.clock.now()) if process == 0 else member.advance()
        order = member.newest()
        assert order is not None
        member.begin(order)
        return None

    def leave(self, process: int) -> None:
        """Let a process be gone, and with it its locks."""
        self.gone.add(process)
        self.members[process].close()

    def revive(self) -> None:
        """Start those that are gone again."""
        for process in sorted(self.gone):
            old = self.members[process]
            memory = TeamMemory.join(self.folder, old.memory.shape, process)
            # Its model has captured calls already: that is all that it has in common with the one before.
            member = _member(old.compute, memory, self.clock, old.pace.patience, old.place)
            member.follow(0 if self.sharing is None else self.sharing.generation)
            self.members[process] = member
        if 0 in self.gone:
            self.leader = Leader(self.members[0], None, None, self.leader.member.memory.marks.newest + ENTRIES)
        self.gone.clear()
        self.turns.reset()

    def _listen(self, process: int) -> None:
        """Let others act in the middle of what a process does: at its barriers."""
        member = self.members[process]

        def keep_order() -> None:
            if self.acting and self.acting[-1] == process:
                self._at_barrier(process)

        if member.memory.keep_order.__module__ != __name__:
            member.memory.keep_order = keep_order
        updates = None if member.chain is None else member.chain.updates
        if updates is not None and updates.marks.keep_order.__module__ != __name__:
            updates.marks = replace(updates.marks, keep_order=keep_order)

    def _at_barrier(self, process: int) -> None:
        turns = self.turns
        count = turns.barriers[process] = turns.barriers.get(process, 0) + 1
        if turns.killed.get(process) == count:
            raise Killed
        # Not in the middle of what the leader does, which would have to act meanwhile.
        if self.acting == [process] and turns.stopped.get(process, count + 1) <= count:
            del turns.stopped[process]
            self.meanwhile()
        elif len(self.acting) < 2 and turns.rng.random() < turns.share:
            for _ in range(int(turns.rng.integers(turns.most))):
                self.turn()

    def due(self) -> list[int]:
        """Return the processes that have something to do now."""
        return [process for process in range(len(self.members)) if self.is_due(process)]

    def turn(self) -> bool:
        """Let somebody do something, or time pass; return False if nobody has anything to do any more."""
        due, turns = self.due(), self.turns
        if due:
            process = turns.choose(due)
            if turns.rng.random() < turns.pauses:
                self.paused[process] = self.clock.now() + turns.longest_s * turns.rng.random()
            else:
                self.act(process)
            return True
        later = [
            max(at, self.paused.get(process, 0.0))
            for process, member in enumerate(self.members)
            if process not in self.gone and process not in self.acting and (at := self._wakes(member)) is not None
        ]
        if later:
            self.clock.advance(max(0.0, min(later) - self.clock.now()))
        return bool(later)

    def _wakes(self, member: TeamMember) -> float | None:
        """Return when a process has something to do, None if it waits for an order."""
        due = member.due()
        return self.clock.now() if due is None and member.newest() is not None else due

    def run(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let all act until it is over, or nobody has anything to do any more."""
        for _ in range(LIMIT):
            if is_over() or not self.turn():
                return
        raise Stuck([member.last for member in self.members])

    # What it works on

    def work(self, lease: Lease) -> OrderOutcome:
        """Let the team compute a lease; return how it has ended for the leader."""
        self.ended.pop(0, None)
        self.leader.begin_lease(lease)
        self.run(lambda: 0 in self.ended)
        return self.ended[0]

    def marks(self) -> UpdateMarks:
        """Return the marks of updates, which the server has made."""
        assert self.sharing is not None
        assert self.opening is not None
        marks = self.sharing.share_update(self.opening.shard, RANK)
        assert marks is not None
        return marks

    def begin_steps(self, first: int, last: int, number: int = 1) -> UpdateMarks:
        """Give the team several steps, as the server does."""
        assert self.sharing is not None
        assert self.opening is not None
        marks = self.marks()
        marks.begin(number, first, len(self.sharing.teams[RANK].slices))
        self.ended.clear()
        self.leader.begin_steps(
            MultiStepLease(
                number=number,
                incarnation="",
                first=first,
                last=last,
                reads=self.opening.shard.reads,
                memory=self.sharing.generation,
            )
        )
        return marks


def shape_of(job: Job, processes: int, size: int) -> TeamShape:
    return TeamShape(
        processes=processes,
        micro_batches=job.micro_batches,
        size=size,
        clips=job.clip_norm is not None,
        metrics=Metrics.of(job.loss, job.metrics or ()).size(classes=10),
    )


def weights_of(job: Job) -> Vector:
    """Return the weights that a job begins with."""
    model = build_model(job.model).initialize(job.seed)
    return gather(model, layout_of(model))


def _members(
    job: Job,
    folder: SharedFolder,
    processes: int,
    clock: ManualClock,
    slots: tuple[Vector, Vector],
    place: SharedPlace | None = None,
    *,
    patience: Patience = PATIENT,
    data: TrainTest | None = None,
) -> Iterator[TeamMember]:
    """Make the processes of a team, the leader first."""
    shape = shape_of(job, processes, slots[0].size)
    for process in range(processes):
        memory = TeamMemory.join(folder, shape, process) if process else TeamMemory.make(folder, shape)
        compute = compute_of(job, data, slots, memory.own.vectors[:ROWS])
        yield _member(compute, memory, clock, patience, place)


class FaultyCompute(Compute):
    """Computes with a model that may raise something."""

    fault: Exception | None = None

    def train(self, step: int, node: Node, send: SendBucket | None = None) -> tuple[Vector, Tally]:
        if self.fault is not None:
            raise self.fault
        return super().train(step, node, send)


def compute_of(job: Job, data: TrainTest | None, slots: tuple[Vector, Vector], sums: tuple[Vector, ...]) -> Compute:
    """Return what computes a job, by default on a few digits, in one pass as soon as it can."""
    model = AutogradModel(build_model(job.model).initialize(job.seed), warm_up=0)
    return FaultyCompute(job, model, with_validation(data or digits(), job.validation_split, job.seed), slots, sums)


def no_clock(place: NDArray[np.float64]) -> AbstractContextManager[None]:
    """Let kernels show nothing: their clock is not the one that is moved here."""
    return nullcontext()


def _member(
    compute: Compute, memory: TeamMemory, clock: ManualClock, patience: Patience, place: SharedPlace | None
) -> TeamMember:
    # Some do several things at once, as processes do, and others one.
    is_stepwise = memory.process % 2 == 0
    pace = Pace(memory, clock, patience)
    member = TeamMember(
        compute, memory, clock, pace, Waking(memory, None, shows_running=no_clock), place, is_stepwise=is_stepwise
    )
    compute.is_wanted = member.is_wanted
    # As if it had computed before: otherwise others would wait for seconds.
    member.pace.record_speed(TICK_S)
    member.pace.show_ready()
    return member


@dataclass(frozen=True)
class Alone:
    """What one process computes of a job, without a team."""

    compute: Compute

    @classmethod
    def of(cls, job: Job, data: TrainTest | None = None) -> "Alone":
        first = weights_of(job)
        return cls(compute_of(job, data, (first, first.copy()), (np.zeros_like(first),)))

    def train(self, step: int, node: Node) -> tuple[Vector, Tally, list[float]]:
        self.compute.turn(step)
        sums, tally = self.compute.train(step, node)
        return sums, tally, list(self.compute.losses)


def whole(job: Job, step: int = 0, work: Work = "train", micro_batches: int | None = None, number: int = 1) -> Lease:
    """Return a lease of all of a step."""
    return Lease(work=work, step=step, lo=0, hi=micro_batches or job.micro_batches, number=number)


def bits(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector).tobytes()


#: What a team computes: any job, and one whose vector is cut into slices.
TEAM_JOBS = {**JOBS, "wide": wide()}

"""The server's own slice as it is updated, alone or together with workers: carries out the effects of `ParallelUpdate`.

Where a run has several servers, or its memory is not shared, each update is made here at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.messages import (
    Dropped,
    Lease,
    MultiStepLease,
    MultiStepResult,
    Result,
    SliceLease,
    SliceResult,
    SumsPlace,
)
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.machine import TimePassed, carry_out
from lockstep.ps.coordinator.effects import ForgetWorker
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory import parallel_update as machine
from lockstep.ps.shared_memory.memory import ServerSharedMemory, WorkerLocks
from lockstep.ps.shared_memory.parallel_update import ParallelUpdate

#: Sends a worker, by its rank, the lease of a slice, to which it adds whom that is for.
SendLease = Callable[[int, SliceLease], None]


@dataclass
class ParallelUpdateShell:
    """The updates of one shard."""

    state: ParallelUpdate
    shard: Shard
    clock: Clock
    send: SendLease
    #: The memory in which workers can help, None if there is none.
    sharing: ServerSharedMemory | None = None
    #: Whether any update may ever be leased.
    may_lease: bool = field(init=False)
    #: The update at hand: what is the same for all values, and where its sums are.
    _at: UpdateStep | None = None
    _terms: Sequence[Sequence[Vector]] = ()
    _places: Sequence[SumsPlace] = ()
    #: The first weights that are not finite in the parts that were made.
    _not_finite: list[int] = field(default_factory=list)
    #: Those that workers hold while they make a slice, or we if it was withdrawn.
    _locks: WorkerLocks = field(default_factory=WorkerLocks)
    #: The update that was just completed.
    _completed: UpdateStep | None = None

    def __post_init__(self) -> None:
        self.may_lease = self.sharing is not None and self.state.may_lease()

    def update(self, step: int, count: int, scale: float | None) -> UpdateStep | None:
        """Make an update; return it, or None if workers are still to answer."""
        if not self.may_lease:
            return self.shard.update(step, count, scale)  # for which the machine need not be asked
        self._terms = self.shard.terms()
        self._places = self._shared_places()
        is_shared = bool(self._places)
        self._at = self.shard.begin_update(step, count, scale, in_place=not is_shared)
        return self.dispatch(machine.SumsCompleted(step=step, can_share=is_shared))

    def _shared_places(self) -> Sequence[SumsPlace]:
        """Return where the sums are if the update can be leased, and is to be."""
        if not self.state.wants_help():
            return ()
        assert self.sharing is not None  # otherwise updates are made alone
        places = self.sharing.places_of(self.shard.frames, self._terms)
        return places if places and self.sharing.share_update(self.shard) else ()

    def on_lease(self, rank: int, lease: Lease | MultiStepLease) -> None:
        """Record that a worker is sent a lease: until it has answered, it is not idle."""
        if self.may_lease:
            self.dispatch(machine.HelperLeased(rank=rank, lease=lease.key()))

    def on_answer(self, rank: int, answer: Result | Dropped | MultiStepResult) -> None:
        """Record that it has answered one."""
        if self.may_lease:
            self.dispatch(machine.HelperAnswered(rank=rank, lease=answer.key()))

    def remove(self, effect: ForgetWorker) -> UpdateStep | None:
        """Handle that a worker is gone; return the update if it is complete."""
        completed, rank = self.dispatch(effect), effect.rank
        is_needed = rank in self.state.withdrawn.values() or any(
            loan.rank == rank for loan in self.state.loans.values()
        )
        if not is_needed:
            self._locks.close(rank)
        return completed

    def on_time(self, now: float) -> UpdateStep | None:
        """Handle the passing of time; return the update if it is complete."""
        due = self.state.deadline()
        return self.dispatch(TimePassed()) if due is not None and now >= due else None

    def on_result(self, rank: int, result: SliceResult) -> UpdateStep | None:
        """Handle what a worker reports of a slice; return the update if it is complete."""
        loan = self.state.loans.get(result.number)
        if loan is not None and loan.rank != rank:
            raise RemoteProtocolError(f"an answer to slice {result.number}, which is leased to worker {loan.rank}")
        if loan is not None and result.is_done and result.not_finite is not None:
            self._not_finite.append(result.not_finite)
        return self.dispatch(result)

    def dispatch(self, event: machine.ParallelUpdateEvent) -> UpdateStep | None:
        """Let the machine handle an event, and whatever its effects lead to; return the update if it is complete."""
        carry_out(self.state, [event], self._perform, self.clock.now)
        completed, self._completed = self._completed, None
        return completed

    def _perform(self, effect: machine.ParallelUpdateEffect) -> Sequence[machine.ParallelUpdateEvent]:
        match effect:
            case machine.LeaseSlice():
                return self._lease(effect)
            case machine.UpdateOwnPart(part=part):
                assert self._at is not None  # an update is being made
                place = self.shard.updating.run(self._at, part, self._terms)
                self._not_finite += [] if place is None else [place]
                return [machine.OwnPartUpdated(part=part)]
            case machine.WithdrawSlices(ranks=ranks):
                taken = {number for number, rank in ranks.items() if self._locks.acquire(rank)}
                held = tuple(sorted(ranks.keys() - taken))
                return [machine.WithdrawalTried(withdrawn=tuple(sorted(taken)), held=held)]
            case machine.EndWithdrawal(rank=rank):
                self._locks.release(rank)
            case machine.MoveMemory():
                return [machine.MemoryMoved(is_done=self._move())]
            case machine.CompleteUpdate():
                self._complete()
            case _:
                assert_never(effect)
        return []

    def _lease(self, effect: machine.LeaseSlice) -> Sequence[machine.ParallelUpdateEvent]:
        at, sharing = self._at, self.sharing
        assert at is not None
        assert sharing is not None  # an update can be leased
        try:
            self._locks.open(effect.rank, sharing)
        except SharingError:
            return [SliceResult(number=effect.number, is_done=False)]
        lease = SliceLease(
            number=effect.number,
            incarnation="",
            step=at.step,
            start=effect.part.start,
            stop=effect.part.stop,
            count=at.count,
            rate=at.rate,
            scale=at.scale,
            reads=at.reads,
            terms=list(self._places),
            memory=sharing.generation,
        )
        self.send(effect.rank, lease)
        return []

    def _move(self) -> bool:
        """Continue in other memory, with the update from its beginning; return False if there is no room."""
        at, sharing = self._at, self.sharing
        assert at is not None
        assert sharing is not None
        if not sharing.move(self.shard):
            return False
        self._not_finite.clear()
        self._at = self.shard.begin_update(at.step, at.count, at.scale)
        return True

    def _complete(self) -> None:
        at = self._at
        assert at is not None
        self.shard.end_update(at, min(self._not_finite, default=None))
        self._completed, self._at, self._terms, self._places = at, None, (), ()
        self._not_finite.clear()

    def close(self) -> None:
        """Give back all locks."""
        self._locks.close_all()

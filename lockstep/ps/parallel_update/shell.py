"""The server's own slice as it is updated, alone or together with workers: carries out the effects of `ParallelUpdate`.

Where a run has several servers, or its memory is not shared, each update is made here at once.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.errors import RemoteProtocolError, SharingError
from lockstep.common.protocol.messages import Dropped, Lease, Result, SliceLease, SliceResult, SumsPlace
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.shared_memory.folder import FileLock
from lockstep.ps.parallel_update import effects, events
from lockstep.ps.parallel_update.parallel_update import ParallelUpdate
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory import ServerSharedMemory

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
    #: By rank, the locks that workers hold while they make a slice, or we if it was withdrawn.
    _locks: dict[int, FileLock] = field(default_factory=dict)
    #: The update that was just completed.
    _completed: UpdateStep | None = None

    def __post_init__(self) -> None:
        self.may_lease = self.sharing is not None and self.state.may_lease()

    def update(self, step: int, count: int, scale: float | None) -> UpdateStep | None:
        """Make an update; return it, or None if workers are still to answer."""
        if not self.may_lease:
            return self._update_alone(step, count, scale)
        self._terms = self.shard.terms()
        self._places = self._shared_places()
        is_shared = bool(self._places)
        self._at = self.shard.begin_update(step, count, scale, in_place=not is_shared)
        return self.dispatch(events.SumsCompleted(step=step, can_share=is_shared))

    def _update_alone(self, step: int, count: int, scale: float | None) -> UpdateStep:
        """Make an update that nobody could ever help with, for which the machine need not be asked."""
        shard = self.shard
        at = shard.begin_update(step, count, scale)
        shard.end_update(at, shard.updating.run(at, shard.owned, shard.terms()))
        return at

    def _shared_places(self) -> Sequence[SumsPlace]:
        """Return where the sums are if the update can be leased, and is to be."""
        if not self.state.wants_help():
            return ()
        assert self.sharing is not None  # otherwise updates are made alone
        places = self.sharing.places_of(self.shard.frames, self._terms)
        return places if places and self.sharing.share_update(self.shard) else ()

    def on_lease(self, rank: int, lease: Lease) -> None:
        """Record that a worker is sent a lease of micro-batches."""
        if self.may_lease:
            self.dispatch(events.HelperLeased(rank=rank, lease=(lease.work, lease.step, lease.number)))

    def on_answer(self, rank: int, answer: Result | Dropped) -> None:
        """Record that it has answered one."""
        if self.may_lease:
            self.dispatch(events.HelperAnswered(rank=rank, lease=(answer.work, answer.step, answer.number)))

    def on_multi_step(self, rank: int, number: int, *, is_answered: bool) -> None:
        """Record that a worker is sent a multi-step lease, or has answered it: until then it is not idle."""
        if not self.may_lease:
            return
        key: events.LeaseKey = ("train", -number, 0)
        if is_answered:
            self.dispatch(events.HelperAnswered(rank=rank, lease=key))
        else:
            self.dispatch(events.HelperLeased(rank=rank, lease=key))

    def remove(self, rank: int) -> UpdateStep | None:
        """Handle that a worker is gone; return the update if it is complete."""
        completed = self.dispatch(events.HelperRemoved(rank=rank))
        is_needed = rank in self.state.withdrawn.values() or any(
            loan.rank == rank for loan in self.state.loans.values()
        )
        if not is_needed and rank in self._locks:
            self._locks.pop(rank).close()
        return completed

    def on_time(self, now: float) -> UpdateStep | None:
        """Handle the passing of time; return the update if it is complete."""
        due = self.state.deadline()
        return self.dispatch(events.TimePassed()) if due is not None and now >= due else None

    def on_result(self, rank: int, result: SliceResult) -> UpdateStep | None:
        """Handle what a worker reports of a slice; return the update if it is complete."""
        loan = self.state.loans.get(result.number)
        if loan is not None and loan.rank != rank:
            raise RemoteProtocolError(f"an answer to slice {result.number}, which is leased to worker {loan.rank}")
        if loan is not None and result.is_done and result.not_finite is not None:
            self._not_finite.append(result.not_finite)
        answered = events.SliceAnswered(number=result.number, is_done=result.is_done, seconds=result.seconds)
        return self.dispatch(answered)

    def dispatch(self, event: events.ParallelUpdateEvent) -> UpdateStep | None:
        """Let the machine handle an event, and whatever its effects lead to; return the update if it is complete."""
        pending = deque([event])
        while pending:
            for effect in self.state.handle(pending.popleft(), self.clock.now()):
                following = self._perform(effect)
                if following is not None:
                    pending.append(following)
        completed, self._completed = self._completed, None
        return completed

    def _perform(self, effect: effects.ParallelUpdateEffect) -> events.ParallelUpdateEvent | None:
        match effect:
            case effects.LeaseSlice():
                return self._lease(effect)
            case effects.UpdateOwnPart(part=part):
                assert self._at is not None  # an update is being made
                place = self.shard.updating.run(self._at, part, self._terms)
                self._not_finite += [] if place is None else [place]
                return events.OwnPartUpdated(part=part)
            case effects.WithdrawSlices(ranks=ranks):
                taken = {number for number, rank in ranks.items() if self._locks[rank].acquire()}
                return events.WithdrawalTried(withdrawn=tuple(sorted(taken)), held=tuple(sorted(ranks.keys() - taken)))
            case effects.EndWithdrawal(rank=rank):
                self._locks[rank].release()
            case effects.MoveMemory():
                return self._move()
            case effects.CompleteUpdate():
                self._complete()
            case _:
                assert_never(effect)
        return None

    def _lease(self, effect: effects.LeaseSlice) -> events.ParallelUpdateEvent | None:
        at, sharing = self._at, self.sharing
        assert at is not None
        assert sharing is not None  # an update can be leased
        try:
            if effect.rank not in self._locks:
                self._locks[effect.rank] = sharing.lock_of(effect.rank)
        except SharingError:
            return events.SliceAnswered(number=effect.number, is_done=False, seconds=0.0)
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
        return None

    def _move(self) -> events.ParallelUpdateEvent:
        """Go on in other memory, with the update as if nothing of it had been made."""
        at, sharing = self._at, self.sharing
        assert at is not None
        assert sharing is not None
        if not sharing.move(self.shard):
            return events.MemoryMoved(is_done=False)
        self._not_finite.clear()
        self._at = self.shard.begin_update(at.step, at.count, at.scale)
        return events.MemoryMoved(is_done=True)

    def _complete(self) -> None:
        at = self._at
        assert at is not None
        self.shard.end_update(at, min(self._not_finite, default=None))
        self._completed, self._at, self._terms, self._places = at, None, (), ()
        self._not_finite.clear()

    def close(self) -> None:
        """Give back all locks."""
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

"""Leases of several steps that workers make by themselves: carries out the effects of `MultiStepControl`.

It reads how far they are, turns what they show into steps that have been made, and takes their locks.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import JobError, SharingError
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol import messages
from lockstep.common.protocol.step_board import ENTRIES, LISTED, MADE, StepBoard
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.shared_memory.folder import FileLock
from lockstep.ps.coordinator import effects as coordinator_effects
from lockstep.ps.coordinator import events as coordinator_events
from lockstep.ps.coordinator.scheduling.multi_step_plan import LEAST_STEPS
from lockstep.ps.multi_step import effects, events
from lockstep.ps.multi_step.multi_step import MultiStepControl
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory import ServerSharedMemory

#: Sends a worker, by its rank, a message of a multi-step lease; returns that it has left if it cannot be sent to.
SendToWorker = Callable[
    [int, messages.MultiStepLease | messages.MultiStepWithdrawal], Sequence[coordinator_events.Event]
]


@dataclass
class MultiStepShell:
    """The multi-step leases of one run."""

    info: RunInfo
    shard: Shard
    clock: Clock
    send: SendToWorker
    report: Callable[[str], None]
    #: The memory in which workers make steps, None if there is none.
    sharing: ServerSharedMemory | None = None
    state: MultiStepControl = field(default_factory=MultiStepControl)
    #: When a checkpoint is due, for which the multi-step lease at hand is to end.
    until: float | None = None
    #: By rank, the boards of those who make it, and the locks of all who ever did.
    _boards: dict[int, StepBoard] = field(default_factory=dict)
    _locks: dict[int, FileLock] = field(default_factory=dict)
    #: What the coordinator is to handle, until `dispatch` returns it.
    _happened: list[coordinator_events.Event] = field(default_factory=list)

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""
        due = self.state.deadline()
        return due if due is None or self.until is None else min(due, self.until)

    def is_any(self) -> bool:
        """Tell whether workers may be making steps."""
        return self.state.deadline() is not None

    def begin(
        self, asked: coordinator_effects.LeaseSteps, last: int | None = None, until: float | None = None
    ) -> list[coordinator_events.Event]:
        """Let workers make steps; return what the coordinator is to handle.

        They make up to `last` steps of the run, until `until` in seconds of this clock. Each has its half of the
        micro-batches, and its slice of the update.
        """
        stop = asked.last if last is None else min(asked.last, last)
        sharing = self.sharing
        if sharing is None or sharing.board is None or not sharing.share_update(self.shard):
            return [coordinator_events.MultiStepLeaseRefused()]
        is_due = stop - asked.first < LEAST_STEPS or (until is not None and self.clock.now() >= until)
        # If the weights are not finite, the next step shows where, and those before them are kept.
        if is_due or self.shard.not_finite is not None or any(rank in self.state.locked for rank in asked.ranks):
            return [declined(asked)]
        self._forget(asked.ranks)
        try:
            slices = slices_for(self.shard.weights.size, len(asked.ranks))
            for rank in asked.ranks:
                self._lock_of(rank)
        except (JobError, SharingError):
            return [coordinator_events.MultiStepLeaseRefused()]
        self._boards, self.until = {rank: sharing.boards[rank] for rank in asked.ranks}, until
        sharing.board.mark(LISTED, asked.first)
        number, at = self.state.number + 1, self.shard.begin_update(asked.first, 1, in_place=False)
        halves = Node(0, self.info.job.micro_batches).halves()
        for rank, half, owned in zip(asked.ranks, halves, slices, strict=True):
            lease = messages.MultiStepLease(
                number=number,
                incarnation="",
                first=asked.first,
                last=stop,
                lo=half.lo,
                hi=half.hi,
                start=owned.start,
                stop=owned.stop,
                count=self.info.job.global_batch * self.info.targets,
                reads=at.reads,
                ranks=list(asked.ranks),
                patience_s=asked.patience_s,
                memory=sharing.generation,
            )
            self._happened += self.send(rank, lease)
        begun = events.StepsLeased(number=number, first=asked.first, last=stop, ranks=asked.ranks, step_s=asked.step_s)
        return self.dispatch(begun)

    def _forget(self, ranks: Sequence[int]) -> None:
        """Close the locks of workers that are gone, but not those that keep one from writing."""
        for rank in self._locks.keys() - {*ranks, *self.state.locked}:
            self._locks.pop(rank).close()

    def _lock_of(self, rank: int) -> FileLock:
        if rank not in self._locks:
            assert self.sharing is not None  # without it there is no multi-step lease
            self._locks[rank] = self.sharing.lock_of(rank)
        return self._locks[rank]

    def on_time(self, now: float) -> list[coordinator_events.Event]:
        """Handle the passing of time; return what the coordinator is to handle."""
        if self.is_any() and self.until is not None and now >= self.until:
            self.until = None
            return self.dispatch(events.EndRequested())
        due = self.state.deadline()
        return self.dispatch(events.TimePassed()) if due is not None and now >= due else []

    def on_answer(self, rank: int, answer: messages.MultiStepResult) -> list[coordinator_events.Event]:
        """Handle that a worker makes nothing more of a multi-step lease."""
        return self.dispatch(events.WorkerAnswered(number=answer.number, rank=rank, steps=answer.steps))

    def remove(self, rank: int) -> list[coordinator_events.Event]:
        """Handle that a worker is gone."""
        return self.dispatch(events.MemberRemoved(rank=rank))

    def end(self, *, is_hurried: bool = False, is_final: bool = False) -> list[coordinator_events.Event]:
        """Take the steps back, to continue one by one; arguments as of `EndRequested`."""
        if not self.is_any():
            return []
        return self.dispatch(events.EndRequested(is_hurried=is_hurried, is_final=is_final))

    def dispatch(self, event: events.MultiStepEvent) -> list[coordinator_events.Event]:
        """Let the machine handle an event, and whatever its effects lead to; return what the coordinator handles."""
        pending = deque([event])
        while pending:
            for effect in self.state.handle(pending.popleft(), self.clock.now()):
                following = self._perform(effect)
                if following is not None:
                    pending.append(following)
        happened, self._happened = self._happened, []
        return happened

    def _perform(self, effect: effects.MultiStepEffect) -> events.MultiStepEvent | None:
        match effect:
            case effects.ReadBoards():
                return events.BoardsRead(made=self._least(MADE), listed=self._least(LISTED))
            case effects.RecordSteps(first=first, last=last):
                self._happened += self._made(first, last)
                assert self.sharing is not None
                assert self.sharing.board is not None  # of a multi-step lease
                self.sharing.board.mark(LISTED, last)
            case effects.SendWithdrawal(ranks=ranks):
                for rank in ranks:
                    self._happened += self.send(rank, messages.MultiStepWithdrawal(number=self.state.number))
            case effects.TryLocks(ranks=ranks):
                return events.LocksTried(taken=tuple(rank for rank in ranks if self._locks[rank].acquire()))
            case effects.ReleaseLock(rank=rank):
                self._locks[rank].release()
            case effects.LeaveMemory():
                return self._move()
            case effects.ReportStuck():
                text = "both workers stand still in the middle of an update: the run waits for one to go on, or to end"
                self.report(text)
            case effects.CompleteSteps():
                self._complete(effect)
            case _:
                assert_never(effect)
        return None

    def _complete(self, effect: effects.CompleteSteps) -> None:
        if self.shard.updates < effect.steps:
            self.shard.skip_to(effect.steps)
        completed = coordinator_events.MultiStepLeaseEnded(
            number=self.state.number, steps=effect.steps, is_cut=effect.is_cut, silent=effect.silent
        )
        self._happened.append(completed)

    def _least(self, what: int) -> int:
        """Return how many steps all workers have made, or listed; what they show may be of an earlier lease."""
        return max(self.state.recorded, min(board.count(what) for board in self._boards.values()))

    def _made(self, first: int, last: int) -> Iterator[coordinator_events.StepMade]:
        """Yield the steps `[first, last)` as their workers have shown them."""
        for step in range(first, last):
            halves = tuple(self._half(rank, board, step) for rank, board in self._boards.items())
            lister = next((board for board in self._boards.values() if board.count(LISTED) > step), None)
            # Otherwise it is the last one made, and nothing is written over its weights.
            weights = self.shard.slots[(step + 1) % 2]
            found = checksum_after(step, weights) if lister is None else int(lister.entries[step % ENTRIES]["checksum"])
            entries = [board.entries[step % ENTRIES] for board in self._boards.values()]
            yield coordinator_events.StepMade(
                step=step,
                halves=(halves[0], halves[1]),
                # By one clock: then the times of all steps add up to that of the multi-step lease.
                round_s=max(0.0, float(entries[0]["round_s"])),
                update_s=max(0.0, *(float(entry["update_s"]) for entry in entries)),
                checksum=found,
                rate=self.shard.policy.schedule.rate(step),
            )

    def _half(self, rank: int, board: StepBoard, step: int) -> coordinator_events.HalfStep:
        entry = board.entries[step % ENTRIES]
        losses: Sequence[float] = entry["losses"][: self.info.job.micro_batches // 2].tolist()
        return coordinator_events.HalfStep(
            rank=rank,
            loss_sum=float(entry["loss_sum"]),
            correct=int(entry["correct"]),
            count=int(entry["count"]),
            compute_s=float(entry["compute_s"]),
            losses=pack_losses(losses),
            began_s=max(0.0, float(entry["began_s"])),
            ended_s=max(0.0, float(entry["ended_s"])),
        )

    def _move(self) -> events.MultiStepEvent:
        """Go on in other memory, after the steps that are made by now."""
        assert self.sharing is not None  # otherwise there is no multi-step lease
        made = self._least(MADE)
        before = self.shard.updates
        self.shard.skip_to(made)
        if not self.sharing.move(self.shard):
            self.shard.skip_to(before)
            return events.MemoryLeft(made=None)
        return events.MemoryLeft(made=made)

    def close(self) -> None:
        """Give back all locks."""
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()


def declined(asked: coordinator_effects.LeaseSteps) -> coordinator_events.Event:
    """Return that the steps of a multi-step lease are to be leased instead."""
    return coordinator_events.MultiStepLeaseEnded(number=0, steps=asked.first, is_cut=False, silent=())

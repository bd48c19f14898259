"""Leases of several steps that workers make by themselves: carries out the effects of `MultiStepControl`.

It reads how far they are, turns what they show into steps that have been made, and takes their locks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.slices import slices_for
from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import JobError, SharingError
from lockstep.common.job.tally import pack_losses
from lockstep.common.protocol import messages
from lockstep.common.protocol.step_board import ENTERED, ENTRIES, MADE, READ, StepBoard
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.machine import TimePassed, carry_out
from lockstep.ps.coordinator import effects as coordinator_effects
from lockstep.ps.coordinator import events as coordinator_events
from lockstep.ps.coordinator.scheduling.multi_step_plan import LEAST_STEPS
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory import multi_step as machine
from lockstep.ps.shared_memory.memory import ServerSharedMemory, WorkerLocks
from lockstep.ps.shared_memory.multi_step import MultiStepControl

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
    _locks: WorkerLocks = field(default_factory=WorkerLocks)
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
        self._locks.close_others({*asked.ranks, *self.state.locked})
        try:
            slices = slices_for(self.shard.weights.size, len(asked.ranks))
            for rank in asked.ranks:
                self._locks.open(rank, sharing)
        except (JobError, SharingError):
            return [coordinator_events.MultiStepLeaseRefused()]
        self._boards, self.until = {rank: sharing.boards[rank] for rank in asked.ranks}, until
        self._show_read(asked.first)
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
        return self.dispatch(msgspec.structs.replace(asked, last=stop))

    def on_time(self, now: float) -> list[coordinator_events.Event]:
        """Handle the passing of time; return what the coordinator is to handle."""
        if self.is_any() and self.until is not None and now >= self.until:
            self.until = None
            return self.dispatch(machine.EndRequested())
        due = self.state.deadline()
        return self.dispatch(TimePassed()) if due is not None and now >= due else []

    def on_answer(self, rank: int, answer: messages.MultiStepResult) -> list[coordinator_events.Event]:
        """Handle that a worker makes nothing more of a multi-step lease."""
        return self.dispatch(machine.WorkerAnswered(number=answer.number, rank=rank, steps=answer.steps))

    def end(self, *, is_interrupted: bool = False, is_final: bool = False) -> list[coordinator_events.Event]:
        """Withdraw the steps, to continue one by one; arguments as of `EndRequested`."""
        if not self.is_any():
            return []
        return self.dispatch(machine.EndRequested(is_interrupted=is_interrupted, is_final=is_final))

    def dispatch(self, event: machine.MultiStepEvent) -> list[coordinator_events.Event]:
        """Let the machine handle an event, and whatever its effects lead to; return what the coordinator handles."""
        carry_out(self.state, [event], self._perform, self.clock.now)
        happened, self._happened = self._happened, []
        return happened

    def _perform(self, effect: machine.MultiStepEffect) -> Sequence[machine.MultiStepEvent]:
        match effect:
            case machine.ReadBoards():
                return [machine.BoardsRead(made=self._least(MADE), entered=self._least(ENTERED))]
            case machine.RecordSteps(first=first, last=last):
                self._happened += self._made(first, last)
                self._show_read(last)
            case machine.SendWithdrawal(ranks=ranks):
                for rank in ranks:
                    self._happened += self.send(rank, messages.MultiStepWithdrawal(number=self.state.number))
            case machine.TryLocks(ranks=ranks):
                return [machine.LocksTried(taken=tuple(rank for rank in ranks if self._locks.acquire(rank)))]
            case machine.ReleaseLock(rank=rank):
                self._locks.release(rank)
            case machine.LeaveMemory():
                return [machine.MemoryLeft(made=self._move())]
            case machine.ReportStuck():
                text = "both workers stand still in the middle of an update: the run waits for one to go on, or to end"
                self.report(text)
            case coordinator_events.MultiStepLeaseEnded():
                if self.shard.updates < effect.steps:
                    self.shard.skip_to(effect.steps)
                self._happened.append(effect)
            case _:
                assert_never(effect)
        return []

    def _show_read(self, steps: int) -> None:
        """Show workers of how many steps we have read the entries."""
        assert self.sharing is not None
        assert self.sharing.board is not None  # of a multi-step lease
        self.sharing.board.mark(READ, steps)

    def _least(self, what: int) -> int:
        """Return how many steps all workers have made, or entered; what they show may be of an earlier lease."""
        return max(self.state.recorded, min(board.count(what) for board in self._boards.values()))

    def _made(self, first: int, last: int) -> Iterator[coordinator_events.StepMade]:
        """Yield the steps `[first, last)` as their workers have shown them."""
        for step in range(first, last):
            halves = tuple(self._half(rank, board, step) for rank, board in self._boards.items())
            entered = next((board for board in self._boards.values() if board.count(ENTERED) > step), None)
            # Otherwise it is the last one made, and nothing is written over its weights.
            weights = self.shard.slots[(step + 1) % 2]
            found = (
                checksum_after(step, weights) if entered is None else int(entered.entries[step % ENTRIES]["checksum"])
            )
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

    def _move(self) -> int | None:
        """Continue in other memory; return after how many steps, None if there is no room."""
        assert self.sharing is not None  # otherwise there is no multi-step lease
        made, before = self._least(MADE), self.shard.updates
        self.shard.skip_to(made)
        if self.sharing.move(self.shard):
            return made
        self.shard.skip_to(before)
        return None

    def close(self) -> None:
        """Give back all locks."""
        self._locks.close_all()


def declined(asked: coordinator_effects.LeaseSteps) -> coordinator_events.Event:
    """Return that the steps of a multi-step lease are to be leased instead."""
    return coordinator_events.MultiStepLeaseEnded(lease=None, steps=asked.first, is_cut=False, silent=())

"""Leases of several steps that a team makes by itself: carries out the effects of `MultiStepControl`.

It reads how far the team is, turns what that shows into steps that have been made, and takes the locks of slices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol import messages
from lockstep.common.protocol.team_memory import ENTRIES, UpdateMarks, tally_in
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.machine import TimePassed, carry_out
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.ps.coordinator import effects as coordinator_effects
from lockstep.ps.coordinator import events as coordinator_events
from lockstep.ps.coordinator.scheduling.multi_step_plan import LEAST_STEPS
from lockstep.ps.run.info import RunInfo
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory import multi_step as machine
from lockstep.ps.shared_memory.memory import ServerSharedMemory
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
    #: The memory in which a team makes steps, None if there is none.
    sharing: ServerSharedMemory | None = None
    state: MultiStepControl = field(default_factory=MultiStepControl)
    #: When a checkpoint is due, for which the multi-step lease at hand is to end.
    until: float | None = None
    #: What the team that makes it shows; also if the run leaves the memory that this is in.
    _marks: UpdateMarks | None = None
    #: Whether it was reported that there is no room for the memory.
    _is_reported: bool = False
    #: Steps whose figures are all in its entries, as of when they were read last.
    _entered: int = 0
    #: What the coordinator is to handle, until `dispatch` returns it.
    _happened: list[coordinator_events.Event] = field(default_factory=list)

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""
        due = self.state.deadline()
        return due if due is None or self.until is None else min(due, self.until)

    def is_any(self) -> bool:
        """Tell whether a team may be making steps."""
        return self.state.deadline() is not None

    def begin(
        self, asked: coordinator_effects.LeaseSteps, last: int | None = None, until: float | None = None
    ) -> list[coordinator_events.Event]:
        """Let a team make steps; return what the coordinator is to handle.

        It makes up to `last` steps of the run, until `until` in seconds of this clock.
        """
        stop = asked.last if last is None else min(asked.last, last)
        sharing = self.sharing
        marks = None if sharing is None else sharing.share_update(self.shard, asked.rank)
        if sharing is not None and sharing.obstacle:
            # There may be room later: it is tried again after a pause that grows.
            self._report_once(sharing.obstacle)
            return [declined(asked, is_cut=True)]
        if sharing is None or marks is None:
            return [coordinator_events.MultiStepLeaseRefused()]
        is_due = stop - asked.first < LEAST_STEPS or (until is not None and self.clock.now() >= until)
        # If the weights are not finite, the next step shows where, and those before them are kept.
        if is_due or self.shard.not_finite is not None:
            return [declined(asked)]
        self._marks, self.until, slices = marks, until, len(sharing.teams[asked.rank].slices)
        leased = machine.StepsLeased(rank=asked.rank, first=asked.first, last=stop, step_s=asked.step_s, slices=slices)
        happened = self.dispatch(leased)
        assert not marks.number, "a lease of several steps has not ended"
        marks.begin(self.state.number, asked.first, slices)
        lease = messages.MultiStepLease(
            number=self.state.number,
            incarnation="",
            first=asked.first,
            last=stop,
            reads=self.shard.reads,
            memory=sharing.generation,
        )
        return [*happened, *self.send(asked.rank, lease)]

    def _report_once(self, obstacle: str) -> None:
        if not self._is_reported:
            self._is_reported = True
            self.report(f"warning: a team waits for the server at each step, which is slower: {obstacle}")

    def on_time(self, now: float) -> list[coordinator_events.Event]:
        """Handle the passing of time; return what the coordinator is to handle."""
        if self.is_any() and self.until is not None and now >= self.until:
            self.until = None
            return self.dispatch(machine.EndRequested())
        due = self.state.deadline()
        return self.dispatch(TimePassed()) if due is not None and now >= due else []

    def on_answer(self, rank: int, answer: messages.MultiStepResult) -> list[coordinator_events.Event]:
        """Handle that a team makes no more of a multi-step lease, if it is that team's."""
        return [] if rank != self.state.rank else self.dispatch(machine.HolderAnswered(number=answer.number))

    def end(self, *, is_interrupted: bool = False) -> list[coordinator_events.Event]:
        """End the lease, to continue step by step or, after an interrupt, not at all."""
        return self.dispatch(machine.EndRequested(is_interrupted=is_interrupted))

    def dispatch(self, event: machine.MultiStepEvent) -> list[coordinator_events.Event]:
        """Let the machine handle an event, and whatever its effects lead to; return what the coordinator handles."""
        carry_out(self.state, [event], self._perform, self.clock.now)
        happened, self._happened = self._happened, []
        return happened

    def _perform(self, effect: machine.MultiStepEffect) -> Sequence[machine.MultiStepEvent]:
        match effect:
            case machine.ReadMarks():
                return [self._read_marks()]
            case machine.RecordSteps(first=first, last=last):
                self._happened += self._made(first, last)
                self._of_lease().show_read(last)
            case machine.SendWithdrawal(rank=rank):
                self._happened += self.send(rank, messages.MultiStepWithdrawal(number=self.state.number))
            case machine.TryLocks(slices=slices):
                locks = self._locks()
                return [machine.LocksTried(taken=tuple(slice_ for slice_ in slices if locks[slice_].acquire()))]
            case machine.EndUpdates():
                self._of_lease().end()
            case machine.ReleaseLocks(slices=slices):
                for slice_ in slices:
                    self._locks()[slice_].release()
            case machine.LeaveMemory():
                return [machine.MemoryLeft(made=self._move())]
            case machine.ReportStuck():
                self.report(
                    "a process of the team stands still in the middle of an update, and there is no room for other "
                    "memory: the run waits for it to continue, or to end"
                )
            case coordinator_events.MultiStepLeaseEnded():
                self._ended(effect)
            case _:
                assert_never(effect)
        return []

    def _ended(self, effect: coordinator_events.MultiStepLeaseEnded) -> None:
        if self.shard.updates < effect.steps:
            self.shard.skip_to(effect.steps)
        self._marks = None
        self._happened.append(effect)

    def _of_lease(self) -> UpdateMarks:
        assert self._marks is not None  # of a multi-step lease
        return self._marks

    def _locks(self) -> Sequence[FileLock]:
        assert self.sharing is not None
        assert self.sharing.update is not None
        return self.sharing.update.locks

    def _read_marks(self) -> machine.MarksRead:
        """Return how far the team is.

        The checksum of the weights after a step is in the entry of the next one, and is there before that step is
        marked as made in the last slice.
        """
        marks = self._of_lease()
        made = marks.least()
        self._entered = min(made, int(marks.made[marks.slices - 1]) - 1)
        marks.keep_order()
        return machine.MarksRead(made=made, entered=self._entered)

    def _made(self, first: int, last: int) -> Iterator[coordinator_events.StepMade]:
        """Yield the steps `[first, last)` as their team has shown them."""
        entries = self._of_lease().entries
        for step in range(first, last):
            entry = entries[step % ENTRIES]
            assert entry["step"] == step, f"the entry of step {step} is that of {entry['step']}"
            if step < self._entered:
                checksum = int(entries[(step + 1) % ENTRIES]["checksum"])
            else:
                # Nobody has begun the next step but one, so nothing is written over its weights.
                checksum = checksum_after(step, self.shard.slots[(step + 1) % 2])
            yield coordinator_events.StepMade(
                step=step,
                rank=self.state.rank,
                tally=tally_in(entry),
                losses=entry["losses"].astype("<f4").tobytes(),
                parts=tuple(_parts(entry)),
                round_s=max(0.0, float(entry["round_s"])),
                update_s=max(0.0, float(entry["update_s"])),
                checksum=checksum,
                rate=self.shard.policy.schedule.rate(step),
            )

    def _move(self) -> int | None:
        """Continue in other memory; return after how many steps, None if there is no room.

        Before anything is copied, the lease is marked as ended in the old memory. So whoever still writes there does
        so beside the weights that count: it began before all slices of this step were made.
        """
        assert self.sharing is not None
        self._of_lease().end()
        made, before = self._read_marks().made, self.shard.updates
        self.shard.skip_to(made)
        if self.sharing.move(self.shard):
            return made
        self.shard.skip_to(before)
        return None


def _parts(entry: np.void) -> Iterator[coordinator_events.PartMade]:
    """Yield the parts that a step was put together from."""
    for (lo, hi, process), (compute_s, began_s, ended_s) in zip(
        entry["parts"][: entry["used"]].tolist(), entry["times"][: entry["used"]].tolist(), strict=True
    ):
        yield coordinator_events.PartMade(
            node=Node(lo, hi),
            process=process,
            began_s=max(0.0, began_s),
            ended_s=max(0.0, ended_s),
            compute_s=max(0.0, compute_s),
        )


def declined(asked: coordinator_effects.LeaseSteps, *, is_cut: bool = False) -> coordinator_events.Event:
    """Return that the steps of a multi-step lease are to be leased instead; if it is cut, for some time."""
    return coordinator_events.MultiStepLeaseEnded(lease=None, steps=asked.first, is_cut=is_cut, is_silent=False)

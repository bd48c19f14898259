"""Leases of several steps that a team makes by itself in the server's memory: begins and ends them. A shell.

It turns the marks of a team into steps that have been made, and takes the locks of slices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.protocol.messages import Message, MultiStepLease, MultiStepResult, MultiStepWithdrawal
from lockstep.common.protocol.team_memory import ENTRIES, UpdateMarks, tally_in
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.notice import warning
from lockstep.common.statemachine.machine import soonest
from lockstep.ps.coordinator.effects import LeaseSteps
from lockstep.ps.coordinator.events import (
    Event,
    MultiStepLeaseEnded,
    PartMade,
    Received,
    StepMade,
)
from lockstep.ps.coordinator.membership import Membership
from lockstep.ps.coordinator.parts.multi_step import LEAST_STEPS
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory.memory import ServerSharedMemory
from lockstep.ps.shared_memory.multi_step import StepsSeen, TeamLease

#: Sends a worker a message of a multi-step lease; returns that it has left if it cannot be sent to.
SendToWorker = Callable[[bytes, Message], Sequence[Event]]


@dataclass
class TeamUpdates:
    """The updates of one lease, in memory that the server shares with a team."""

    sharing: ServerSharedMemory
    shard: Shard
    rank: int
    #: The team's progress; also after the run has left the memory that this is in.
    marks: UpdateMarks
    #: Slices in which the team makes updates, and those whose locks the server has: none unless the lease is to end.
    slices: int
    held: set[int] = field(default_factory=set)
    #: Steps whose figures are all in their entries, as of the last `read`.
    entered: int = 0

    def read(self) -> StepsSeen:
        """Return how far the team is.

        The checksum of the weights after a step is in the entry of the next one, and is there before that step is
        marked as made in the last slice.
        """
        made = self.marks.least()
        self.entered = min(made, int(self.marks.made[self.marks.slices - 1]) - 1)
        self.marks.keep_order()
        return StepsSeen(made, self.entered)

    def record(self, first: int, last: int) -> Sequence[StepMade]:
        steps = [self._step(step) for step in range(first, last)]
        self.marks.show_read(last)
        return steps

    def _step(self, step: int) -> StepMade:
        entries = self.marks.entries
        entry = entries[step % ENTRIES]
        assert entry["step"] == step, f"the entry of step {step} is that of {entry['step']}"
        if step < self.entered:
            checksum = int(entries[(step + 1) % ENTRIES]["checksum"])
        else:
            # No process has begun the next step but one, so nothing is written over its weights.
            checksum = checksum_after(step, self.shard.slots[(step + 1) % 2])
        return StepMade(
            step=step,
            rank=self.rank,
            tally=tally_in(entry),
            losses=entry["losses"].astype("<f4").tobytes(),
            parts=tuple(_parts(entry)),
            round_s=max(0.0, float(entry["round_s"])),
            update_s=max(0.0, float(entry["update_s"])),
            checksum=checksum,
            rate=self.shard.policy.schedule.rate(step),
        )

    def end(self, *, waits: bool = True) -> bool:
        locks = self.sharing.locks
        if waits:
            self.held.update(one for one in range(self.slices) if one not in self.held and locks[one].acquire())
            if len(self.held) < self.slices:
                return False
        # Before the locks are released: a process that takes one after this writes nothing.
        self.marks.end()
        for slice_ in sorted(self.held):
            locks[slice_].release()
        self.held.clear()
        return True

    def leave(self) -> int | None:
        """Continue in other memory, after the steps that are made; return their number, None if there is no room.

        Before anything is copied, the lease is marked as ended in the old memory. So a process that still writes there
        does not touch the weights that count, because it began before all slices of this step were made. The locks stay
        with the old memory.
        """
        self.marks.end()
        made, before = self.read().made, self.shard.updates
        self.shard.skip_to(made)
        if not self.sharing.move(self.shard):
            self.shard.skip_to(before)
            return None
        self.held.clear()
        return made


def _parts(entry: np.void) -> Iterator[PartMade]:
    """Yield the parts that a step was put together from."""
    for (lo, hi, process), (compute_s, began_s, ended_s) in zip(
        entry["parts"][: entry["used"]].tolist(), entry["times"][: entry["used"]].tolist(), strict=True
    ):
        yield PartMade(
            node=Node(lo, hi),
            process=process,
            began_s=max(0.0, began_s),
            ended_s=max(0.0, ended_s),
            compute_s=max(0.0, compute_s),
        )


@dataclass
class MultiStepLeases:
    """The multi-step leases of one run."""

    shard: Shard
    clock: Clock
    membership: Membership
    send: SendToWorker
    report: Callable[[str], None]
    #: The memory in which a team makes steps, None if the run shares no memory.
    sharing: ServerSharedMemory | None = None
    #: The current lease, None while the run continues step by step.
    lease: TeamLease | None = None
    #: When a checkpoint is due, for which the lease is to end.
    until: float | None = None
    #: How many there have been: each has its number.
    count: int = 0
    #: Whether it was reported that there is no room for the memory.
    _is_reported: bool = False

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do although no message comes."""
        return None if self.lease is None else soonest(self.lease.due, self.until)

    def begin(self, asked: LeaseSteps, last: int | None = None, until: float | None = None) -> Sequence[Event]:
        """Let a team make steps; return what the coordinator is to handle.

        It makes up to `last` steps of the run, until `until` in seconds of this clock.
        """
        assert self.lease is None, "a lease of several steps has not ended"
        stop = asked.last if last is None else min(asked.last, last)
        sharing = self.sharing
        marks = None if sharing is None else sharing.share_update(self.shard, asked.rank)
        if sharing is not None and sharing.obstacle:
            # There may be room later: it is tried again after a pause that grows.
            self._report_once(sharing.obstacle)
            return [declined(asked, is_cut=True)]
        if sharing is None or marks is None:
            return [declined(asked, may_follow=False)]
        is_due = stop - asked.first < LEAST_STEPS or (until is not None and self.clock.now() >= until)
        # If the weights are not finite, the next step shows where, and those before them are kept.
        if is_due or self.shard.not_finite is not None:
            return [declined(asked)]
        slices, self.until = len(sharing.teams[asked.rank].slices), until
        self.count += 1
        steps = msgspec.structs.replace(asked, last=stop)
        self.lease = self._open(steps, TeamUpdates(sharing, self.shard, asked.rank, marks, slices))
        marks.begin(self.count, asked.first, slices)
        return self._send(
            asked.rank,
            MultiStepLease(
                number=self.count,
                incarnation="",
                first=asked.first,
                last=stop,
                reads=self.shard.reads,
                memory=sharing.generation,
            ),
        )

    def _open(self, steps: LeaseSteps, updates: TeamUpdates) -> TeamLease:
        number = self.count
        return TeamLease(
            updates,
            lambda: self._send(steps.rank, MultiStepWithdrawal(number=number)),
            self.report,
            number=number,
            steps=steps,
            advanced=self.clock.now(),
        )

    def _send(self, rank: int, message: MultiStepLease | MultiStepWithdrawal) -> Sequence[Event]:
        member = self.membership.by_rank(rank)
        if member is None:
            return []
        if isinstance(message, MultiStepLease):
            message = msgspec.structs.replace(message, incarnation=member.join.incarnation)
        return self.send(member.peer, message)

    def _report_once(self, obstacle: str) -> None:
        if not self._is_reported:
            self._is_reported = True
            self.report(warning(f"a team waits for the server at each step, which is slower: {obstacle}"))

    def on_time(self, now: float) -> list[Event]:
        """Handle the passing of time; return what the coordinator is to handle."""
        if self.lease is None:
            return []
        if self.until is not None and now >= self.until:
            self.until = None
            return self.end()
        return self._followed(self.lease.on_time(now)) if now >= self.lease.due else []

    def handles(self, peer: bytes, message: Message) -> bool:
        return isinstance(message, MultiStepResult)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        """Handle that a team makes no more of a lease, if it is the current one."""
        assert isinstance(message, MultiStepResult)
        received, member = Received(peer=peer, message=message), self.membership.members.get(peer)
        if self.lease is None or member is None or (member.rank, message.number) != self.lease.key():
            return [received]
        return [*self._followed(self.lease.on_answer(self.clock.now())), received]

    def end(self) -> list[Event]:
        """End the lease, if there is one, to continue step by step."""
        return [] if self.lease is None else self._followed(self.lease.withdraw_at(self.clock.now()))

    def interrupt(self) -> list[Event]:
        """End the lease, if there is one, and wait for no process: the run ends."""
        return [] if self.lease is None else self._followed(self.lease.interrupt())

    def _followed(self, happened: list[Event]) -> list[Event]:
        """Return the events; if one is the end of the lease, let the shard be after the last step of the lease."""
        for event in happened:
            if isinstance(event, MultiStepLeaseEnded):
                self.lease = None
                if self.shard.updates < event.steps:
                    self.shard.skip_to(event.steps)
        return happened


def declined(asked: LeaseSteps, *, is_cut: bool = False, may_follow: bool = True) -> MultiStepLeaseEnded:
    """Return that the steps of a multi-step lease are to be leased instead; for some time if it is cut."""
    return MultiStepLeaseEnded(lease=None, steps=asked.first, is_cut=is_cut, is_silent=False, may_follow=may_follow)

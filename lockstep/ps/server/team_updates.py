"""The updates that a team makes by itself in the server's memory: turns the team's marks into steps. A shell.

It takes the locks of slices to end a lease.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import MultiStepLease
from lockstep.common.protocol.team_memory import ENTRIES, UpdateMarks, tally_in
from lockstep.ps.coordinator.parts.team_lease import PartMade, StepMade, StepsRefusal
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.shard.shard import Shard


@dataclass
class TeamUpdates:
    """The updates of one lease, in memory that the server shares with a team."""

    sharing: ServerSharedMemory
    shard: Shard
    rank: int
    #: As the team is sent it.
    lease: MultiStepLease
    #: The team's progress; also after the run has left the memory that this is in.
    marks: UpdateMarks
    #: Slices whose locks the server has: none unless the lease is to end.
    held: set[int] = field(default_factory=set)
    #: Steps whose figures are all in their entries, as of the last `read`.
    entered: int = 0

    def read(self) -> tuple[int, int]:
        """Return how far the team is.

        The checksum of the weights after a step is in the entry of the next one, and is there before that step is
        marked as made in the last slice.
        """
        made = self.marks.least()
        self.entered = min(made, int(self.marks.made[self.marks.slices - 1]) - 1)
        self.marks.keep_order()
        return made, self.entered

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
            slices = self.marks.slices
            self.held.update(one for one in range(slices) if one not in self.held and locks[one].acquire())
            if len(self.held) < slices:
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
        (made, _), before = self.read(), self.shard.updates
        self.shard.skip_to(made)
        if not self.sharing.move(self.shard):
            self.shard.skip_to(before)
            return None
        self.held.clear()
        return made

    def take_over(self, steps: int) -> None:
        if self.shard.updates < steps:
            self.shard.skip_to(steps)


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


def open_updates(
    sharing: ServerSharedMemory | None, shard: Shard, rank: int, lease: MultiStepLease
) -> TeamUpdates | StepsRefusal:
    """Let a team make the updates of a lease, which is completed with the place of the memory.

    `SharingError` if there is no room for what an update reads and writes.
    """
    marks = None if sharing is None else sharing.share_update(shard, rank)
    if sharing is None or marks is None:
        return StepsRefusal.NEVER
    # If the weights are not finite, the next step shows where, and those before them are kept.
    if shard.not_finite is not None:
        return StepsRefusal.NOT_NOW
    marks.begin(lease.number, lease.first, len(sharing.teams[rank].slices))
    lease = replace(lease, reads=shard.reads, memory=sharing.generation)
    return TeamUpdates(sharing, shard, rank, lease, marks)

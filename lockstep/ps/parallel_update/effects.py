"""What is to be done for an update that workers help with, as imperatives; the shell does it, in order."""

from msgspec import Struct

from lockstep.common.aggregation.slices import Slice


class LeaseSlice(Struct, frozen=True, kw_only=True):
    """Lease a slice of the update at hand to a worker."""

    number: int
    rank: int
    part: Slice


class UpdateOwnPart(Struct, frozen=True, kw_only=True):
    """Update a part in this process; answered by `OwnPartUpdated`."""

    part: Slice


class WithdrawSlices(Struct, frozen=True, kw_only=True):
    """Prevent workers from beginning slices, where they have not; answered by `WithdrawalTried`."""

    #: By number, the worker's rank.
    ranks: dict[int, int]


class EndWithdrawal(Struct, frozen=True, kw_only=True):
    """Let a worker make slices again: it has reported what became of the one that was withdrawn."""

    rank: int


class MoveMemory(Struct, frozen=True, kw_only=True):
    """Continue in other memory, as it was before the update; answered by `MemoryMoved`."""


class CompleteUpdate(Struct, frozen=True, kw_only=True):
    """All parts have their new values."""

    step: int


ParallelUpdateEffect = LeaseSlice | UpdateOwnPart | WithdrawSlices | EndWithdrawal | MoveMemory | CompleteUpdate

"""What can happen to an update that workers help with, in the past tense."""

from msgspec import Struct

from lockstep.common.aggregation.slices import Slice
from lockstep.common.protocol.messages import Work
from lockstep.common.statemachine.events_and_effects import TimePassed as TimePassed

#: What tells the leases of one worker apart: the work, its step, and the lease's number.
LeaseKey = tuple[Work, int, int]


class HelperAdmitted(Struct, frozen=True, kw_only=True):
    """A worker shares our memory, so that slices may be leased to it."""

    rank: int


class HelperLeased(Struct, frozen=True, kw_only=True):
    """It was leased micro-batches: it does not read messages until it has answered."""

    rank: int
    lease: LeaseKey


class HelperAnswered(Struct, frozen=True, kw_only=True):
    rank: int
    lease: LeaseKey


class HelperRemoved(Struct, frozen=True, kw_only=True):
    """It is no member of the run any more, which does not mean that its process has ended."""

    rank: int


class SumsCompleted(Struct, frozen=True, kw_only=True):
    """The sums of a step are whole: it may be updated."""

    step: int
    #: Whether all that a slice needs is in memory that workers share.
    can_share: bool


class OwnPartUpdated(Struct, frozen=True, kw_only=True):
    part: Slice


class SliceAnswered(Struct, frozen=True, kw_only=True):
    """A worker reports what became of a slice."""

    number: int
    is_done: bool
    seconds: float


class WithdrawalTried(Struct, frozen=True, kw_only=True):
    """Slices were withdrawn, or not: by number."""

    #: Their workers have written all of them, or will never write any of them again.
    withdrawn: tuple[int, ...]
    #: Their workers cannot be prevented from writing: they are in the middle of them.
    held: tuple[int, ...]


class MemoryMoved(Struct, frozen=True, kw_only=True):
    """The run has left the memory that workers may still write into, or cannot, because there is no room."""

    is_done: bool


class UpdateHurried(Struct, frozen=True, kw_only=True):
    """The run is about to end: whatever is left of the update is to be made at once."""


ParallelUpdateEvent = (
    HelperAdmitted
    | HelperLeased
    | HelperAnswered
    | HelperRemoved
    | SumsCompleted
    | OwnPartUpdated
    | SliceAnswered
    | WithdrawalTried
    | MemoryMoved
    | UpdateHurried
    | TimePassed
)

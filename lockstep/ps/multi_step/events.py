"""What can happen to a lease of several steps that workers make by themselves, in the past tense."""

from msgspec import Struct

from lockstep.common.statemachine.events_and_effects import TimePassed as TimePassed


class StepsLeased(Struct, frozen=True, kw_only=True):
    """Two workers were told to make the steps `[first, last)`."""

    number: int
    first: int
    last: int
    ranks: tuple[int, int]
    #: Seconds that a step is expected to take.
    step_s: float


class BoardsRead(Struct, frozen=True, kw_only=True):
    """So many steps of the run are made, and so many of these are listed: what a slower worker shows."""

    made: int
    listed: int


class WorkerAnswered(Struct, frozen=True, kw_only=True):
    """A worker makes nothing more of a multi-step lease; of the run's steps it has made so many."""

    number: int
    rank: int
    steps: int


class MemberRemoved(Struct, frozen=True, kw_only=True):
    """It is no member of the run any more, which does not mean that its process has ended."""

    rank: int


class EndRequested(Struct, frozen=True, kw_only=True):
    """The run is to go on step by step."""

    #: Whether one worker that makes nothing more is enough, since the run is about to end.
    is_hurried: bool = False
    #: Whether none is waited for: both have stood still for long.
    is_final: bool = False


class LocksTried(Struct, frozen=True, kw_only=True):
    """The locks of workers were taken, or not, since they are in the middle of a slice."""

    taken: tuple[int, ...]


class MemoryLeft(Struct, frozen=True, kw_only=True):
    """The run has left the memory that workers may still write into, after so many steps; None if it cannot."""

    made: int | None


MultiStepEvent = (
    StepsLeased | BoardsRead | WorkerAnswered | MemberRemoved | EndRequested | LocksTried | MemoryLeft | TimePassed
)

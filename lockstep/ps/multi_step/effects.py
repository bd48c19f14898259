"""What is to be done for a lease of several steps, as imperatives; the shell does it, in order."""

from msgspec import Struct


class ReadBoards(Struct, frozen=True, kw_only=True):
    """Read how far the workers are; answered by `BoardsRead`."""


class RecordSteps(Struct, frozen=True, kw_only=True):
    """Record the steps `[first, last)`, which are made."""

    first: int
    last: int


class SendWithdrawal(Struct, frozen=True, kw_only=True):
    """Send workers that the multi-step lease ends."""

    ranks: tuple[int, ...]


class TryLocks(Struct, frozen=True, kw_only=True):
    """Prevent workers from beginning slices; answered by `LocksTried`."""

    ranks: tuple[int, ...]


class ReleaseLock(Struct, frozen=True, kw_only=True):
    """Let a worker make slices again: it has said that it is out of the multi-step lease."""

    rank: int


class LeaveMemory(Struct, frozen=True, kw_only=True):
    """Continue in other memory, with the weights after the steps that are made; answered by `MemoryLeft`."""


class ReportStuck(Struct, frozen=True, kw_only=True):
    """Report that the run waits for two workers that stand still."""


class CompleteSteps(Struct, frozen=True, kw_only=True):
    """Continue step by step, with the weights after so many steps."""

    steps: int
    #: Whether it was ended since a worker was late, or could not go on.
    is_cut: bool
    #: The workers that have not answered yet.
    silent: tuple[int, ...]


MultiStepEffect = (
    ReadBoards | RecordSteps | SendWithdrawal | TryLocks | ReleaseLock | LeaveMemory | ReportStuck | CompleteSteps
)

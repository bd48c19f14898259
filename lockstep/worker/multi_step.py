"""How far a worker is in a lease of several steps that it makes with another, without waiting for the server. Pure."""

from dataclasses import dataclass
from enum import Enum

from lockstep.common.protocol.messages import MultiStepLease, MultiStepResult

#: Seconds for which a worker looks again and again whether the other is ready: as long as two may differ in a step.
#: After that it looks less often, the longer it has waited: after this part of the wait, or so many seconds.
SPIN_S, LOOK_SHARE, SELDOM_S = 0.004, 0.25, 0.01


#: Seconds for which it waits for the server, which is gone then.
SERVER_PATIENCE_S = 10.0


class StepStage(Enum):
    """What a worker does in a step of a multi-step lease, in this order."""

    COMPUTING = "computes its half of the sums"
    AWAITING_SUMS = "waits for the other half"
    UPDATING = "makes its slice of the update"
    AWAITING_SLICE = "waits for the other slice"


_NEXT = dict(zip(StepStage, [*list(StepStage)[1:], StepStage.COMPUTING], strict=True))


@dataclass
class MultiStepProgress:
    """Where a worker is in a multi-step lease."""

    lease: MultiStepLease
    step: int
    #: Since when it is in this stage, and when something is to be done for it.
    since: float
    due: float
    stage: StepStage = StepStage.COMPUTING
    #: Whether it has looked for something in this stage that was not there.
    has_waited: bool = False

    def advance(self, now: float) -> bool:
        """Record that a stage is done; return whether the multi-step lease is."""
        if self.stage is StepStage.AWAITING_SLICE:
            self.step += 1
        self.stage, self.since, self.due, self.has_waited = _NEXT[self.stage], now, now, False
        return self.stage is StepStage.COMPUTING and self.step == self.lease.last

    def put_off(self, now: float) -> bool:
        """Set when the stage is continued; return False if what it waits for should have been there by now."""
        if self.stage is StepStage.UPDATING:
            self.due = now
            return True
        waited, self.has_waited = now - self.since, True
        self.due = now if waited < SPIN_S else now + min(LOOK_SHARE * waited, SELDOM_S)
        # Before it computes, it waits for the server to read what it has shown.
        patience_s = SERVER_PATIENCE_S if self.stage is StepStage.COMPUTING else self.lease.patience_s
        return waited < patience_s

    def is_listening(self) -> bool:
        """Tell whether messages are read now: once in each step, and while it waits; never in the middle of a slice."""
        return self.stage is StepStage.COMPUTING or self.has_waited

    def ended(self) -> MultiStepResult:
        """Return the answer to the multi-step lease, as far as it has been made."""
        steps = self.step + (self.stage is StepStage.AWAITING_SLICE)
        return MultiStepResult(number=self.lease.number, steps=steps)

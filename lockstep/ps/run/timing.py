"""Where the time of training steps goes: what is measured of each, and how it adds up. Pure."""

from dataclasses import dataclass

import msgspec


class StepTime(msgspec.Struct, frozen=True, kw_only=True):
    """The times of one training step."""

    #: Seconds from the last result of the step before to its own last result. In between the weights are updated and
    #: sent, except for an epoch's first step: before that one comes the evaluation, and the update before it.
    round_s: float
    #: Seconds of computing that went into it, by the workers' own clocks: the mean over the workers that might have
    #: been given work, and the most that any of them has.
    mean_s: float
    slowest_s: float


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of the time of an average step; the four add up to it.

    Of all steps but each epoch's first, which follows an evaluation.
    """

    #: Number of steps that were averaged.
    steps: int
    #: Seconds that the average worker computes: forward, backward, the sums of its own micro-batches. By its own clock:
    #: what other processes take of its core meanwhile is in it, what it sends meanwhile is not.
    compute_s: float
    #: Seconds in which sums and weights are on their way, copied or added. It is what is left of the step: the slowest
    #: worker does not compute and nothing is updated. An exchange that hides behind computing is not in it.
    exchange_s: float
    #: Seconds that the server takes to change the weights, for which all workers wait.
    update_s: float
    #: Seconds that the average worker waits for the slowest one of the step: uneven shares of the work, uneven cores.
    waiting_s: float

    @property
    def step_s(self) -> float:
        """The seconds of the whole step."""
        return self.compute_s + self.exchange_s + self.update_s + self.waiting_s


@dataclass
class StepTimeTotals:
    """Adds up the times of steps, which are added in their order."""

    steps: int = 0
    round_s: float = 0.0
    mean_s: float = 0.0
    slowest_s: float = 0.0
    update_s: float = 0.0
    #: Seconds of the last step's update: it lies within the round of the next step.
    _last_update_s: float = 0.0

    def add(self, time: StepTime, update_s: float, *, is_counted: bool) -> None:
        """Add a step and its update; a step that does not count, an epoch's first, only matters for the next."""
        if is_counted:
            self.steps += 1
            self.round_s += time.round_s
            self.mean_s += time.mean_s
            self.slowest_s += time.slowest_s
            self.update_s += self._last_update_s
        self._last_update_s = update_s

    def split(self) -> Split | None:
        """Return where the time went, None if no step counted."""
        if not self.steps:
            return None
        return Split(
            steps=self.steps,
            compute_s=self.mean_s / self.steps,
            exchange_s=(self.round_s - self.slowest_s - self.update_s) / self.steps,
            update_s=self.update_s / self.steps,
            waiting_s=(self.slowest_s - self.mean_s) / self.steps,
        )

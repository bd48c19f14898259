"""When a checkpoint is due. Pure: the time is an argument."""

from dataclasses import dataclass

#: The share of a run's time, one in so many, that checkpoints of epochs may take.
SPARING = 50


@dataclass
class CheckpointSchedule:
    """Every so many steps or seconds, and at the end of each epoch."""

    #: None: not by steps.
    every_steps: int | None = None
    every_s: float = 60.0
    #: Steps made, and the time in seconds, at the last checkpoint or at the beginning.
    last_steps: int = 0
    last_s: float = 0.0
    #: Seconds that the last checkpoint took.
    cost_s: float = 0.0

    def is_due(self, steps: int, now: float, *, ends_epoch: bool) -> bool:
        """Tell whether to write one after so many steps."""
        if self.every_steps is not None and steps // self.every_steps > self.last_steps // self.every_steps:
            return True
        # An epoch may take a millisecond, and a disk ten to keep it: then not every epoch has a checkpoint.
        wait = SPARING * self.cost_s if ends_epoch else self.every_s
        return now - self.last_s >= wait

    def taken(self, steps: int, began: float, ended: float) -> None:
        """Book a checkpoint, or the attempt at one."""
        self.last_steps, self.last_s, self.cost_s = steps, ended, ended - began

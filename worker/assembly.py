"""Which frames of a step's weights have come. Pure; sees no array."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from common.aggregation.slices import Slice


@dataclass
class WeightsAssembly:
    """The book over the frames of the newest weights, which begin at `starts`."""

    lengths: dict[int, int]
    #: The step whose frames come in; None before the first.
    step: int | None = None
    #: Where those begin that are still to come.
    missing: set[int] = field(default_factory=set)

    def take(self, step: int, start: int) -> bool:
        """Book a frame that is now in its slot; return whether it was the last one of its step.

        Frames of a newer step end the wait for those of an older: that one is over.
        """
        if self.step is None or step > self.step:
            self.step, self.missing = step, set(self.lengths)
        if step < self.step or start not in self.missing:
            return False
        self.missing.remove(start)
        return not self.missing


def assembly_of(frames: Iterable[Slice]) -> WeightsAssembly:
    """Return the book over these frames."""
    return WeightsAssembly({frame.start: len(frame) for frame in frames})

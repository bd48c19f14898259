"""When is a frame of the sums final, while backward goes from parameter to parameter? Pure; sees no array."""

from collections.abc import Callable, Sequence

from common.aggregation.layout import LayoutEntry
from common.aggregation.slices import Slice

#: Is told of a frame whose sums will not change any more.
Push = Callable[[Slice], None]


class GradientBuckets:
    """Counts, for each frame, the parameters in it whose gradients are still to come."""

    def __init__(self, parameters: Sequence[LayoutEntry], frames: Sequence[Slice]) -> None:
        self._frames = frames
        #: For each parameter, the indices of the frames that it stands in.
        self._touched = [
            [index for index, frame in enumerate(frames) if _overlap(entry, frame)] for entry in parameters
        ]
        self._left: list[int] = []
        self._push: Push | None = None

    def begin(self, push: Push) -> None:
        """Begin a walk back; what is final before any gradient is pushed at its end."""
        self._push = push
        self._left = [0] * len(self._frames)
        for touched in self._touched:
            for index in touched:
                self._left[index] += 1
        self._pending = dict.fromkeys(range(len(self._frames)))

    def finish(self, parameter: int) -> None:
        """Book that a parameter's gradient is final; push what has become so."""
        for index in self._touched[parameter]:
            self._left[index] -= 1
            if not self._left[index]:
                self._tell(index)

    def end(self) -> None:
        """Push what has not been: statistics, and parameters without a part in the loss."""
        for index in list(self._pending):
            self._tell(index)

    def _tell(self, index: int) -> None:
        assert self._push is not None
        del self._pending[index]
        self._push(self._frames[index])


def _overlap(entry: LayoutEntry, frame: Slice) -> bool:
    return entry.offset < frame.stop and frame.start < entry.offset + entry.size

"""The path of the sums of a lease: each bucket of them is rounded, checked and sent as soon as it is final.

Gradients go one way: backward hands them to the sink, the sink hands buckets to the function that sends them. A bucket
is a frame of the flat vector; it is final with the last gradient in it, while backward is still on its way to the first
layers.
"""

from collections.abc import Callable, Sequence
from itertools import chain

from msgspec.structs import replace

from lockstep.common.aggregation.layout import LayoutEntry, ParameterLayout
from lockstep.common.aggregation.quantization import Quantization, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Vector
from lockstep.common.numerics.sums import first_not_finite
from lockstep.common.protocol.messages import Quantity

#: Sends a bucket: where it begins in the flat vector, and its values as they travel.
SendBucket = Callable[[int, Vector], None]


class NotFiniteError(ArithmeticError):
    """The loss of a micro-batch is not finite, or its gradient: names the first layer, or parameter, that is not."""

    def __init__(self, micro_batch: int, layer: str, quantity: Quantity = "loss") -> None:
        super().__init__(f"the {quantity} of micro-batch {micro_batch}, {layer}")
        self.micro_batch = micro_batch
        self.layer = layer
        self.quantity: Quantity = quantity


class GradientSink:
    """Rounds and checks the sums of micro-batches, and of nodes of the tree over them, and sends them if wanted."""

    def __init__(self, layout: ParameterLayout, frames: Sequence[Slice], wire: Quantization) -> None:
        self._layout = layout
        self._frames = frames
        self._wire = wire
        #: For each parameter, the indices of the frames that hold a part of it.
        self._touched = [
            [index for index, frame in enumerate(frames) if _overlap(entry, frame)] for entry in layout.parameters
        ]
        #: For each frame that was not sent yet, how many gradients are still to come.
        self._missing: dict[int, int] = {}
        self._send: SendBucket | None = None

    @property
    def is_exact(self) -> bool:
        """True if sums are sent as they were computed."""
        return self._wire.is_exact

    def begin(self, sums: Vector, at: RoundingKey, send: SendBucket | None) -> None:
        """Begin a micro-batch whose sums backward writes into `sums`; without `send` they stay there."""
        self._sums, self._at, self._send = sums, at, send
        if send is not None:
            self._missing = dict.fromkeys(range(len(self._frames)), 0)
            for index in chain.from_iterable(self._touched):
                self._missing[index] += 1

    @property
    def on_final(self) -> Callable[[int], None] | None:
        """The function that backward calls with each parameter whose gradient is final; None if no sums are sent."""
        return None if self._send is None else self._finish_parameter

    def end(self) -> None:
        """Finish the sums that were not final before: statistics, and parameters without a part in the loss."""
        if self._send is None:
            self._wire.round(self._sums, self._at)
            self._check(self._sums, self._at)
        else:
            for index in list(self._missing):
                self._finish_frame(index, self._send)

    def merge(self, left: Vector, right: Vector, out: Vector, at: RoundingKey, send: SendBucket | None) -> None:
        """Add the sums of the two halves of a node, and send them if wanted."""
        if send is None:
            self._wire.add(left, right, out, at)
            self._check(out, at)
            return
        for frame in self._frames:
            key, values = replace(at, start=frame.start), frame.of(out)
            self._wire.add(frame.of(left), frame.of(right), values, key)
            self._check(values, key)
            send(frame.start, self._wire.pack(values, frame.start))

    def _finish_parameter(self, parameter: int) -> None:
        for index in self._touched[parameter]:
            self._missing[index] -= 1
            if not self._missing[index] and self._send is not None:
                self._finish_frame(index, self._send)

    def _finish_frame(self, index: int, send: SendBucket) -> None:
        del self._missing[index]
        frame = self._frames[index]
        key, values = replace(self._at, start=frame.start), frame.of(self._sums)
        self._wire.round(values, key)
        self._check(values, key)
        send(frame.start, self._wire.pack(values, frame.start))

    def _check(self, sums: Vector, at: RoundingKey) -> None:
        """Raise `NotFiniteError` if sums would make all others infinite, or not numbers."""
        place = first_not_finite(sums)
        if place is not None:
            raise NotFiniteError(at.node.lo, self._layout.name_at(at.start + place), "gradient")


def _overlap(entry: LayoutEntry, frame: Slice) -> bool:
    return entry.offset < frame.stop and frame.start < entry.offset + entry.size

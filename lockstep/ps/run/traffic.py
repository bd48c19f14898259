"""How many bytes of sums and of weights cross a server's sockets: whole messages, their headers too. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from lockstep.common.protocol.codec import Buffer
from lockstep.common.protocol.messages import Message, Result, SumsFrame, Weights


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that crossed sockets: sums came in, weights went out. With shared memory there are none."""

    #: Bytes of sums.
    sums: int = 0
    #: Bytes of weights.
    weights: int = 0

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(sums=self.sums + other.sums, weights=self.weights + other.weights)

    def mean(self, steps: int) -> "Moved":
        """Return what an average step moved, in whole bytes."""
        return Moved(sums=self.sums // max(1, steps), weights=self.weights // max(1, steps))


NOTHING = Moved()


@dataclass
class Traffic:
    """Counts what crosses the sockets of one server, and what other servers report."""

    _moved: Moved = NOTHING

    def record_received(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was received, if it brings sums."""
        if isinstance(message, SumsFrame) or (isinstance(message, Result) and len(frames) > 1):
            self._moved += Moved(sums=_bytes_of(frames))

    def record_sent(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was sent, if it brings weights."""
        if isinstance(message, Weights):
            self._moved += Moved(weights=_bytes_of(frames))

    def add(self, moved: Moved) -> None:
        """Count what crossed another server's sockets."""
        self._moved += moved

    def drain(self) -> Moved:
        """Return what was counted since the last call."""
        moved, self._moved = self._moved, NOTHING
        return moved


def _bytes_of(frames: Sequence[Buffer]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)

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


NOTHING = Moved()


@dataclass
class Traffic:
    """Counts what crosses the sockets of one server, and what other servers report."""

    _sums: int = 0
    _weights: int = 0

    def record_received(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was received, if it brings sums."""
        if isinstance(message, SumsFrame) or (isinstance(message, Result) and len(frames) > 1):
            self._sums += _bytes_of(frames)

    def record_sent(self, message: Message, frames: Sequence[Buffer]) -> None:
        """Count a message that was sent, if it brings weights."""
        if isinstance(message, Weights):
            self._weights += _bytes_of(frames)

    def add(self, moved: Moved) -> None:
        """Count what crossed another server's sockets."""
        self._sums += moved.sums
        self._weights += moved.weights

    def drain(self) -> Moved:
        """Return what was counted since the last call."""
        moved = Moved(sums=self._sums, weights=self._weights)
        self._sums = self._weights = 0
        return moved


@dataclass
class TrafficTotals:
    """Adds up what was moved, step by step."""

    steps: int = 0
    sums: int = 0
    weights: int = 0

    def add(self, moved: Moved) -> None:
        """Add a step."""
        self.steps += 1
        self.sums += moved.sums
        self.weights += moved.weights

    def mean(self) -> Moved:
        """Return what an average step moved, in whole bytes."""
        steps = max(1, self.steps)
        return Moved(sums=self.sums // steps, weights=self.weights // steps)


def _bytes_of(frames: Sequence[Buffer]) -> int:
    return sum(memoryview(frame).nbytes for frame in frames)

"""A connection whose server answers as a test wants it."""

from dataclasses import dataclass, field

from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Message
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.port import Frames


@dataclass
class AnsweringPort:
    """Each look takes its time, and finds the next of the answers."""

    answers: list[LeaderNotice | None]
    clock: ManualClock = field(default_factory=ManualClock)
    sent: list[Message] = field(default_factory=list)
    is_closed: bool = False

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self.clock.advance(timeout_s or 0.0)
        answer = self.answers.pop(0) if self.answers else None
        return None if answer is None else [memoryview(frame).cast("B") for frame in encode(answer)]

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.sent.append(decode([memoryview(frame).cast("B") for frame in frames], LeaderRequest | LeaderNotice)[0])

    def diagnosis(self) -> None:
        return None

    def close(self, linger_s: float = 0.0) -> None:
        self.is_closed = True

"""A port of a server that passes everything on, and lets a test act whenever the server waits."""

from collections.abc import Callable
from dataclasses import dataclass

from lockstep.common.transport.port import Frame, Frames, ServerPort


@dataclass(frozen=True)
class PassingPort:
    """A port between the server and its own."""

    port: ServerPort
    #: Is called with the longest wait before each one, and returns the one to use.
    before_wait: Callable[[float | None], float | None]

    @property
    def address(self) -> str:
        return self.port.address

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        return self.port.receive(self.before_wait(timeout_s))

    def send(self, peer: bytes, frames: Frames) -> None:
        self.port.send(peer, frames)

    def lost(self) -> list[bytes]:
        return self.port.lost()

    def key_name(self, peer: bytes) -> str:
        return self.port.key_name(peer)

    def cut(self, peer: bytes) -> None:
        self.port.cut(peer)

    def shared(self, frame: Frame) -> Frame:
        return self.port.shared(frame)

    def make_room(self, queue: int) -> None:
        self.port.make_room(queue)

    def close(self, linger_s: float = 0.0) -> None:
        self.port.close(linger_s)

"""What a transport is: two tiny ports that move opaque frames; knows nothing of messages, and nothing of sockets.

Frames of one connection arrive whole, once at most and in the order they were sent; between connections there is no
order. What was on its way when a connection broke is lost: ask again, apply once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import LockstepError, ProtocolError

#: Anything that gives its bytes without a copy, C-contiguous.
Frame = bytes | bytearray | memoryview
#: What is sent together and arrives together; at least one.
Frames = Sequence[Frame]


class PeerGone(LockstepError):  # noqa: N818 -- a thing that happens in every run, and not a mistake
    """There is no connection to this peer any more; nothing was sent."""


class PeerSlow(LockstepError):  # noqa: N818 -- as above
    """More than enough is already on its way to this peer; nothing was sent."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a port takes in, and lets out, before anything is allocated for it."""

    #: Longest frame; a connection on which a longer one comes is closed.
    frame_bytes: int = 2**20
    #: Most frames of one message; a connection on which a longer one comes is closed.
    frames: int = 4
    #: Messages that may wait for one peer. It may count as slow from half of them on, since libzmq hears late of those
    #: that were read.
    queue: int = 64
    #: Messages of one peer that may wait to be received: with the two above what it can cost us, whatever it sends.
    backlog: int = 8

    def check(self, frames: Frames) -> None:
        """Raise ProtocolError, a bug of ours, where a peer with the same limits would not take `frames`."""
        if not 0 < len(frames) <= self.frames:
            raise ProtocolError(f"a message of {len(frames)} frames: expected 1 to {self.frames}")
        longest = max(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
        if longest > self.frame_bytes:
            raise ProtocolError(f"a frame of {longest} bytes: expected at most {self.frame_bytes}")


class Shortcut(Protocol):
    """A second way between two ends, for messages of one short frame; see `shared_memory.packet_socket`."""

    @property
    def descriptor(self) -> int:
        """What to wait for."""
        ...

    def send(self, frame: Frame, timeout_s: float = 0.0) -> None:
        """Send a frame. Raises PeerSlow where too many wait and none is read within the time, and PeerGone."""
        ...

    def receive(self) -> bytes | None:
        """Return the next frame, None where none has come. Raises PeerGone at the end."""
        ...

    def close(self) -> None:
        """Close it; what was sent may still be received."""
        ...


class ServerPort(Protocol):
    """The end that many peers dial. All methods but a second `close` raise ProtocolError once it is closed."""

    @property
    def address(self) -> str:
        """Where peers dial, the real port included."""
        ...

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        """Return the next message, from any peer, as (peer, frames), or None if none came in time.

        `None` for the timeout waits for ever. The frames are the caller's, read-only; a signal handler's exception
        passes through. `peer` names one connection, never another one later.
        """
        ...

    def send(self, peer: bytes, frames: Frames) -> None:
        """Send a message without waiting; the caller may overwrite its buffers at once.

        Raises PeerGone or PeerSlow. Where a signal handler's exception passes through, this one message may arrive
        damaged or not at all.
        """
        ...

    def lost(self) -> list[bytes]:
        """Return the peers whose connections have ended since the last call, of those that were heard.

        `receive` returns None at once where one has, so that it is known in the same moment. None is told while
        messages wait, its last words perhaps among them. It is a hint, which a network may swallow: `send` tells too.
        """
        ...

    def cut(self, peer: bytes) -> None:
        """End the connection of a peer; what waits of it may still be heard, and it may dial again as another."""
        ...

    def allow(self, queue: int) -> None:
        """Let at least `queue` messages wait for each peer that was heard by now.

        A peer that counts as slow already is not helped by it.
        """
        ...

    def shorten(self, peer: bytes, shortcut: Shortcut) -> None:
        """Send short messages to a peer over a shortcut from now on, and hear it there as well.

        Between what goes over it and what does not there is no order. It lasts until another takes its place, one end
        is closed or the connection is over, and is the port's to close: at once where there is nothing to shorten.
        """
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Close all connections; what was sent gets at most `linger_s` seconds to leave."""
        ...


class ClientPort(Protocol):
    """The end that dials, and dials again, until it is closed; its server may come later."""

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        """Return the frames of the next message, or None if none came in time; as `ServerPort.receive`."""
        ...

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        """Send a message, or keep it until there is a connection; as `ServerPort.send`.

        Raises PeerSlow where too many are on their way and none arrives within the time.
        """
        ...

    def shorten(self, shortcut: Shortcut | None) -> None:
        """Hear the server over a shortcut as well, and speak over it once it was heard; as `ServerPort.shorten`.

        None ends the one before.
        """
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Close the connection; what was sent gets at most `linger_s` seconds to leave."""
        ...

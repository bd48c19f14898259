"""A transport: two small ports that move opaque frames; knows nothing of messages and sockets.

Frames of one connection arrive whole, at most once and in the order in which they were sent; between connections there
is no order. Frames on their way when a connection breaks are lost: ask again, apply once.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from lockstep.common.errors import Diagnosis, LockstepError, ProtocolError

#: Any C-contiguous buffer, whose bytes are read without a copy.
Frame = bytes | bytearray | memoryview
#: Parts that are sent together and arrive together; at least one.
Frames = Sequence[Frame]

#: Seconds for which the last messages may still be sent when a connection is closed in order.
LINGER_S = 1.0


class PeerGone(LockstepError):  # noqa: N818 -- happens in every run, and is not a mistake
    """There is no longer a connection to this peer; nothing was sent."""


class PeerSlow(LockstepError):  # noqa: N818 -- as above
    """Too many messages are already on their way to this peer; nothing was sent."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of what a port receives and sends, checked before anything is allocated."""

    #: Longest frame; a connection that sends a longer one is closed.
    frame_bytes: int = 3 * 2**20
    #: Most frames of one message; a connection that sends more is closed.
    frames: int = 2
    #: Messages that may wait for one peer. It may count as slow from half of them on, since libzmq learns late which
    #: were read.
    queue: int = 64
    #: Messages of one peer that may wait to be received: with the above, they bound the memory it takes here.
    backlog: int = 8

    def check(self, frames: Frames) -> None:
        """Raise ProtocolError, for a bug of ours, if a peer with the same limits would refuse `frames`."""
        if not 0 < len(frames) <= self.frames:
            raise ProtocolError(f"a message of {len(frames)} frames: expected 1 to {self.frames}")
        longest = max(frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames)
        if longest > self.frame_bytes:
            raise ProtocolError(f"a frame of {longest} bytes: expected at most {self.frame_bytes}")


class ServerPort(Protocol):
    """The end that many peers dial. All methods but a second `close` raise ProtocolError once it is closed."""

    @property
    def address(self) -> str:
        """The address that peers dial, with the actual port."""
        ...

    def receive(self, timeout_s: float | None) -> tuple[bytes, list[memoryview]] | None:
        """Return the next message, from any peer, as (peer, frames), or None if none came in time.

        `None` for the timeout waits for ever. The frames are the caller's, read-only; a signal handler's exception
        passes through. `peer` names one connection, never another one later.
        """
        ...

    def send(self, peer: bytes, frames: Frames) -> None:
        """Send a message without waiting; the caller may overwrite its buffers at once.

        Raises PeerGone or PeerSlow. If a signal handler raises meanwhile, this one message may arrive damaged or not at
        all.
        """
        ...

    def shared(self, frame: Frame) -> Frame:
        """Return a copy of a frame for messages to many peers: `send` does not copy it again."""
        ...

    def lost(self) -> list[bytes]:
        """Return the peers, of those that have sent a message, whose connections have ended since the last call.

        `receive` returns None at once if one has, so that it is known immediately. None is reported while messages
        wait, which may be its last ones. It is a hint, which a network may swallow: `send` reports it too.
        """
        ...

    def key_name(self, peer: bytes) -> str:
        """Return the name of the key with which a peer was let in; empty if the server has no keys."""
        ...

    def cut(self, peer: bytes) -> None:
        """End the connection of a peer; its waiting messages may still be received, and it may dial again."""
        ...

    def make_room(self, queue: int) -> None:
        """Let at least `queue` messages wait for each peer from now on.

        A port with less room may listen again at its address: then all connections break off, and clients dial again.
        `AddressError` if another program has taken the address meanwhile.
        """
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Close all connections; sent frames get at most `linger_s` seconds to leave."""
        ...


class ClientPort(Protocol):
    """The end that dials, again and again until it is closed; its server may start later."""

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        """Return the frames of the next message, or None if none came in time; as `ServerPort.receive`."""
        ...

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        """Send a message, or keep it until there is a connection; as `ServerPort.send`.

        Raises PeerSlow if too many are on their way and none arrives within the time.
        """
        ...

    def diagnosis(self) -> Diagnosis | None:
        """Return what prevents a connection; None if nothing is known to. May take some seconds."""
        ...

    def close(self, linger_s: float = 0.0) -> None:
        """Close the connection; sent frames get at most `linger_s` seconds to leave."""
        ...


#: Opens a connection to an address; `AddressError` where there can be none.
Dial = Callable[[str], ClientPort]


#: Waits until one of some ports may have a message, or for so many seconds, None for ever; returns the places of those
#: that may have one.
Wait = Callable[[Sequence[ServerPort | ClientPort], float | None], Sequence[int]]


def wait_for_nothing(ports: Sequence[ServerPort | ClientPort], timeout_s: float | None) -> Sequence[int]:
    """Do not wait, as the ports in memory."""
    return range(len(ports))

"""A worker's connections to the servers of its run: the owner of each frame, and the messages and frames that came.

Handles no message but Hello.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import Buffer, decode, encode
from lockstep.common.protocol.messages import ServerMessage
from lockstep.common.protocol.shard_messages import Hello
from lockstep.common.transport.port import LINGER_S, ClientPort, Dial, PeerSlow, Wait, wait_for_nothing

#: Seconds to wait for a server that does not read, before a message to it is given up.
SEND_TIMEOUT_S = 60.0

#: Seconds of computing after which a worker looks for the first time, and then each time, for messages: to look takes
#: some microseconds.
LOOK_S = 0.002

#: Messages that are read early at most: others wait in the socket, where they are limited.
MOST_EARLY = 16


@dataclass
class ServerConnections:
    """The connections to the server that decides, and to the others if a run has several."""

    first: ClientPort
    #: Dials the others.
    dial: Dial
    wait: Wait = wait_for_nothing
    #: In the order of their slices.
    _others: list[ClientPort] = field(default_factory=list)
    #: The message that introduces this worker to them.
    _hello: list[Buffer] = field(default_factory=list)
    #: By the first place of a frame, the connection to the server that owns it, if it is one of these.
    _owners: dict[int, ClientPort] = field(default_factory=dict)
    #: The connections that may have a message, the next one first: one that always has some must not starve the others.
    #: To ask each connection each time would take longer than to receive.
    _ready: deque[ClientPort] = field(default_factory=deque)
    #: Messages that came while a lease was computed, which are handled after it, in their order.
    early: deque[list[memoryview]] = field(default_factory=deque)
    #: When it was last looked for some.
    _looked: float = 0.0

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        """Wait for a message of any of them."""
        if not self._others:
            return self.first.receive(timeout_s)
        message = self._next()
        if message is None:
            ports = [self.first, *self._others]
            self._ready.extend(ports[place] for place in self.wait(ports, timeout_s))
            message = self._next()
        return message

    def _next(self) -> list[memoryview] | None:
        while self._ready:
            message = self._ready[0].receive(0.0)
            if message is not None:
                self._ready.rotate(-1)
                return message
            self._ready.popleft()
        return None

    # Messages that come early

    def begin_looking(self, now: float) -> None:
        """Begin the time until the next look."""
        self._looked = now

    def has_come(self, is_sought: Callable[[Any], bool], now: float) -> bool:
        """Look for messages from time to time; return whether one is the sought one, after which no more are read."""
        if now < self._looked + LOOK_S:
            return False
        self._looked = now
        while len(self.early) < MOST_EARLY and self.listen(0.0):
            if is_sought(_message_of(self.early[-1])):
                return True
        return False

    def listen(self, timeout_s: float | None) -> bool:
        """Wait for a message; return whether one has come."""
        frames = self.receive(timeout_s)
        if frames is not None:
            self.early.append(frames)
        return frames is not None

    def take(self) -> list[memoryview] | None:
        """Return the next message, None if no more have come."""
        return self.early.popleft() if self.early else self.receive(0.0)

    # Connections

    def send(self, frames: list[Buffer], timeout_s: float = 0.0, start: int | None = None) -> None:
        """Send a message to the server that owns the frame that begins at `start`, or to the one that decides."""
        _send(self.first if start is None else self._owners.get(start, self.first), frames, timeout_s)

    def is_for_first(self, start: int) -> bool:
        """Tell whether the server that decides owns the frame that begins at `start`."""
        return start not in self._owners

    def connect(self, addresses: list[str], size: int, hello: Hello) -> None:
        """Dial the others, which hold slices of a vector of `size` values, instead of those of a run before."""
        self.disconnect()
        if not addresses:
            return
        self._hello = encode(hello)
        _, *slices = slices_for(size, 1 + len(addresses))
        for address, owned in zip(addresses, slices, strict=True):
            other = self.dial(address)
            self._others.append(other)
            self._owners.update({frame.start: other for frame in owned.frames()})
        self.introduce(SEND_TIMEOUT_S)

    def introduce(self, timeout_s: float = 0.0) -> None:
        """Introduce this worker to the others, perhaps once more."""
        for other in self._others:
            _send(other, self._hello, timeout_s)

    def disconnect(self) -> None:
        """Leave the others."""
        for other in self._others:
            other.close()
        self._others.clear()
        self._owners.clear()
        self._ready.clear()

    def close(self) -> None:
        """Close all connections."""
        self.first.close(LINGER_S)
        for other in self._others:
            other.close()


def _send(server: ClientPort, frames: list[Buffer], timeout_s: float) -> None:
    try:
        server.send(frames, timeout_s)
    except PeerSlow:
        # The server does not read, or is gone: a question is asked again, and a lease is given again.
        return


def _message_of(frames: list[memoryview]) -> Any:
    """Return a message, None if it is malformed: that is found when it is handled."""
    try:
        return decode(frames, ServerMessage)[0]
    except RemoteProtocolError:
        return None


@dataclass
class WeightsAssembly:
    """The frames of the newest weights."""

    #: By the first place of a frame, the number of its values.
    lengths: dict[int, int]
    #: The step whose frames come in; None before the first.
    step: int | None = None
    #: The first places of the frames that are still to come.
    missing: set[int] = field(default_factory=set)

    def add(self, step: int, start: int) -> bool:
        """Record a frame that is now in its slot; return whether it was the last one of its step.

        Frames of a newer step end the wait for those of an older: that one is over.
        """
        if self.step is None or step > self.step:
            self.step, self.missing = step, set(self.lengths)
        if step < self.step or start not in self.missing:
            return False
        self.missing.remove(start)
        return not self.missing

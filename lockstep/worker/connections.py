"""A worker's connections to the servers of its run: which of them owns which frame, and which frames have come.

Knows no message but Hello.
"""

from dataclasses import dataclass, field

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.errors import AddressError
from lockstep.common.protocol.codec import Buffer, encode
from lockstep.common.protocol.shard_messages import Hello
from lockstep.common.transport.links import Links, Wait, wait_for_nothing
from lockstep.common.transport.port import ClientPort, Dial, PeerSlow

#: Seconds for which the last messages may still be sent.
LINGER_S = 1.0

#: Seconds to wait for a server that does not read, before what was to be sent to it is given up.
SEND_TIMEOUT_S = 60.0


@dataclass
class ServerConnections:
    """The server that decides, and the others, where a run has several."""

    first: ClientPort
    #: How the others are reached, None where there can be none.
    dial: Dial | None = None
    wait: Wait = wait_for_nothing
    #: In the order of their slices.
    _others: list[ClientPort] = field(default_factory=list)
    #: What introduces this worker to them.
    _hello: list[Buffer] = field(default_factory=list)
    #: By where a frame begins, the connection to the server that owns it, where it is one of these.
    _owners: dict[int, ClientPort] = field(default_factory=dict)
    #: All connections, where there are several.
    _links: Links[list[memoryview]] | None = None

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        """Wait for a message of any of them."""
        if self._links is None:
            return self.first.receive(timeout_s)
        received = self._links.receive(timeout_s)
        return None if received is None else received[1]

    def send(self, frames: list[Buffer], timeout_s: float = 0.0, start: int | None = None) -> None:
        """Send a message to the server that owns the frame that begins at `start`, or to the one that decides."""
        _send(self.first if start is None else self._owners.get(start, self.first), frames, timeout_s)

    def connect(self, addresses: list[str], size: int, hello: Hello) -> None:
        """Dial the others, which hold slices of a vector of `size` values, instead of those of a run before."""
        self.disconnect()
        if not addresses:
            return
        self._hello = encode(hello)
        _, *slices = slices_for(size, 1 + len(addresses))
        for address, owned in zip(addresses, slices, strict=True):
            if self.dial is None:
                raise AddressError(f"another server at {address!r}: expected a run with one server")
            other = self.dial(address)
            self._others.append(other)
            self._owners.update({frame.start: other for frame in owned.frames()})
        self.introduce(SEND_TIMEOUT_S)
        self._links = Links([self.first, *self._others], self.wait)

    def redial(self, address: str, public: str) -> None:
        """Leave all servers, and dial another one that decides."""
        assert self.dial is not None  # otherwise no other is known
        self.disconnect()
        self.first.close()
        self.first = self.dial(address, public)

    def introduce(self, timeout_s: float = 0.0) -> None:
        """Send the others who dials, perhaps once more."""
        for other in self._others:
            _send(other, self._hello, timeout_s)

    def disconnect(self) -> None:
        """Leave the others."""
        for other in self._others:
            other.close()
        self._others.clear()
        self._owners.clear()
        self._links = None

    def close(self) -> None:
        """Close all connections."""
        self.first.close(LINGER_S)
        for other in self._others:
            other.close()


def _send(server: ClientPort, frames: list[Buffer], timeout_s: float) -> None:
    try:
        server.send(frames, timeout_s)
    except PeerSlow:
        # Nobody reads, perhaps since nobody is there: what is asked is asked again, what is lost is leased again.
        return


@dataclass
class WeightsAssembly:
    """The frames of the newest weights."""

    #: By where a frame begins, the number of its values.
    lengths: dict[int, int]
    #: The step whose frames come in; None before the first.
    step: int | None = None
    #: Where those begin that are still to come.
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

"""A worker's connections to the servers of its run, and which of them owns which frame. Knows no message but Hello."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.aggregation.slices import slices_for
from common.errors import AddressError
from common.protocol.codec import Buffer, encode
from common.protocol.shard_messages import Hello
from common.transport.links import Links, Wait, wait_for_nothing
from common.transport.port import ClientPort, PeerSlow

#: Opens a connection to an address; `AddressError` where there can be none.
Dial = Callable[[str], ClientPort]

#: Seconds for which last words may still go out.
LINGER_S = 1.0

#: Seconds that a server which does not read is waited for, before what was to be sent to it is given up.
PATIENCE_S = 60.0


@dataclass
class ServerConnections:
    """The server that decides, and the others, where a run has several."""

    first: ClientPort
    #: How the others are reached, None where there can be none.
    dial: Dial | None = None
    wait: Wait = wait_for_nothing
    #: In the order of their slices.
    _others: list[ClientPort] = field(default_factory=list)
    #: What tells them who dials.
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

    def send(self, frames: list[Buffer], patience_s: float = 0.0, start: int | None = None) -> None:
        """Send a message to the server that owns the frame that begins at `start`, or to the one that decides."""
        _send(self.first if start is None else self._owners.get(start, self.first), frames, patience_s)

    def meet(self, addresses: list[str], size: int, hello: Hello) -> None:
        """Dial the others, which hold slices of a vector of `size` values, instead of those of a run before."""
        self.part()
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
        self.greet(PATIENCE_S)
        self._links = Links([self.first, *self._others], self.wait)

    def greet(self, patience_s: float = 0.0) -> None:
        """Tell the others who dials, perhaps once more."""
        for other in self._others:
            _send(other, self._hello, patience_s)

    def part(self) -> None:
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


def _send(server: ClientPort, frames: list[Buffer], patience_s: float) -> None:
    try:
        server.send(frames, patience_s)
    except PeerSlow:
        # Nobody reads, perhaps since nobody is there: what is asked is asked again, what is lost is leased again.
        return

"""Which frames of which leases have come, and whether a peer sends more than was asked of it. Pure; sees no array.

What is taken in is bounded by what was leased, whatever a peer does: a frame counts only for a lease that its sender
was given in the step at hand, and once.
"""

from dataclasses import dataclass, field

from common.aggregation.tree import Node
from common.errors import RemoteProtocolError

#: How many messages a peer may send for each that a lease asks for: a network may deliver twice. Frames that come too
#: late are among those that were asked for.
PATIENCE = 2


@dataclass
class FrameBook:
    """The book over the frames of one slice."""

    #: Number of frames in which a vector of sums travels here.
    frames: int
    #: The step whose leases are booked; None before the first.
    step: int | None = None
    #: By peer and node, for each frame whether it is still to come.
    missing: dict[tuple[bytes, Node], bytearray] = field(default_factory=dict)
    #: By peer, how many more frames and results it may send.
    allowance: dict[bytes, int] = field(default_factory=dict)

    def grant(self, peer: bytes, step: int, node: Node) -> None:
        """Book that a node of a step was leased to a peer: the frames of its sums are welcome until the next step."""
        if step != self.step:
            self.step = step
            self.missing.clear()
        # Where it is leased again what has come stays: the first frames of the first answer may be among it.
        self.missing.setdefault((peer, node), bytearray(b"\1") * self.frames)
        self.expect(peer, self.frames + 1)

    def expect(self, peer: bytes, messages: int) -> None:
        """Book that a peer was asked for so many frames and results."""
        self.allowance[peer] = self.allowance.get(peer, 0) + PATIENCE * messages

    def take(self, peer: bytes, step: int, node: Node, frame: int) -> bool:
        """Book a frame that came; return whether it is to be added. `RemoteProtocolError` as in `count`."""
        self.count(peer)
        missing = self.missing.get((peer, node)) if step == self.step else None
        if missing is None or not missing[frame]:
            return False
        missing[frame] = 0
        return True

    def count(self, peer: bytes) -> None:
        """Book that a peer answered; `RemoteProtocolError` where it sends for ever.

        Of a peer that never had a lease nothing is booked: nothing that it sends is taken in.
        """
        allowance = self.allowance.get(peer)
        if allowance is None:
            return
        if allowance == 0:
            raise RemoteProtocolError("it sends more than its leases ask for")
        self.allowance[peer] = allowance - 1

    def is_whole(self, peer: bytes, step: int, node: Node) -> bool:
        """Tell whether all frames of a lease have come."""
        missing = self.missing.get((peer, node)) if step == self.step else None
        return missing is not None and 1 not in missing

    def forget(self, peer: bytes) -> None:
        """Book that a peer is gone, or turned away."""
        self.allowance.pop(peer, None)
        for key in [key for key in self.missing if key[0] == peer]:
            del self.missing[key]

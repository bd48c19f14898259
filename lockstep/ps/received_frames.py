"""Which frames of which sums have come, and whether a peer sends more than was asked of it. Pure; sees no array.

Its user knows which sums are wanted of whom, and asks it about no others: so what it keeps is bounded by what was
leased, whatever a peer does.
"""

from dataclasses import dataclass, field

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RemoteProtocolError

#: How many messages a peer may send for each that a lease asks for: a network may deliver twice. Frames that come too
#: late are among those that were asked for.
COPIES = 2


@dataclass
class ReceivedFrames:
    """The frames of one slice that came in one step."""

    #: Number of frames in which a vector of sums travels here.
    frames: int
    #: The step whose frames are recorded; None before the first.
    step: int | None = None
    #: By peer and node, for each frame whether it is still to come.
    missing: dict[tuple[bytes, Node], bytearray] = field(default_factory=dict)
    #: By peer, how many more frames and results it may send.
    allowance: dict[bytes, int] = field(default_factory=dict)

    def expect(self, peer: bytes, messages: int) -> None:
        """Record that a peer was asked for so many frames and results."""
        self.allowance[peer] = self.allowance.get(peer, 0) + COPIES * messages

    def count(self, peer: bytes) -> None:
        """Record that a message of a peer came; `RemoteProtocolError` if it sends for ever.

        Of a peer that was never asked for anything nothing is recorded: nothing that it sends is used.
        """
        allowance = self.allowance.get(peer)
        if allowance is None:
            return
        if allowance == 0:
            raise RemoteProtocolError("it sends more than its leases ask for")
        self.allowance[peer] = allowance - 1

    def add(self, peer: bytes, step: int, node: Node, frame: int) -> bool:
        """Record a frame of sums that are wanted of a peer in this step; return whether it is the first copy.

        If the same sums are wanted again, after an expired lease, what has come of them stays.
        """
        if step != self.step:
            self.step = step
            self.missing.clear()
        missing = self.missing.setdefault((peer, node), bytearray(b"\1") * self.frames)
        is_first, missing[frame] = bool(missing[frame]), 0
        return is_first

    def has_any(self, peer: bytes, step: int, node: Node) -> bool:
        """Tell whether a frame of these sums has come."""
        return step == self.step and (peer, node) in self.missing

    def is_whole(self, peer: bytes, step: int, node: Node) -> bool:
        """Tell whether all frames of these sums have come."""
        return self.has_any(peer, step, node) and 1 not in self.missing[peer, node]

    def forget(self, peer: bytes) -> None:
        """Forget a peer that is gone, or was sent away."""
        self.allowance.pop(peer, None)
        for key in [key for key in self.missing if key[0] == peer]:
            del self.missing[key]

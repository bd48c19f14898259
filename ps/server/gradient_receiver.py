"""Which of the sums that workers send are added to the server's own slice, and how they get there."""

from dataclasses import dataclass, field

from common.aggregation.tree import Node, Vector, is_node
from common.errors import RemoteProtocolError
from common.protocol.messages import Lease, Result, SumsFrame
from ps.coordinator.membership import Membership
from ps.coordinator.validation import not_finite
from ps.shard.frame_book import FrameBook
from ps.shard.shard import Shard
from ps.shared_memory import ServerSharedMemory


@dataclass
class GradientReceiver:
    """The way of sums from workers to the shard in the coordinator's process."""

    shard: Shard
    roster: Membership
    sharing: ServerSharedMemory | None
    book: FrameBook = field(init=False)

    def __post_init__(self) -> None:
        self.book = FrameBook(len(self.shard.frames))
        #: The index of the frame that begins there.
        self._frame_at = {frame.start: index for index, frame in enumerate(self.shard.frames)}

    def _shares(self, peer: bytes) -> bool:
        """Tell whether a peer is a worker that sends no frames."""
        member = self.roster.members.get(peer)
        return member is not None and member.shares

    def expect(self, peer: bytes, lease: Lease) -> None:
        """Get ready for a lease before its worker does: for its frames, or for its sums in the slot that it names."""
        member = self.roster.members.get(peer)
        if member is not None and member.shares:
            self.shard.settle(self._slot(member.rank, lease.slot))
        elif lease.work == "train":
            self.book.grant(peer, lease.step, Node(lease.lo, lease.hi))
        else:
            self.book.expect(peer, 1)

    def _slot(self, rank: int, slot: int) -> Vector:
        """Return the sums in a worker's slot, over the whole vector."""
        assert self.sharing is not None  # a worker shares only what was offered
        return self.sharing.sums[rank][slot]

    def on_frame(self, peer: bytes, received: SumsFrame, values: Vector) -> bool:
        """Add a frame straight from the memory it was received in if a lease asks for it; return whether one does."""
        frame, node = self._frame_at.get(received.start), received.node()
        if frame is None or not is_node(node.lo, node.hi, self.shard.micro_batches):
            raise RemoteProtocolError(
                f"sums over [{received.lo}, {received.hi}) from {received.start} on: not a frame of any lease"
            )
        _check_length(values, self.shard.policy.wire.words(self.shard.frames[frame]))
        if received.step != self.shard.updates:
            # Late, while the book is still of that step: other servers are not done with it, and we are.
            self.book.count(peer)
            return False
        if not self.book.take(peer, received.step, node, frame):
            return False
        if not self.shard.is_finite(frame, values):
            raise not_finite(received.step, node)
        self.shard.receive(frame, node, values)
        return True

    def is_whole(self, peer: bytes, result: Result, arrays: list[Vector]) -> bool:
        """Tell whether a result came with all its sums: otherwise some of them came too late to be added.

        Sums in shared memory are not checked for values that are not finite, which takes a fifth of an exchange's
        time: their worker, which only our own user can have started, did so, and `NonFiniteGuard` checks the weights.
        """
        self.book.count(peer)
        if result.work != "train" or self._shares(peer):
            return True
        if arrays:
            if len(self.shard.frames) > 1:
                raise RemoteProtocolError(f"a result with {len(arrays[0])} sums: expected them in frames of their own")
            _check_length(arrays[0], self.shard.policy.wire.words(self.shard.frames[0]))
            if not self.shard.is_finite(0, arrays[0]):
                raise not_finite(result.step, result.node())
            return True
        return self.book.is_whole(peer, result.step, result.node())

    def add_shared(self, node: Node, rank: int, slot: int) -> None:
        """Add our slice of the sums in a worker's slot, which stay there until a lease names it again."""
        start, size = self.shard.start, self.shard.weights.size
        self.shard.add(node, self._slot(rank, slot)[start : start + size])

    def forget(self, peer: bytes, rank: int) -> None:
        """Give back what was kept for a worker that is gone."""
        self.book.forget(peer)
        if self.sharing is not None:
            self.sharing.forget(rank)


def _check_length(values: Vector, expected: int) -> None:
    if len(values) != expected:
        raise RemoteProtocolError(f"sums of {len(values)} values: expected {expected}")

"""Which of the sums that workers send are added to the server's own slice, and how they get there.

There is one way in for sums that travel: as frames, which are added as they come, if the coordinator's lease table has
a lease that asks for them. A vector that fits into one frame comes with its result, which saves a message per lease,
and is a frame like any other. Sums in shared memory are added when the coordinator says so, since it lends the slots
that they are in.
"""

from dataclasses import dataclass, field

from lockstep.common.aggregation.tree import Node, Vector, is_node
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import Lease, Result, SumsFrame
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.failures import not_finite
from lockstep.ps.received_frames import ReceivedFrames
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shared_memory.memory import ServerSharedMemory


@dataclass
class GradientReceiver:
    """The way of sums from workers to the shard in the coordinator's process."""

    #: Knows who was leased what.
    coordinator: Coordinator
    shard: Shard
    sharing: ServerSharedMemory | None
    book: ReceivedFrames = field(init=False)

    def __post_init__(self) -> None:
        self.book = ReceivedFrames(len(self.shard.frames))
        #: The index of the frame that begins there.
        self._frame_at = {frame.start: index for index, frame in enumerate(self.shard.frames)}

    def expect(self, peer: bytes, lease: Lease) -> None:
        """Get ready for a lease before its worker does: for its messages, or for its sums in the slot that it names."""
        member = self.coordinator.membership.members.get(peer)
        if member is not None and member.shares:
            self.shard.settle(self._slot(member.rank, lease.slot))
        else:
            self.book.expect(peer, 1 + (len(self.shard.frames) if lease.work == "train" else 0))

    def _slot(self, rank: int, slot: int) -> Vector:
        """Return the sums in a worker's slot, over the whole vector."""
        assert self.sharing is not None  # a worker shares only what was offered
        return self.sharing.sums[rank][slot]

    def on_frame(self, peer: bytes, received: SumsFrame, values: Vector) -> bool:
        """Add a frame straight from the memory it was received in if a lease asks for it; return whether one does."""
        node, frame = received.node(), self._frame_at.get(received.start)
        if frame is None or not is_node(node.lo, node.hi, self.shard.micro_batches):
            raise RemoteProtocolError(f"sums over {node} from {received.start} on: not a frame of any lease")
        self.book.count(peer)
        return self._add(peer, received.step, node, frame, values)

    def on_result(self, peer: bytes, result: Result, arrays: list[Vector]) -> bool:
        """Add the frame that a result carries, if any; tell whether the coordinator may count the result.

        It may not if sums that a lease asks for have not all come. The coordinator refuses what no lease asks for.
        """
        self.book.count(peer)
        step, node = result.step, result.node()
        if arrays:
            if len(self.shard.frames) > 1:
                raise RemoteProtocolError(f"a result with {len(arrays[0])} sums: expected them in frames of their own")
            self._add(peer, step, node, 0, arrays[0])
        return result.work != "train" or not self._is_asked(peer, step, node) or self.book.is_whole(peer, step, node)

    def _is_asked(self, peer: bytes, step: int, node: Node) -> bool:
        """Tell whether a lease of the step at hand asks a worker to send the sums of a node.

        When other servers are still making a step's update, and this one has made it, what comes is late.
        """
        member, state = self.coordinator.membership.members.get(peer), self.coordinator.state
        if member is None or member.shares or state.round.work != "train":
            return False
        return step == state.round.step == self.shard.updates and state.leases.was_granted(member.rank, node)

    def _add(self, peer: bytes, step: int, node: Node, frame: int, values: Vector) -> bool:
        expected = self.shard.policy.wire.words(self.shard.frames[frame])
        if len(values) != expected:
            raise RemoteProtocolError(f"sums of {len(values)} values: expected {expected}")
        if not self._is_asked(peer, step, node) or not self.book.add(peer, step, node, frame):
            return False
        if not self.shard.is_finite(frame, values):
            raise not_finite(step, node)
        self.shard.receive(frame, node, values)
        return True

    def add_shared(self, node: Node, rank: int, slot: int) -> None:
        """Add our slice of the sums in a worker's slot, which stay there until a lease names it again.

        They are not checked for values that are not finite, which takes a fifth of an exchange's time: their worker,
        which only our own user can have started, did so, and `NonFiniteGuard` checks the weights.
        """
        start, size = self.shard.start, self.shard.weights.size
        self.shard.add(node, self._slot(rank, slot)[start : start + size])

    def forget(self, peer: bytes, rank: int) -> None:
        """Give back what was kept for a worker that is gone."""
        self.book.forget(peer)
        if self.sharing is not None:
            self.sharing.forget(rank)

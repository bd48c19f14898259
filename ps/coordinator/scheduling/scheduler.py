"""Who gets which pieces: leases on demand, so that a fast worker computes more of them. Pure.

What is decided here never changes the result: the sums are added over one fixed tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.protocol.messages import SLOTS, Lease, Result
from ps.coordinator.effects import AddSharedSums, AddSums, Effect, Send, SendWeights
from ps.coordinator.membership import Member
from ps.coordinator.scheduling.buffer_pool import BufferPool
from ps.coordinator.scheduling.lease_table import LeaseTable
from ps.coordinator.scheduling.lease_timeouts import LeaseTimeouts
from ps.coordinator.scheduling.pending import PendingAcknowledgements
from ps.run.plan import Round

#: Leases that a worker may hold: the next one is there when it finishes one. Each needs a slot for its sums.
WINDOW = SLOTS


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Where work is given out, for the moment of one event."""

    round: Round
    pieces: LeaseTable
    slots: BufferPool
    #: Results that do not count yet.
    awaiting: PendingAcknowledgements
    #: Number of workers that share the work.
    ready: int
    #: In seconds of the coordinator's clock, and what tells when a lease runs out.
    now: float
    pace: LeaseTimeouts

    def serve(self, members: Sequence[Member]) -> list[Effect]:
        """Lease free pieces, one to each member in turn, until all hold a full window or nothing is free for them."""
        effects: list[Effect] = []
        for held in range(WINDOW):
            for member in members:
                if self.pieces.free() and len(occupied(member.rank, self.pieces, self.slots, self.awaiting)) <= held:
                    effects += self._lease(member)
        return effects

    def _lease(self, member: Member) -> list[Effect]:
        # Guided self-scheduling (Polychronopoulos and Kuck, 1987): half a fair share of what is left, so that the first
        # leases are large and the last ones small enough for all to finish together.
        is_alone = self.ready == 1
        most = self.round.pieces if is_alone else -(-self.pieces.free() // (WINDOW * self.ready))
        leased = [lease.node for lease in self.pieces.holding(member.rank)]
        patience_s = self.pace.patience_s(member.rank, self.round.work, most + sum(map(len, leased)))
        node = self.pieces.take(member.rank, most, self.now + patience_s, is_alone=is_alone)
        if node is None:
            return []
        if not leased:
            self.pace.begin(member.rank, self.now)
        step = self.round.step
        slot, number = self.slots.lend(member.rank, node, leased, self.awaiting.numbers(member.rank))
        lease = Lease(
            work=self.round.work,
            step=step,
            lo=node.lo,
            hi=node.hi,
            number=number,
            slot=slot,
            is_digested=node.lo in self.pieces.alone,
        )
        if member.shares or member.weights_step == step:
            return [Send(peer=member.peer, message=lease)]
        member.weights_step = step
        return [SendWeights(peer=member.peer, step=step), Send(peer=member.peer, message=lease)]


def occupied(rank: int, pieces: LeaseTable, slots: BufferPool, awaiting: PendingAcknowledgements) -> list[int]:
    """Return the slots of sums that a worker needs: for what it holds, and for what is still being read."""
    return slots.needed(rank, [held.node for held in pieces.holding(rank)], awaiting.numbers(rank))


def adding(slots: BufferPool, member: Member, result: Result) -> AddSums | AddSharedSums | None:
    """Return how the sums of a result get into the tree, None where they are not to be had any more."""
    if not member.shares or result.work != "train":
        return AddSums(node=result.node())
    slot = slots.slot_of(member.rank, result.number)
    return None if slot is None else AddSharedSums(node=result.node(), rank=member.rank, slot=slot)

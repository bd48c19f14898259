"""Who gets which micro-batches: leases on demand, so that a fast worker computes more of them. Pure.

What is decided here never changes the result: the sums are added over one fixed tree.
"""

from collections.abc import Sequence

from common.protocol.messages import Lease
from ps.coordinator.effects import Effect, Send, SendWeights
from ps.coordinator.membership import Member
from ps.coordinator.scheduling.buffer_pool import WINDOW
from ps.coordinator.scheduling.round_state import RoundState
from ps.coordinator.scheduling.stragglers import LeaseTimeouts


def assign_leases(
    state: RoundState, members: Sequence[Member], ready: int, timeouts: LeaseTimeouts, now: float
) -> list[Effect]:
    """Lease free micro-batches, to each member in turn, until all hold a full window or nothing is free for them.

    `ready` is the number of workers that share the round, of whom `members` may be some.
    """
    effects: list[Effect] = []
    for held in range(WINDOW):
        for member in members:
            if state.leases.free() and len(state.slots_in_use(member.rank)) <= held:
                effects += _lease(state, member, ready, timeouts, now)
    return effects


def _lease(state: RoundState, member: Member, ready: int, timeouts: LeaseTimeouts, now: float) -> list[Effect]:
    # Guided self-scheduling (Polychronopoulos and Kuck, 1987): half a fair share of what is left, so that the first
    # leases are large and the last ones small enough for all to finish together.
    is_alone, leases, rank = ready == 1, state.leases, member.rank
    most = leases.total if is_alone else -(-leases.free() // (WINDOW * ready))
    held = [lease.node for lease in leases.held_by(rank)]
    timeout_s = timeouts.timeout_s(rank, state.round.work, most + sum(map(len, held)))
    node = leases.lease(rank, most, now + timeout_s, is_alone=is_alone)
    if node is None:
        return []
    if not held:
        timeouts.begin(rank, now)
    step = state.round.step
    slot, number = state.buffers.lend(rank, node, held, state.pending.numbers(rank))
    lease = Lease(
        work=state.round.work,
        step=step,
        lo=node.lo,
        hi=node.hi,
        number=number,
        slot=slot,
        is_digested=node.lo in leases.single,
    )
    if member.shares or member.weights_step == step:
        return [Send(peer=member.peer, message=lease)]
    member.weights_step = step
    return [SendWeights(peer=member.peer, step=step), Send(peer=member.peer, message=lease)]

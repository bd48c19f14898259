"""The leader's part in a team: it gives the orders, and puts together the results for the server. A shell."""

from dataclasses import dataclass

import msgspec

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import Lease, MultiStepLease, Work
from lockstep.common.protocol.team_memory import COMPUTE_S
from lockstep.worker.team.meeting import Meeting
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import Order, OrderOutcome, Steps

#: Most seconds that the leader sleeps until it looks whether the server has sent something.
LISTEN_S = 0.01


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a team for a lease."""

    tally: Tally
    #: The sum of losses of each micro-batch, in order; none of an evaluation.
    losses: list[float]
    #: Seconds that they have computed, all together.
    compute_s: float


@dataclass
class Leader:
    """The orders of one session."""

    member: TeamMember
    meeting: Meeting | None
    #: The last order, and the highest number that belongs to it.
    order: Order | None = None
    _last: int = 0

    @property
    def is_busy(self) -> bool:
        """True while an order is being carried out."""
        return self.member.is_busy

    @property
    def _before(self) -> Order | None:
        """The last order that was begun here."""
        return None if self.member.last is None else self.member.last.order

    def can_divide(self, lease: Lease) -> bool:
        """Tell whether other processes can help with a lease."""
        return len(lease.node()) > 1 and len(self.member.pace.present(self._before)) > 1

    def begin_lease(self, lease: Lease) -> None:
        """Let the team compute a lease."""
        self._give(lease.work, lease.step, lease.node(), lease.memory, None)

    def begin_steps(self, lease: MultiStepLease) -> None:
        """Let the team make the steps of a multi-step lease; `SharingError` if its memory cannot be mapped."""
        steps = Steps(number=lease.number, first=lease.first, last=lease.last, reads=lease.reads)
        node = Node(0, self.member.compute.job.micro_batches)
        self._give("train", lease.first, node, lease.memory, steps)

    def _give(self, work: Work, step: int, node: Node, memory: int, steps: Steps | None) -> None:
        order = Order(
            number=self._last + 1,
            work=work,
            step=step,
            node=node,
            plan=self.member.pace.plan(node, self._before),
            memory=memory,
            steps=steps,
        )
        self.order, self._last = order, order.last_number
        self.member.memory.give(order)
        self.member.begin(order)
        self.member.waking.wake(self.member.pace.wanted_for(order.plan))

    def advance(self, now: float) -> OrderOutcome | None:
        """Do the work that is due, or sleep a little; return the outcome of the order if it has ended."""
        due = self.member.due()
        if due is None or due <= now or self.meeting is None:
            return self.member.advance()
        if self.member.falls_asleep():
            self.meeting.wait(min(due - now, LISTEN_S))
            self.member.look_again()
        return None

    def stop(self) -> None:
        """Give up the current order."""
        self.member.wake_up()
        self.member.stop()

    def computed(self) -> int:
        """Return the number of micro-batches of the last order whose sums are there."""
        order = self.order
        return 0 if order is None else sum(self.member.memory.covered(order.number, order.node))

    def found(self, order: Order, out: Vector | None) -> Found:
        """Return the results of an order that is done; write its sums into `out`, of the whole size."""
        sums, memory = self.member.sums, self.member.memory
        copies = memory.sums_of(order)
        assert copies is not None  # it is done
        if out is not None:
            sums.gather(order, out)
        return Found(
            tally=sums.tally_of(order, copies),
            losses=[] if out is None else memory.losses(copies).tolist(),
            compute_s=float(memory.figures(copies)[:, COMPUTE_S].sum()),
        )

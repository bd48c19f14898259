"""Assigns micro-batches to workers: to each as many as it can compute until all are done, and copies of late ones.

Pure. These decisions never change the result: the sums are added over one fixed tree.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count

from lockstep.common.aggregation.finishing_time import finishing_time_s, whole
from lockstep.common.aggregation.tree import Node, largest_node_at
from lockstep.common.protocol.messages import Dropped, Lease, Result, Withdrawal
from lockstep.common.statemachine.machine import soonest
from lockstep.ps.coordinator.effects import Effect, Send
from lockstep.ps.coordinator.membership import Member, Membership, MemberState, SlowWorkerTrial
from lockstep.ps.coordinator.scheduling.lease_table import HeldLease, Withdrawals, WithdrawnLease
from lockstep.ps.coordinator.scheduling.round_state import WINDOW, RoundState
from lockstep.ps.coordinator.scheduling.stragglers import LeaseTimeouts

#: A second copy is worth it if it will be there sooner by this part of the time that it takes.
COPY_MARGIN = 0.25


@dataclass
class Scheduler:
    """The speeds of the workers from round to round, by which the micro-batches of each are leased."""

    membership: Membership
    timeouts: LeaseTimeouts
    withdrawals: Withdrawals = field(default_factory=Withdrawals)
    #: The numbers of the leases to come, by which workers and the server name them.
    numbers: Iterator[int] = field(default_factory=partial(count, 1))

    def assign(self, state: RoundState, now: float, members: Sequence[Member] | None = None) -> list[Effect]:
        """Lease free micro-batches, and second copies of late ones, to some of the ready members or to all."""
        effects: list[Effect] = []
        if state.leases.free():
            effects = self._share_out(state, now, members)
        if self._has_copies:
            self._find_delayed(state, now)
            is_anybody_idle = len(state.leases.held) < self.membership.count(MemberState.READY)
            effects += self._copy_late(state, now, members) if is_anybody_idle else []
        return effects

    @property
    def _has_copies(self) -> bool:
        """True if any worker may be leased what others have."""
        return self.membership.has_spare_cores()

    def deadline(self, state: RoundState) -> float | None:
        """Return when something may be leased to others, or to others as well, since its worker is late."""
        delay = state.expected.next_delay(state.leases) if self._has_copies else None
        return soonest(delay, state.end) if state.leases.free() else delay

    def _available(self, state: RoundState, members: Iterable[Member], now: float) -> list[Member]:
        """Return those of some ready members that do not seem to stand still."""
        return [member for member in members if not self._stands_still(state, member.rank, now)]

    def _stands_still(self, state: RoundState, rank: int, now: float) -> bool:
        if self.withdrawals.stands_still(rank, now):
            return True
        held = state.leases.held_by(rank)
        if not held or not self.timeouts.is_known(state.round.work):
            return False
        return now >= self._expected_end(state, held[0], now) + self._slack_s(state, held[0])

    def withdraw(self, state: RoundState, leases: Iterable[HeldLease], now: float) -> list[Effect]:
        """Withdraw leases that other workers were faster with."""
        peers = [(self.membership.holder(lease.rank).peer, lease) for lease in leases]
        return [Send(peer=peer, message=self._withdraw(state, lease, now)) for peer, lease in peers]

    def _withdraw(self, state: RoundState, lease: HeldLease, now: float) -> Withdrawal:
        """Withdraw a lease; return the message that says so.

        Its worker stops within a micro-batch, unless it is so late already that it seems to stand still.
        """
        work = state.round.work
        began, due = self.timeouts.since(lease.rank, now), now
        if self.timeouts.is_known(work):
            each_s = self.timeouts.expected_s(lease.rank, work)
            is_late = now > began + len(lease.node) * each_s + self._slack_s(state, lease)
            due = now if is_late else now + 2 * each_s
        self.withdrawals.add(
            WithdrawnLease(lease=lease, round=state.round, round_began=state.began, began=began, due=due)
        )
        return Withdrawal(number=lease.number)

    def past(self, member: Member, number: int, computed: int, now: float) -> WithdrawnLease | None:
        """Record that a worker is past a lease after so many of its micro-batches; None if it was not withdrawn."""
        withdrawn = self.withdrawals.answer(member.rank, number)
        if withdrawn is None:
            return None
        done = min(computed, len(withdrawn.lease.node))
        if done:
            each_s = max(0.0, now - withdrawn.began) / done
            self.timeouts.add(member.rank, withdrawn.round.work, each_s, is_trial=member.trial is not None)
        # A lease that it was given meanwhile begins now.
        self.timeouts.begin(member.rank, now)
        return withdrawn

    def drop(self, state: RoundState, member: Member, dropped: Dropped, now: float) -> bool:
        """Record that a worker is past a lease which was withdrawn, and has not computed all of it; tell whether."""
        withdrawn = self.past(member, dropped.number, dropped.computed, now)
        if withdrawn is None:
            return False
        state.record_dropped(withdrawn, dropped.computed, now)
        return True

    def measure(self, member: Member, result: Result, held: Iterable[HeldLease], now: float) -> WithdrawnLease | None:
        """Measure a result of a lease that a worker holds, or that was withdrawn, which is then returned.

        A result of anything else measures nothing: it came twice, or too late.
        """
        withdrawn = self.past(member, result.number, max(0, result.hi - result.lo), now)
        if withdrawn is None and any(lease.node == result.node() for lease in held):
            is_trial, micro_batches = member.trial is not None, len(result.node())
            self.timeouts.record(member.rank, result.work, micro_batches, now, is_trial=is_trial)
        return withdrawn

    def await_multi_step(self, state: RoundState, rank: int, number: int, now: float, *, is_late: bool) -> None:
        """Expect a worker to answer a multi-step lease; one that was late seems to stand still."""
        due = now if is_late else now + 2 * self.timeouts.expected_s(rank, "train")
        lease = HeldLease(Node(0, 0), rank, now + self.timeouts.timeout_s(rank, "train", 1), number, now)
        self.timeouts.begin(rank, now)
        self.withdrawals.add(
            WithdrawnLease(lease=lease, round=state.round, round_began=state.began, began=now, due=due)
        )

    # Free micro-batches

    def _share_out(self, state: RoundState, now: float, given: Sequence[Member] | None) -> list[Effect]:
        """Share out free micro-batches, as many as each worker can compute until all are done."""
        membership = self.membership
        ready, leases = membership.count(MemberState.READY), state.leases
        if ready == 1 or leases.is_restricted() or not self.timeouts.is_known(state.round.work):
            state.end = None
            members = self._available(state, membership.ready() if given is None else given, now)
            return self._share_blindly(state, members, ready, now)
        # If all leases are late, the work is divided again at once.
        end = state.end
        if given is not None and end is not None and now < end and leases.held:
            given = self._available(state, given, now)
            return self._share_until(state, [(one, self._room(state, one.rank, end, now)) for one in given], ready, now)
        members = self._available(state, membership.ready(), now)
        if not members:
            state.end = None
            return []
        return self._share_until(state, self._plan(state, members, now), ready, now)

    def _share_blindly(self, state: RoundState, members: Sequence[Member], ready: int, now: float) -> list[Effect]:
        """Share out where no times are known: the first leases are large, and the last ones small.

        Guided self-scheduling (Polychronopoulos and Kuck, 1987): half a fair share of the rest.
        """
        effects: list[Effect] = []
        is_alone, leases = ready == 1, state.leases
        for held in range(WINDOW):
            for member in members:
                if leases.free() and len(leases.held_by(member.rank)) <= held:
                    most = leases.total if is_alone else -(-leases.free() // (WINDOW * ready))
                    effects += self._lease(state, member, most, ready, now)
        return effects

    def _plan(self, state: RoundState, members: Sequence[Member], now: float) -> list[tuple[Member, int]]:
        """Find out when all can be done, and how much each member can do until then.

        Those that are too slow for any get one micro-batch if they are tried.
        """
        free, total = state.leases.free(), state.leases.total
        speeds = [self._speed(state, member.rank, now) for member in members]
        takes_s = finishing_time_s(free, speeds)
        rooms = [whole(takes_s - busy_s, each_s) for busy_s, each_s in speeds]
        # If others may be back at any moment, there is to be something that they can take over.
        state.most = total if len(members) > 1 else -(-total // 2)
        tried: list[Member] = []
        if free == total:
            tried = [one for one, room in zip(members, rooms, strict=True) if self._is_tried(one, is_too_slow=not room)]
        if tried:
            speeds = [speed for speed, room in zip(speeds, rooms, strict=True) if room]
            members = [member for member, room in zip(members, rooms, strict=True) if room]
            takes_s = finishing_time_s(max(0, free - len(tried)), speeds)
            rooms = [whole(takes_s - busy_s, each_s) for busy_s, each_s in speeds]
        state.end = now + takes_s
        return [*zip(members, rooms, strict=True), *((member, 1) for member in tried)]

    def _is_tried(self, member: Member, *, is_too_slow: bool) -> bool:
        """Tell whether a worker that is too slow for a round is to show in it whether it still is."""
        if not is_too_slow:
            member.trial = None
            return False
        member.trial = member.trial or SlowWorkerTrial()
        return member.trial.begins(is_free=self._has_copies)

    def _speed(self, state: RoundState, rank: int, now: float) -> tuple[float, float]:
        """Return the seconds until a worker has done what it holds, and those of another micro-batch."""
        each_s = self.timeouts.expected_s(rank, state.round.work)
        leases = state.leases.held_by(rank)
        if leases:
            held = sum(len(lease.node) for lease in leases)
            return self.timeouts.remaining_s(rank, state.round.work, held, now), each_s
        return self._stopping_s(rank, each_s, now), each_s

    def _stopping_s(self, rank: int, each_s: float, now: float) -> float:
        """Return the seconds until a worker stops computing a lease that was withdrawn: at the next micro-batch."""
        began = self.withdrawals.began(rank) if self.withdrawals.open else None
        return 0.0 if began is None else each_s - max(0.0, now - began) % each_s

    def _share_until(
        self, state: RoundState, rooms: Iterable[tuple[Member, int]], ready: int, now: float
    ) -> list[Effect]:
        """Lease to each member so many micro-batches, as far as it may hold as many leases."""
        effects: list[Effect] = []
        # The largest lease first, whosever it is: then each begins where a node as large does.
        waiting = [(-room.bit_length(), member.rank, room, member) for member, room in rooms if room]
        heapify(waiting)
        while waiting and (free := state.leases.free()):
            _, rank, room, member = heappop(waiting)
            if len(state.leases.held_by(rank)) == WINDOW:
                continue
            effects += self._lease(state, member, min(room, state.most), ready, now)
            room -= free - state.leases.free()
            if room:
                heappush(waiting, (-room.bit_length(), rank, room, member))
        return effects

    def _room(self, state: RoundState, rank: int, end: float, now: float) -> int:
        """Return how many more micro-batches a worker can do until the round's expected end."""
        busy_s, each_s = self._speed(state, rank, now)
        return whole(end - now - busy_s, each_s)

    # What others have

    def _copy_late(self, state: RoundState, now: float, given: Sequence[Member] | None) -> list[Effect]:
        """Lease second copies of what ends too late to members that have nothing to do.

        Backup tasks (Dean and Ghemawat, MapReduce, OSDI 2004). Only where a machine has a core for each of its workers:
        a copy would take it from the worker that it is to help.
        """
        effects: list[Effect] = []
        for member in self.membership.ready() if given is None else given:
            if self._may_help(state, member):
                effects += self._copy_delayed(state, member, now) or self._copy_latest(state, member, now)
        return effects

    def _may_help(self, state: RoundState, member: Member) -> bool:
        is_idle = not state.leases.held_by(member.rank) and not self.withdrawals.has_any(member.rank)
        return is_idle and member.state is MemberState.READY and not self.membership.is_crowded(member)

    def _find_delayed(self, state: RoundState, now: float) -> None:
        """Record which leases should have ended."""
        while (lease := state.expected.pop_delayed(state.leases, now)) is not None:
            due = self._expected_end(state, lease, now) + self._slack_s(state, lease)
            if due > now:
                state.expected.put_off(lease, due)
            else:
                state.expected.delayed.append((lease, lease.node))

    def _expected_end(self, state: RoundState, lease: HeldLease, now: float) -> float:
        """Return when a lease is expected to end, or should have ended."""
        held = state.leases.held_by(lease.rank)
        until = (
            len(lease.node) if held[0] is lease else sum(len(one.node) for one in held if one.number <= lease.number)
        )
        began = self.timeouts.since(lease.rank, now)
        return began + until * self.timeouts.expected_s(lease.rank, state.round.work)

    def _slack_s(self, state: RoundState, lease: HeldLease) -> float:
        return self.timeouts.slack_s(lease.rank, state.round.work, len(lease.node))

    def _copy_delayed(self, state: RoundState, member: Member, now: float) -> list[Effect]:
        """Lease a part of a delayed lease to an idle member: all that are idle share it."""
        delayed, table = state.expected.delayed, state.leases
        delayed[:] = [(lease, part) for lease, part in delayed if table.is_held(lease)]
        for place, (lease, part) in enumerate(delayed):
            if not table.may_copy(member.rank, part):
                continue
            idle = sum(self._may_help(state, one) for one in self.membership.ready())
            most = 1 if part.lo in table.single else -(-len(part) // idle)
            node = largest_node_at(part.lo, part.hi, table.total, most)
            delayed[place : place + 1] = [(lease, Node(node.hi, part.hi))] if node.hi < part.hi else []
            return self._copy(state, member, node, now)
        return []

    def _copy_latest(self, state: RoundState, member: Member, now: float) -> list[Effect]:
        """Lease the lease that ends last to an idle member as well, if that is quicker."""
        found = state.expected.latest(state.leases)
        if found is None:
            return []
        lease, end = found
        each_s = self.timeouts.expected_s(member.rank, state.round.work)
        is_sooner = now + (1.0 + COPY_MARGIN) * len(lease.node) * each_s < end
        if not is_sooner or not state.leases.may_copy(member.rank, lease.node):
            return []
        state.expected.drop_latest()
        return self._copy(state, member, lease.node, now)

    # One lease

    def _lease(self, state: RoundState, member: Member, most: int, ready: int, now: float) -> list[Effect]:
        """Lease at most so many micro-batches that are free to a member."""
        deadline = now + self._timeout_s(state, member.rank, most)
        lease = state.leases.lease(member.rank, most, deadline, now, is_alone=ready == 1)
        return [] if lease is None else self._send(state, member, lease, now)

    def _copy(self, state: RoundState, member: Member, node: Node, now: float) -> list[Effect]:
        deadline = now + self._timeout_s(state, member.rank, len(node))
        return self._send(state, member, state.leases.copy(member.rank, node, deadline, now), now)

    def _timeout_s(self, state: RoundState, rank: int, more: int) -> float:
        """Return how many seconds a worker may take for what it holds and so many micro-batches more."""
        held = sum(len(lease.node) for lease in state.leases.held_by(rank))
        return self.timeouts.timeout_s(rank, state.round.work, held + more)

    def _send(self, state: RoundState, member: Member, lease: HeldLease, now: float) -> list[Effect]:
        """Send a lease, which the server sends with the weights if its worker lacks them."""
        work, step, rank, node = state.round.work, state.round.step, member.rank, lease.node
        is_known = self.timeouts.is_known(work)
        if len(state.leases.held_by(rank)) == 1:
            is_stopping = is_known and self.withdrawals.has_any(rank)
            stops_s = self._stopping_s(rank, self.timeouts.expected_s(rank, work), now) if is_stopping else 0.0
            self.timeouts.begin(rank, now + stops_s)
        if self._has_copies and is_known:
            state.expected.add(lease, self._expected_end(state, lease, now), self._slack_s(state, lease))
        message = Lease(
            work=work,
            step=step,
            lo=node.lo,
            hi=node.hi,
            number=lease.number,
            is_digested=node.lo in state.leases.single,
        )
        return [Send(peer=member.peer, message=message)]

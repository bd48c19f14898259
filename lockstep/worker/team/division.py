"""Who of a team computes which nodes of an order, and adds up which slices. Pure.

What is decided here never changes the result: sums are added over one fixed tree, whoever computed which of its nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from lockstep.common.aggregation.finishing_time import finishing_time_s, whole
from lockstep.common.aggregation.tree import Node, largest_node_at
from lockstep.common.protocol.team_memory import MOST_SLICES, OWN_PARTS

#: A plan is made anew if a process has become faster or slower by more than this part.
DIFFERENT = 0.1


class TeamPart(NamedTuple):
    """A node that a process computes."""

    node: Node
    process: int


@dataclass(frozen=True)
class OrderPlan:
    """Who does what in an order."""

    #: In the order of their micro-batches, which are those of the order.
    parts: tuple[TeamPart, ...]
    #: Those that make slices of vectors, in turn.
    owners: tuple[int, ...]

    def of(self, process: int) -> list[Node]:
        """Return the nodes that a process computes."""
        return [part.node for part in self.parts if part.process == process]

    def slices_of(self, process: int, slices: int) -> list[int]:
        """Return those of so many slices that a process makes."""
        if process not in self.owners:
            return []
        return list(range(self.owners.index(process), slices, len(self.owners)))


class OrderWork(NamedTuple):
    """What is to be divided: a node of the tree over so many micro-batches."""

    node: Node
    micro_batches: int


def plan_for(what: OrderWork, seconds: Mapping[int, float], makers: int = MOST_SLICES) -> OrderPlan:
    """Divide an order among processes, by the seconds that each takes for a micro-batch.

    Each of at least one gets as many micro-batches as it can compute until all are done, in at most `OWN_PARTS` nodes.
    At most so many `makers` get slices: the last ones, since the first has to listen to the server.
    """
    grain = 1
    while (parts := _share_out(what, seconds, grain)) is None:
        grain *= 2
    return OrderPlan(tuple(parts), tuple(sorted(seconds)[-makers:]))


def _share_out(what: OrderWork, seconds: Mapping[int, float], grain: int) -> list[TeamPart] | None:
    """Share out a node in multiples of `grain` micro-batches; None if somebody would get too many nodes."""
    node, parts, given = what.node, list[TeamPart](), dict.fromkeys(seconds, 0)
    takes_s = finishing_time_s(-(-len(node) // grain), [(0.0, grain * each_s) for each_s in seconds.values()])
    rooms = ((process, grain * whole(takes_s, grain * each_s)) for process, each_s in seconds.items())
    # The largest first, whosever it is: then each begins where a node as large does.
    waiting = [(-room.bit_length(), process, room) for process, room in rooms if room]
    heapify(waiting)
    at = node.lo
    while at < node.hi:
        _, process, room = heappop(waiting)
        part = largest_node_at(at, node.hi, what.micro_batches, room)
        parts.append(TeamPart(part, process))
        at, room, given[process] = part.hi, room - len(part), given[process] + 1
        if given[process] > OWN_PARTS:
            return None
        if room:
            heappush(waiting, (-room.bit_length(), process, room))
    return parts


def share_of(node: Node, micro_batches: int, helpers: int, place: int) -> Node:
    """Return what one of so many helpers, all equal, computes of a node of somebody who is late."""
    parts = plan_for(OrderWork(node, micro_batches), dict.fromkeys(range(helpers), 1.0)).parts
    return parts[place % len(parts)].node


@dataclass
class Planner:
    """Makes plans; keeps the last one as long as it fits."""

    #: Up to which factor in their times processes count as equally fast.
    even: float = 1.0
    #: Most processes that get slices.
    makers: int = MOST_SLICES
    _what: OrderWork | None = None
    #: What each process takes for a micro-batch, in those of the fastest.
    _times: Mapping[int, float] = field(default_factory=dict)
    _plan: OrderPlan | None = None

    def plan(self, what: OrderWork, seconds: Mapping[int, float]) -> OrderPlan:
        """Return the plan of an order; `seconds` as for `plan_for`, 0 for a process that has computed nothing yet."""
        least = min((one for one in seconds.values() if one > 0.0), default=1.0)
        # Nobody knows better of one that has computed nothing yet.
        times = {process: one / least if one > self.even * least else 1.0 for process, one in seconds.items()}
        if self._plan is None or what != self._what or not self._is_near(times):
            self._what, self._times, self._plan = what, times, plan_for(what, times, self.makers)
        return self._plan

    def _is_near(self, times: Mapping[int, float]) -> bool:
        """Tell whether the same processes are as fast as they were when the plan was made."""
        before = self._times
        if before.keys() != times.keys():
            return False
        return all(abs(one - before[process]) <= DIFFERENT * before[process] for process, one in times.items())


def missing_parts(parts: Sequence[Node], covered: bytes, start: int) -> list[Node]:
    """Return those of an order's parts of which something is not there; `covered` has a byte for each micro-batch."""
    return [part for part in parts if 0 in covered[part.lo - start : part.hi - start]]

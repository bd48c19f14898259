"""Assigns the nodes and slices of an order to the processes of a team. Pure.

The assignment never changes the result: sums are added over one fixed tree, whichever process computed a node.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgspec

from lockstep.common.aggregation.finishing_time import finishing_time_s, whole
from lockstep.common.aggregation.tree import Node, largest_node_at
from lockstep.common.protocol.team_memory import MOST_SLICES, OWN_PARTS

#: A new plan is made if a process has become faster or slower by more than this part.
DIFFERENT = 0.1

#: A process that has no core for more than this part of its time gets no slices if another has one: it would delay all
#: others by the milliseconds until it has its core again, with a lock that no process can take from it.
WAITS = 0.2

#: A process that takes so many times as long as the fastest would delay all others with a slice.
SLOW = 2.0

#: As many processes compute as could, up to this factor.
ROOM = 1.4


class TeamPart(NamedTuple):
    """A node that a process computes."""

    node: Node
    process: int


class OrderPlan(msgspec.Struct, frozen=True, dict=True):
    """The nodes and slices of an order that each process has."""

    #: In the order of their micro-batches, which are those of the order.
    parts: tuple[TeamPart, ...]
    #: The processes that make slices of vectors, in turn.
    owners: tuple[int, ...]

    def of(self, process: int) -> list[Node]:
        """Return the nodes that a process computes."""
        return [part.node for part in self.parts if part.process == process]

    @cached_property
    def workers(self) -> frozenset[int]:
        """The processes that have a node or a slice."""
        return frozenset([*(part.process for part in self.parts), *self.owners])

    def slices_of(self, process: int, slices: int) -> list[int]:
        """Return those of so many slices that a process makes."""
        if process not in self.owners:
            return []
        return list(range(self.owners.index(process), slices, len(self.owners)))


class Speed(NamedTuple):
    """The measured speed of a process."""

    #: Seconds for a micro-batch, and which part of a core it needs meanwhile; 0 of one that has computed nothing yet.
    seconds: float
    load: float = 0.0
    #: For which part of its time it has no core.
    waits: float = 0.0


def plan_for(
    node: Node, seconds: Mapping[int, float], makers: int = MOST_SLICES, unsteady: Collection[int] = ()
) -> OrderPlan:
    """Divide a node of the tree among processes, by the seconds that each takes for a micro-batch.

    Each of at least one gets as many micro-batches as it can compute until all are done, in at most `OWN_PARTS` nodes.
    At most so many `makers` get slices, which are equally long and so not for the slow, nor for those that are
    `unsteady` if others are not: the last ones, since the first has to listen to the server.
    """
    grain = 1
    while (parts := _share_out(node, seconds, grain)) is None:
        grain *= 2
    steady = {process: each_s for process, each_s in seconds.items() if process not in unsteady} or seconds
    slow = SLOW * min(steady.values())
    return OrderPlan(tuple(parts), tuple(sorted(process for process in steady if steady[process] < slow)[-makers:]))


def _share_out(node: Node, seconds: Mapping[int, float], grain: int) -> list[TeamPart] | None:
    """Share out a node in multiples of `grain` micro-batches; None if a process would get too many nodes."""
    parts, given = list[TeamPart](), dict.fromkeys(seconds, 0)
    takes_s = finishing_time_s(-(-len(node) // grain), [(0.0, grain * each_s) for each_s in seconds.values()])
    rooms = ((process, grain * whole(takes_s, grain * each_s)) for process, each_s in seconds.items())
    # The largest first, whosever it is: then each begins where a node as large does.
    waiting = [(-room.bit_length(), process, room) for process, room in rooms if room]
    heapify(waiting)
    at, count = 0, len(node)
    while at < count:
        _, process, room = heappop(waiting)
        part = largest_node_at(at, count, count, room)
        parts.append(TeamPart(part.moved(node.lo), process))
        at, room, given[process] = part.hi, room - len(part), given[process] + 1
        if given[process] > OWN_PARTS:
            return None
        if room:
            heappush(waiting, (-room.bit_length(), process, room))
    return parts


@dataclass
class Planner:
    """Makes plans; keeps the last one as long as it fits."""

    #: Up to which factor in their times processes count as equally fast.
    even: float = 1.0
    #: Most processes that have a core at a time: they get slices.
    cores: int = MOST_SLICES
    #: Most processes that can compute at a time without waiting for a core: more if they wait for something else.
    _room: int = 0
    _node: Node | None = None
    _unsteady: frozenset[int] = frozenset()
    #: The time of each process for a micro-batch, in times of the fastest.
    _times: Mapping[int, float] = field(default_factory=dict)
    _plan: OrderPlan | None = None

    def plan(self, node: Node, speeds: Mapping[int, Speed], before: Collection[int] = ()) -> OrderPlan:
        """Return the plan of an order; `before` are the processes with a part of the one before."""
        least = min((one.seconds for one in speeds.values() if one.seconds > 0.0), default=1.0)
        # A process that has computed nothing yet counts as one of the fastest.
        times: Mapping[int, float] = {
            process: one.seconds / least if one.seconds > self.even * least else 1.0 for process, one in speeds.items()
        }
        if len(times) > self.cores:
            times = self._enough_of(times, [one.load for one in speeds.values() if one.load > 0.0], before)
        # If all of them wait, those are steady that do not wait much longer than the others.
        most = max(WAITS, 2 * min(speeds[process].waits for process in times))
        unsteady = frozenset(process for process in times if speeds[process].waits > most)
        if self._plan is None or (node, unsteady) != (self._node, self._unsteady) or not self._is_near(times):
            self._node, self._unsteady, self._times = node, unsteady, times
            self._plan = plan_for(node, times, self.cores, unsteady)
        return self._plan

    def _enough_of(
        self, times: Mapping[int, float], loads: Sequence[float], before: Collection[int]
    ) -> Mapping[int, float]:
        """Return as many of the processes as can compute at once: more would only take the cores from one another.

        The fastest come first; of equal ones those of the order before, which are awake; then the last, as for slices.
        """
        room = self.cores * len(loads) / sum(loads) if loads else self.cores
        if not self._room / ROOM <= room <= self._room * ROOM:
            self._room = max(self.cores, round(room))
        chosen = sorted(times, key=lambda process: (times[process], process not in before, -process))[: self._room]
        return {process: times[process] for process in sorted(chosen)}

    def _is_near(self, times: Mapping[int, float]) -> bool:
        """Tell whether the same processes are as fast as they were when the plan was made."""
        before = self._times
        if before.keys() != times.keys():
            return False
        return all(abs(one - before[process]) <= DIFFERENT * before[process] for process, one in times.items())

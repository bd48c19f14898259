"""Planted bugs: processes of a team, and a server that leaves it alone, that break one rule each of who writes when."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from lockstep.checking.simulation.processes import Parts
from lockstep.checking.simulation.team import SimulatedMember
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.protocol.team_memory import HI, LO, ORDER, UpdateMarks
from lockstep.worker.team.memory import Copies, Copy, TeamMemory
from lockstep.worker.team.order import Order
from lockstep.worker.team.progress import ComputeNode, MakeSlice, OrderProgress
from lockstep.worker.team.slices import Operands
from lockstep.worker.team.updates import UpdateMaker
from tests.lockstep.checking.simulation.planted import OTHER_LOSSES, OTHER_WEIGHTS, Planted


class Lockless(UpdateMaker):
    """Writes a slice without its lock."""

    def begin(self, slice_: int, order: Order) -> bool:
        return self.may_make(order) and not self.is_made(slice_, order.step)


class Remaking(UpdateMaker):
    """Does not look, once it has the lock, whether the slice was made."""

    def begin(self, slice_: int, order: Order) -> bool:
        if not self.locks[slice_].acquire():
            return False
        if self.may_make(order):
            return True
        self.locks[slice_].release()
        return False


def making(kind: type[UpdateMaker]) -> Parts:
    """Return parts whose processes make updates like that."""

    class Making(SimulatedMember):
        def _map(self, memory: int) -> None:
            super()._map(memory)
            assert self._updates is not None
            self._updates.__class__ = kind

    return Parts(member=Making)


class Boastful(SimulatedMember):
    """Shows sums before they are written."""

    def _begin_action(self, order: Order, progress: OrderProgress, action: ComputeNode | MakeSlice) -> None:
        super()._begin_action(order, progress, action)
        begun, nodes = self._begun, self.memory.marks.nodes[self.memory.process]
        if isinstance(begun, ComputeNode) and order.work in OF_A_STEP:
            nodes[begun.row, LO : HI + 1] = begun.node.lo, begun.node.hi
            nodes[begun.row, ORDER] = order.number


class Greedy(TeamMemory):
    """Takes sums that are being written."""

    def has_all(self, copies: Copies, order: int) -> bool:
        marks = self.marks.nodes[copies.places]
        is_there = (marks[:, ORDER] == order) | ((marks[:, ORDER] == 0) & (marks[:, HI] > 0))
        return bool(is_there.all()) and bool((marks[:, ORDER] == order).any())

    def _found(self, order: int) -> dict[int, Copy]:
        found, nodes = super()._found(order), self.marks.nodes
        for process, row in zip(*np.nonzero(nodes[:, :, ORDER] == 0), strict=True):
            lo, hi = nodes[process, row, LO : HI + 1].tolist()
            if hi > lo and lo not in found:
                found[lo] = Copy(Node(lo, hi), int(process), int(row))
        return found


def remembering(kind: type[TeamMemory]) -> Parts:
    """Return parts whose processes look at memory like that."""

    class Remembering(SimulatedMember):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.memory.__class__ = kind

    return Parts(member=Remembering)


class Doubling(SimulatedMember):
    """Counts sums twice that two processes have."""

    def operands(self, order: Order) -> Operands | None:
        found = super().operands(order)
        if found is None:
            return None
        nodes, vectors = self.memory.marks.nodes, list[Any]()
        for node, vector in zip(found.nodes, found.vectors, strict=True):
            same = (nodes[:, :, : HI + 1] == (order.number, node.lo, node.hi)).all(axis=2)
            copies = [
                self.memory.vector(int(process), int(row)) for process, row in zip(*np.nonzero(same), strict=True)
            ]
            vectors.append(vector if len(copies) < 2 else copies[0] + copies[1])
        return found.__class__(found.step, found.nodes, vectors, found.micro_batches)


class SomeMarks(UpdateMarks, frozen=True):
    """Counts a step as made that is in one slice."""

    def least(self) -> int:
        return int(self.made[: self.slices].max())


class Impatient(SimulatedMember):
    """Begins a step, and overwrites the sums of the one before, although some of its slices are not made."""

    def _map(self, memory: int) -> None:
        super()._map(memory)
        assert self._updates is not None
        self._updates.marks = SomeMarks(**msgspec.structs.asdict(self._updates.marks))

    def _missing(self, order: Order, stage: Any) -> Sequence[Node] | Sequence[int]:
        missing = super()._missing(order, stage)
        return () if self._updates is not None and self._updates.marks.least() > order.step else missing


class Headlong(SimulatedMember):
    """Does not wait until the server has read the entries that it writes over."""

    def _is_ahead(self, order: Order) -> bool:
        return False


#: By what is wrong.
OF_TEAMS = {
    "a slice is written without its lock": Planted(making(Lockless), OTHER_LOSSES, first=125),
    "a slice is made again": Planted(making(Remaking), OTHER_LOSSES, first=62),
    "sums are shown before they are written": Planted(Parts(member=Boastful), OTHER_WEIGHTS, first=3),
    "sums are taken that are not complete": Planted(remembering(Greedy), OTHER_LOSSES, first=10),
    "a part is counted twice": Planted(Parts(member=Doubling), OTHER_WEIGHTS),
    "sums are overwritten too early": Planted(Parts(member=Impatient), OTHER_WEIGHTS, first=11),
    "entries are overwritten that were not read": Planted(
        Parts(member=Headlong), "AssertionError: the entry of step ", first=63
    ),
}

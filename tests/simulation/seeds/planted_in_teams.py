"""Planted bugs: processes of a team, and a server that leaves it alone, that break one rule each of who writes when."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.protocol.team_memory import HI, LO, ORDER, UpdateMarks
from lockstep.worker.team.member import OrderAtWork
from lockstep.worker.team.memory import Copies, Copy, TeamMemory
from lockstep.worker.team.progress import ComputeNode, MakeSlice, OpenPart, Order, OrderStage
from lockstep.worker.team.sums import Operands, OrderSums
from lockstep.worker.team.updates import StepChain, UpdateMaker
from tests.simulation.seeds.planted import OTHER_LOSSES, OTHER_WEIGHTS, Planted
from tests.simulation.simulator.processes import Parts
from tests.simulation.simulator.team import SimulatedMember


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
            assert self.chain is not None
            self.chain.updates.__class__ = kind

    return Parts(member=Making)


class Boastful(SimulatedMember):
    """Shows sums before they are written."""

    def _begin_action(self, at: OrderAtWork, action: ComputeNode | MakeSlice) -> None:
        super()._begin_action(at, action)
        begun, nodes = at.begun, self.memory.marks.nodes[self.memory.process]
        if isinstance(begun, ComputeNode) and at.order.work in OF_A_STEP:
            nodes[begun.row, LO : HI + 1] = begun.node.lo, begun.node.hi
            nodes[begun.row, ORDER] = at.order.number


class Greedy(TeamMemory):
    """Takes sums that are being written."""

    def has_all(self, copies: Copies, order: int) -> bool:
        marks = self.marks.nodes[copies.places]
        is_there = (marks[:, ORDER] == order) | (marks[:, ORDER] == -order)
        return bool(is_there.all()) and bool((marks[:, ORDER] == order).any())

    def _found(self, order: int) -> dict[int, Copy]:
        found, nodes = super()._found(order), self.marks.nodes
        for process, row in zip(*np.nonzero(nodes[:, :, ORDER] == -order), strict=True):
            lo, hi = nodes[process, row, LO : HI + 1].tolist()
            if lo not in found:
                found[lo] = Copy(Node(lo, hi), int(process), int(row))
        return found


def remembering(kind: type[TeamMemory]) -> Parts:
    """Return parts whose processes look at memory like that."""

    class Remembering(SimulatedMember):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.memory.__class__ = kind

    return Parts(member=Remembering)


class Doubling(OrderSums):
    """Counts sums twice that two processes have."""

    def operands(self, order: Order) -> tuple[Operands, Copies] | None:
        known = super().operands(order)
        if known is None:
            return None
        (found, of), nodes, vectors = known, self.memory.marks.nodes, list[Any]()
        for node, vector in zip(found.nodes, found.vectors, strict=True):
            same = (nodes[:, :, : HI + 1] == (order.number, node.lo, node.hi)).all(axis=2)
            copies = [
                self.memory.vector(int(process), int(row)) for process, row in zip(*np.nonzero(same), strict=True)
            ]
            vectors.append(vector if len(copies) < 2 else copies[0] + copies[1])
        return Operands(found.step, found.nodes, vectors), of


class SomeMarks(UpdateMarks, frozen=True):
    """Counts a step as made that is in one slice."""

    def least(self) -> int:
        return int(self.made[: self.slices].max())


class Impatient(SimulatedMember):
    """Begins a step, and overwrites the sums of the one before, although some of its slices are not made."""

    def _map(self, memory: int) -> None:
        super()._map(memory)
        assert self.chain is not None
        updates = self.chain.updates
        updates.marks = SomeMarks(**msgspec.structs.asdict(updates.marks))

    def _missing(self, at: OrderAtWork, stage: OrderStage) -> Sequence[OpenPart] | Sequence[int]:
        missing = super()._missing(at, stage)
        return () if self.chain is not None and self.chain.updates.marks.least() > at.order.step else missing


class Headlong(StepChain):
    """Does not wait until the server has read the entries that it writes over."""

    def is_ahead(self, order: Order) -> bool:
        return False


class OddPart(SimulatedMember):
    """A process, of whose parts one is changed."""

    odd: type[OrderSums | StepChain]

    def _map(self, memory: int) -> None:
        super()._map(memory)
        for part in (self.sums, self.chain):
            if part is not None and issubclass(self.odd, type(part)):
                part.__class__ = self.odd


def with_part(kind: type[OrderSums | StepChain]) -> Parts:
    """Return parts whose processes have that one."""
    return Parts(member=type("Odd", (OddPart,), {"odd": kind}))


#: By what is wrong.
OF_TEAMS = {
    "a slice is written without its lock": Planted(making(Lockless), OTHER_LOSSES, first=291),
    "a slice is made again": Planted(making(Remaking), OTHER_WEIGHTS, first=159),
    "sums are shown before they are written": Planted(Parts(member=Boastful), OTHER_WEIGHTS, first=30),
    "sums are taken that are not complete": Planted(remembering(Greedy), OTHER_LOSSES, first=29),
    "a part is counted twice": Planted(with_part(Doubling), OTHER_WEIGHTS, first=3),
    "sums are overwritten too early": Planted(Parts(member=Impatient), OTHER_WEIGHTS, first=11),
    "entries are overwritten that were not read": Planted(
        with_part(Headlong), "AssertionError: the entry of step ", first=63
    ),
}

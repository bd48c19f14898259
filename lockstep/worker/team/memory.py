"""The memory of a team as one of its processes sees it: its own vectors, those of the others, and everybody's marks."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.errors import SharingError
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.protocol.team_memory import (
    BEGAN_S,
    COUNT,
    HI,
    IGNORED,
    LO,
    LOSS_SUM,
    MARKS,
    METRICS,
    ORDER,
    OWN_PARTS,
    ROWS,
    WEIGHT,
    WORKS,
    Published,
    TeamMarks,
    TeamShape,
    file_of,
    keep_order,
    process_file,
    process_shape,
    weight_in_memory,
    weight_of,
)
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.common.transport.shared_memory.segment import PAGE_BYTES, Segment, Shape, reserve
from lockstep.worker.team.division import OrderPlan, TeamPart
from lockstep.worker.team.progress import BegunCopy, ComputeNode, MakeSlice, OpenPart, Order, OrderStage, Steps

#: The vector into which a process adds up slices: the one behind those of its rows.
RESULT = ROWS


class Copy(msgspec.Struct, frozen=True):
    """Sums over a node that some process has."""

    node: Node
    process: int
    row: int


class Copies:
    """Sums from which those over a node are put together, in the order of their micro-batches."""

    def __init__(self, copies: Sequence[Copy]) -> None:
        self.copies = tuple(copies)
        self.nodes = tuple(copy.node for copy in copies)
        #: Their places in arrays of shape (processes, ROWS, ...).
        self.places = np.array([copy.process for copy in copies]), np.array([copy.row for copy in copies])
        #: The places of their micro-batches in arrays of shape (processes, micro-batches).
        lengths = [len(node) for node in self.nodes]
        self.micro_batches = np.repeat(self.places[0], lengths), np.arange(self.nodes[0].lo, self.nodes[-1].hi)
        #: Rows of (lo, hi, process), as in an entry.
        self.parts = np.array([(copy.node.lo, copy.node.hi, copy.process) for copy in copies], np.int32)


@dataclass
class OwnVectors:
    """The vectors of one process, in a file with holes: memory is reserved for each before it is first written."""

    vectors: tuple[Vector, ...]
    shape: Shape
    _descriptor: int
    _reserved: set[int] = field(default_factory=set)

    def reserve(self, index: int) -> None:
        """Make sure that there is memory for a vector; `SharingError` if there is not."""
        if index in self._reserved:
            return
        stride = self.shape.stride
        try:
            reserve(self._descriptor, stride, PAGE_BYTES + index * stride)
        except OSError as error:
            raise SharingError(f"no room for {stride / 2**20:.1f} MiB of sums: {error.strerror}") from None
        self._reserved.add(index)

    def close(self) -> None:
        """Close the file; the mapped vectors stay mapped."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass
class TeamMemory:
    """A team's folder, and the parts of it that one process has mapped."""

    path: Path
    shape: TeamShape
    process: int
    marks: TeamMarks
    own: OwnVectors
    #: The plan that was read last, and its bytes.
    _plan: tuple[bytes, OrderPlan] = b"", OrderPlan((), ())
    #: The plan that was written last, and how.
    _written: tuple[OrderPlan | None, NDArray[np.void]] = None, np.zeros((), np.void)
    #: The plan of which it was asked last where its sums will be, and that.
    _planned: tuple[OrderPlan | None, Copies] = None, Copies([Copy(Node(0, 1), 0, 0)])
    #: Called between writes, or reads, on whose order other processes rely.
    keep_order: Callable[[], None] = keep_order
    #: By process, its vectors.
    _vectors: dict[int, tuple[Vector, ...]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: SharedFolder, shape: TeamShape) -> "TeamMemory":
        """Make the files of a team in its folder, for the leader; `SharingError` if there is no room."""
        folder.make(MARKS, file_of(shape.of_team()))
        for process in range(shape.processes):
            # With holes: how many vectors each needs depends on what it is given.
            folder.make(process_file(process), process_shape(shape.size), os.ftruncate)
        return cls.join(folder, shape, 0)

    @classmethod
    def join(cls, folder: SharedFolder, shape: TeamShape, process: int) -> "TeamMemory":
        """Map what a process needs of its team's folder; `SharingError` if it is gone."""
        marks = TeamMarks.of(folder.attach(MARKS, file_of(shape.of_team()), is_writable=True), shape)
        segment = folder.attach(process_file(process), process_shape(shape.size), is_writable=True)
        try:
            descriptor = os.open(folder.path / process_file(process), os.O_RDWR | os.O_NOFOLLOW)
        except OSError as error:
            raise SharingError(f"{folder.path} has no memory for process {process}: {error.strerror}") from None
        own = OwnVectors(segment.vectors, process_shape(shape.size), descriptor)
        memory = cls(folder.path, shape, process, marks, own)
        memory._vectors[process] = segment.vectors
        return memory

    # What we have

    @property
    def mine(self) -> NDArray[np.void]:
        """The row that this process publishes."""
        return self.marks.processes[self.process]  # type: ignore[no-any-return]  # a row, through which it is written

    @cached_property
    def seen_at(self) -> NDArray[np.float64]:
        """The place at which it is seen when this process last ran, shape (1,)."""
        place: NDArray[np.float64] = self.marks.processes["seen_s"][self.process : self.process + 1]
        return place

    def show(self, name: str, value: int) -> None:
        """Show something of ourselves: a field of `PROCESS`."""
        self.mine[name] = value
        self.keep_order()

    def begin_row(self, part: ComputeNode, order: Order, began_s: float) -> None:
        """Show that we compute the sums over a node from now on; `SharingError` if there is no memory for them."""
        marks, (node, row) = self.marks, part
        marks.nodes[self.process, row, ORDER] = 0
        self.keep_order()
        if order.work in OF_A_STEP:
            self.own.reserve(row)
        marks.figures[self.process, row, BEGAN_S] = began_s
        marks.nodes[self.process, row, LO : HI + 1] = node.lo, node.hi
        self.keep_order()
        marks.nodes[self.process, row, ORDER] = -order.number

    def show_row(
        self, part: ComputeNode, order: int, tally: Tally, losses: Sequence[float], times: tuple[float, float]
    ) -> None:
        """Show that a vector of ours holds sums, with all that belongs to them.

        `times` are when they were begun and ended, in seconds of this host's clock.
        """
        marks, (node, row), (began_s, ended_s) = self.marks, part, times
        counted = tally.loss_sum, tally.count, ended_s - began_s, began_s, ended_s, tally.ignored
        marks.figures[self.process, row, :METRICS] = *counted, weight_in_memory(tally)
        marks.figures[self.process, row, METRICS:] = tally.metrics or 0.0
        marks.nodes[self.process, row, LO : HI + 1] = node.lo, node.hi
        if losses:
            self.marks.losses[self.process, node.lo : node.hi] = losses
        self.keep_order()
        marks.nodes[self.process, row, ORDER] = order
        self.keep_order()

    # What all have

    def planned(self, plan: OrderPlan) -> Copies:
        """Return where the sums over the parts of a plan will be: made once for each."""
        if plan is not self._planned[0]:
            rows = dict.fromkeys((part.process for part in plan.parts), 0)
            copies = list[Copy]()
            for node, process in plan.parts:
                copies.append(Copy(node, process, rows[process]))
                rows[process] += 1
            self._planned = plan, Copies(copies)
        return self._planned[1]

    def has_all(self, copies: Copies, order: int) -> bool:
        """Tell whether sums of an order are there, each where it is expected."""
        self.keep_order()
        orders: list[int] = self.marks.nodes[copies.places][:, ORDER].tolist()
        self.keep_order()
        return orders.count(order) == len(orders)

    def sums_of(self, order: Order) -> Copies | None:
        """Return sums from which those over an order can be put together; None if not all are there."""
        planned = self.planned(order.plan)
        if self.has_all(planned, order.number):
            return planned
        # Sums of parts that a process was late with are in other vectors.
        has_more = bool((self.marks.nodes[:, OWN_PARTS:, ORDER] == order.number).any())
        return self._copies(order.number, order.node) if has_more else None

    def _copies(self, order: int, node: Node) -> Copies | None:
        found = self._found(order)
        chosen, at = list[Copy](), node.lo
        while at < node.hi:
            copy = found.get(at)
            if copy is None:
                return None
            chosen.append(copy)
            at = copy.node.hi
        return Copies(chosen)

    def open_parts(self, order: Order) -> list[OpenPart]:
        """Return the parts of an order whose sums are not there, in the order of its plan."""
        made, begun, nodes = dict[int, int](), dict[int, BegunCopy](), self.marks.nodes
        self.keep_order()
        processes, rows = np.nonzero(np.abs(nodes[:, :, ORDER]) == order.number)
        self.keep_order()
        found, began = nodes[processes, rows].tolist(), self.marks.figures[processes, rows, BEGAN_S].tolist()
        seen: list[float] = self.marks.processes["seen_s"].tolist()
        for process, (number, lo, hi, _), began_s in zip(processes.tolist(), found, began, strict=True):
            if number == order.number:
                made[lo] = max(hi, made.get(lo, 0))
            elif lo not in begun or begun[lo].began < began_s:
                begun[lo] = BegunCopy(process, began_s, seen[process])
        # Each copy is of a whole part, or of all.
        parts = () if made.get(order.node.lo) == order.node.hi else order.plan.parts
        return [OpenPart(part, begun.get(part.node.lo)) for part in parts if part.node.lo not in made]

    def is_made(self, node: Node, order: int) -> bool:
        """Tell whether a process has sums over a node, alone or with others that come after it."""
        copy = self._found(order).get(node.lo)
        return copy is not None and copy.node.hi >= node.hi

    def covered(self, order: int, node: Node) -> bytes:
        """Return a byte for each micro-batch of a node, 1 if a process has its sums, alone or with others."""
        covered = bytearray(len(node))
        for copy in self._found(order).values():
            covered[copy.node.lo - node.lo : copy.node.hi - node.lo] = b"\1" * len(copy.node)
        return bytes(covered)

    def _found(self, order: int) -> dict[int, Copy]:
        """Return the largest sums of an order that begin at each micro-batch."""
        self.keep_order()
        nodes = self.marks.nodes
        processes, rows = np.nonzero(nodes[:, :, ORDER] == order)
        self.keep_order()
        found = dict[int, Copy]()
        ends = nodes[processes, rows, LO : HI + 1].tolist()
        for process, row, (lo, hi) in zip(processes.tolist(), rows.tolist(), ends, strict=True):
            if lo not in found or found[lo].node.hi < hi:
                found[lo] = Copy(Node(lo, hi), process, row)
        return found

    def figures(self, copies: Copies) -> NDArray[np.float64]:
        """Return what belongs to some sums, a row each from `LOSS_SUM` on: a copy."""
        figures: NDArray[np.float64] = self.marks.figures[copies.places]
        return figures

    def tallies(self, copies: Copies) -> list[Tally]:
        """Return the tally that belongs to each of some sums."""
        tallies = list[Tally]()
        for row in self.figures(copies).tolist():
            # There is room for sums of metrics even if there are no samples, and so no metrics.
            count, metrics = int(row[COUNT]), tuple(row[METRICS:])
            weight = weight_of(row[WEIGHT])
            tallies.append(Tally(row[LOSS_SUM], count, int(row[IGNORED]), weight, metrics if count else ()))
        return tallies

    def losses(self, copies: Copies) -> NDArray[np.float32]:
        """Return the sum of losses of each micro-batch of some sums, in order: a copy."""
        losses: NDArray[np.float32] = self.marks.losses[copies.micro_batches]
        return losses

    def vector(self, process: int, index: int) -> Vector:
        """Return a vector of a process, mapped if it was not."""
        if process not in self._vectors:
            self._vectors[process] = self._attach(process).vectors
        return self._vectors[process][index]

    def _attach(self, process: int) -> Segment:
        with closing(SharedFolder.join(self.path.parent, self.path.name)) as folder:
            return folder.attach(process_file(process), process_shape(self.shape.size))

    def show_slice(self, done: NDArray[np.int64], slice_: int, order: int) -> None:
        """Show that we have made a slice; `done` is the array of marks of its kind, shape (processes, slices)."""
        self.keep_order()
        done[self.process, slice_] = order
        self.keep_order()

    def missing_slices(self, done: NDArray[np.int64], order: int) -> list[int]:
        """Return the slices that are not made yet."""
        self.keep_order()
        is_made = (done[:, : len(self.shape.slices)] == order).any(axis=0)
        self.keep_order()
        return np.nonzero(~is_made)[0].tolist()

    def done(self, stage: OrderStage) -> NDArray[np.int64]:
        """Return the marks of a stage whose slices each process has in memory of its own."""
        return self.marks.added if stage is OrderStage.ADDED else self.marks.squared

    def has_made(self, order: Order, action: ComputeNode | MakeSlice) -> bool:
        """Tell whether we have made it, or filled its vector, before we came back: others may be reading that."""
        if isinstance(action, ComputeNode):
            return int(self.marks.nodes[self.process, action.row, ORDER]) == order.number
        if action.stage is OrderStage.UPDATE:
            return False
        return int(self.done(action.stage)[self.process, action.slice_]) == order.number

    def maker_of(self, done: NDArray[np.int64], slice_: int, order: int) -> int:
        """Return a process that has made a slice."""
        return int(np.nonzero(done[:, slice_] == order)[0][0])

    def sleepers(self) -> list[int]:
        """Return the processes that sleep until another wakes them."""
        self.keep_order()
        return [process for process, sleeps in enumerate(self.marks.processes["sleeps"].tolist()) if sleeps]

    def has_failed(self, order: Order) -> bool:
        """Tell whether a process cannot carry out an order."""
        return bool((self.marks.processes["failed"] >= order.first_number).any())

    # Orders

    @property
    def _orders(self) -> Published:
        return Published(self.marks.orders, "order", self.keep_order)

    def give(self, order: Order) -> None:
        """Show an order, as the newest; by the leader alone."""
        with self._orders.write(order.number) as cells:
            cells["work"], cells["step"], cells["memory"] = WORKS.index(order.work), order.step, order.memory
            cells["lo"], cells["hi"] = order.node.lo, order.node.hi
            steps = order.steps or Steps(number=0, first=0, last=0, reads=0)
            cells["number"], cells["last"], cells["reads"] = steps.number, steps.last, steps.reads
            cells["plan"] = self.written(order.plan)
        self.marks.marks[0] = order.number
        self.keep_order()

    def read(self, number: int) -> Order | None:
        """Return an order; None if newer ones have taken its place."""
        cells = self._orders.read(number)
        if cells is None:
            return None
        step, lease = int(cells["step"]), int(cells["number"])
        steps = Steps(number=lease, first=step, last=int(cells["last"]), reads=int(cells["reads"]))
        return Order(
            number=number,
            work=WORKS[int(cells["work"])],
            step=step,
            node=Node(int(cells["lo"]), int(cells["hi"])),
            plan=read_plan(cells["plan"]),
            memory=int(cells["memory"]),
            steps=steps if lease else None,
        )

    def plan_in(self, cells: NDArray[np.void]) -> OrderPlan:
        """Return the plan in a field of `TeamShape.plan`: most often that of the order before."""
        words = cells.tobytes()
        if words != self._plan[0]:
            self._plan = words, read_plan(np.frombuffer(words, cells.dtype)[0])
        return self._plan[1]

    def written(self, plan: OrderPlan) -> NDArray[np.void]:
        """Return a plan as a field of `TeamShape.plan`: most often that of the order before."""
        if plan is not self._written[0]:
            self._written = plan, np.zeros((), self.shape.plan)
            write_plan(self._written[1], plan)
        return self._written[1]

    def close(self) -> None:
        """Close the file of this process's vectors; all that is mapped stays mapped."""
        self.own.close()


def write_plan(cells: NDArray[np.void], plan: OrderPlan) -> None:
    """Write a plan into a field of `TeamShape.plan`."""
    count = len(plan.parts)
    cells["given"] = count
    cells["parts"][:count] = [(part.node.lo, part.node.hi, part.process) for part in plan.parts]
    cells["active"] = len(plan.owners)
    cells["owners"][: len(plan.owners)] = plan.owners


def read_plan(cells: NDArray[np.void]) -> OrderPlan:
    """Return the plan in a field of `TeamShape.plan`."""
    rows: list[list[int]] = cells["parts"][: int(cells["given"])].tolist()
    owners: list[int] = cells["owners"][: int(cells["active"])].tolist()
    return OrderPlan(tuple(TeamPart(Node(lo, hi), process) for lo, hi, process in rows), tuple(owners))

"""A team in virtual time: where its processes meet, and how what each writes to memory is seen by the others.

Values that a process is making are NaN until they are made. Each mark and each lock takes a tick, at which the process
may die or pause while the others see just what it has written until then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Vector
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.transport.shared_memory.file_lock import FileLock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.launch.supervision.restarts import ProcessTable
from lockstep.launch.team import MOST_RESTARTS
from lockstep.worker.team.meeting import Session
from lockstep.worker.team.member import OrderAtWork, TeamMember
from lockstep.worker.team.memory import RESULT
from lockstep.worker.team.progress import ComputeNode, MakeSlice, Order, OrderStage
from lockstep.worker.team.updates import UpdateMaker
from tests.simulation.simulator.world import Process

#: Seconds that a fast process takes for a micro-batch, and for a slice.
MICRO_BATCH_S, SLICE_S = 0.004, 0.001


@dataclass(eq=False)
class Hall:
    """The meeting place of one team, which outlives its processes; and the current process of each number."""

    processes: int
    said: Session | None = None
    #: Whether a process has rung for one that has not looked since.
    has_rung: list[bool] = field(init=False)
    #: By number, the processes that have entered and not left.
    present: dict[int, Process] = field(default_factory=dict)
    #: By number, the processes that run, or the last ones; and their restarts.
    current: dict[int, Process] = field(default_factory=dict)
    places: ProcessTable = field(default_factory=lambda: ProcessTable(MOST_RESTARTS))
    #: Whether the leader has ended by itself.
    is_over: bool = False

    def __post_init__(self) -> None:
        self.has_rung = [False] * self.processes

    def end(self) -> None:
        """Kill all of its processes."""
        self.is_over = True
        for process in self.current.values():
            process.end(is_killed=True)

    def enter(self, number: int, process: Process) -> "SimulatedMeeting":
        """Let a process in, in the place of one that is gone."""
        self.present[number] = process
        return SimulatedMeeting(self, number, self.processes, process)


@dataclass
class SimulatedMeeting:
    """The hall as one process uses it: a `Meeting`."""

    hall: Hall
    process: int
    processes: int
    host: Process

    def ring(self, process: int) -> None:
        self.host.tick()
        self.hall.has_rung[process] = True
        other = self.hall.present.get(process)
        if other is not None:
            other.ring(self.host.time())

    def wait(self, timeout_s: float) -> bool:
        self.host.tick()
        is_rung = self.hall.has_rung[self.process]
        if not is_rung:
            self.host.sleep(timeout_s)
        self.hall.has_rung[self.process] = False
        return is_rung

    def publish(self, session: Session) -> None:
        self.host.tick()
        self.hall.said = session

    def session(self) -> Session | None:
        self.host.tick()
        return self.hall.said

    def close(self) -> None:
        if self.hall.present.get(self.process) is self.host:
            del self.hall.present[self.process]


@dataclass
class TickingLock(FileLock):
    """A lock whose taking and releasing take a tick each, before and after."""

    tick: Callable[[], None]

    @classmethod
    def of(cls, lock: FileLock, tick: Callable[[], None]) -> "TickingLock":
        """Return such a lock in the place of another."""
        return cls(lock._descriptor, tick)

    def acquire(self) -> bool:
        self.tick()
        is_ours = super().acquire()
        self.tick()
        return is_ours

    def release(self) -> None:
        self.tick()
        super().release()
        self.tick()


@dataclass
class TickingFolder(SharedFolder):
    """A folder whose locks take ticks."""

    tick: Callable[[], None]

    @classmethod
    def of(cls, folder: SharedFolder, tick: Callable[[], None]) -> "TickingFolder":
        """Return such a folder in the place of another."""
        return cls(folder.path, folder.nonce, folder._descriptor, tick)

    def make_lock(self, name: str) -> FileLock:
        return TickingLock.of(super().make_lock(name), self.tick)


@dataclass
class SimulatedMember(TeamMember):
    """A process of a team whose clock is a process of the world."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.memory.keep_order, self.is_stepwise = self.host.tick, True

    @property
    def host(self) -> Process:
        """The process of the world."""
        assert isinstance(self.clock, Process)
        return self.clock

    def _map(self, memory: int) -> None:
        super()._map(memory)
        if self.chain is not None:
            updates, tick = self.chain.updates, self.host.tick
            updates.marks = replace(updates.marks, keep_order=tick)
            updates.locks = [TickingLock.of(lock, tick) for lock in updates.locks]

    def _begin_action(self, at: OrderAtWork, action: ComputeNode | MakeSlice) -> None:
        super()._begin_action(at, action)
        if at.begun is not None:
            # Between what it has found and what it writes.
            self.host.tick()
            self._spoil(at, at.begun)

    def _spoil(self, at: OrderAtWork, begun: ComputeNode | MakeSlice) -> None:
        """Write NaN into the values that are begun, until they are made."""
        if isinstance(begun, ComputeNode):
            if at.order.work in OF_A_STEP:
                self.memory.vector(self.memory.process, begun.row).fill(np.nan)
        elif begun.stage is OrderStage.UPDATE:
            assert at.chain is not None
            spoil_update(at.chain.updates, begun.slice_, at.order)
        else:
            whole, process = self.memory.shape.slices[begun.slice_], self.memory.process
            if begun.stage is OrderStage.ADDED:
                self.memory.own.reserve(RESULT)
                whole.of(self.memory.vector(process, RESULT)).fill(np.nan)
            else:
                self.memory.marks.squares[process, whole.start // BLOCK : -(-whole.stop // BLOCK)] = np.nan

    def _compute(self, order: Order, part: ComputeNode) -> None:
        self.host.ticks.work(len(part.node) * MICRO_BATCH_S)
        # Its kernels do not show that it runs: they would show another clock.
        self.sums.add_node(order, part)

    def _make(self, at: OrderAtWork, making: MakeSlice) -> bool:
        self.host.ticks.work(SLICE_S)
        self.host.tick()
        self.host.tick()
        return super()._make(at, making)


def spoil_update(updates: UpdateMaker, slice_: int, order: Order) -> None:
    """Write NaN into all values that the update of a slice writes."""
    assert order.steps is not None
    vectors, whole = updates.vectors, updates.slices[slice_]
    writes = (order.step + 1) % 2
    sets = 1 - (order.steps.reads + order.step - order.steps.first) % 2
    written: list[Vector] = [vectors.weights[writes], vectors.served[writes]]
    for vector in written:
        whole.of(vector).fill(np.nan)
    trained = whole.until(updates.policy.parameter_size)
    for slot in vectors.slots[sets].values():
        trained.of(slot).fill(np.nan)

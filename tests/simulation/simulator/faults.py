"""Injects the faults of a scenario into a simulated run."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lockstep.common.transport.in_memory import MemoryClient
from lockstep.launch.supervision.restarts import Role
from tests.simulation.simulator.launching import Launcher
from tests.simulation.simulator.scenario import FaultKind, ScheduledFault
from tests.simulation.simulator.world import Process

#: Seconds until an idle process is killed that was to be in an action.
IDLE_S = 1.0

#: How much slower a slow process gets per second of its fault, and for how many seconds.
SLOWNESS, SLOW_S = 20.0, 10.0


@dataclass
class Faults:
    """The faults of a scenario: those to come, and those that occurred."""

    launcher: Launcher
    #: The faults to come, the next one last.
    pending: list[ScheduledFault]
    #: When the last fault ends.
    disturbed_until: float = 0.0
    #: Kind of fault -> how often it occurred.
    injected: Counter[str] = field(default_factory=Counter)

    def inject_due(self) -> None:
        """Inject the faults whose event has come."""
        while self.pending and self.pending[-1].event <= self.launcher.world.events:
            fault = self.pending.pop()
            self.injected[fault.kind.label] += 1
            self._inject(fault)

    def _disturb(self, seconds: float, then: Callable[[], None]) -> None:
        """Record a fault that lasts for a number of seconds, and schedule what ends it."""
        world = self.launcher.world
        self.disturbed_until = max(self.disturbed_until, world.now + seconds)
        world.after(seconds, then)

    def _inject(self, fault: ScheduledFault) -> None:
        launcher, world = self.launcher, self.launcher.world
        world.record(
            "fault",
            f"{fault.kind.label} {fault.target}: {fault.seconds:.3f} s, {fault.ways}, kill after {fault.kill_after}",
        )
        self.disturbed_until = max(self.disturbed_until, world.now)
        match fault.kind:
            case FaultKind.FILL_DISK:
                launcher.run.disk.is_full = True
                self._disturb(fault.seconds, partial(setattr, launcher.run.disk, "is_full", False))
            case FaultKind.ADD_WORKER:
                launcher.start_team()
            case FaultKind.BREAK_WIRE | FaultKind.CUT_WIRE:
                self._harm_wire(fault, [wire for wire in launcher.run.network.clients if wire.peer is not None])
            case FaultKind.PARTITION:
                self._cut_off(fault, _chosen(world.processes, fault.target))
            case _:
                action, _, role = fault.kind.label.partition("-")
                process = self._process_at(role, fault.target)
                if process is not None:
                    self._harm_process(action, fault, process)

    def _process_at(self, role: str, target: int) -> Process | None:
        """Return a process of a role by its number, None if no process of the role runs."""
        launcher = self.launcher
        if role == "worker":
            return _chosen(launcher.workers(), target)
        return _chosen(launcher.at(Role(role)), target)

    def _harm_process(self, action: str, fault: ScheduledFault, process: Process) -> None:
        match action:
            case "kill":
                process.ticks.kill_after = fault.kill_after
                self._disturb(IDLE_S, partial(process.end, is_killed=True))
            case "stop" if fault.kill_after % 2:
                process.stop()
                self._disturb(fault.seconds, process.resume)
            case "stop":
                # In the middle of an action.
                process.ticks.pause_after, process.ticks.pause_s = fault.kill_after, fault.seconds
                self._disturb(fault.seconds + IDLE_S, lambda: None)
            case "interrupt":
                process.interrupt()
            case "slow":
                process.ticks.slowness = 1.0 + SLOWNESS * fault.seconds
                self._disturb(SLOW_S, partial(setattr, process.ticks, "slowness", 1.0))
            case "jump":
                process.jump_clock(fault.seconds)
            case _:
                raise AssertionError(f"{fault.kind} has no target")

    def _harm_wire(self, fault: ScheduledFault, wires: list[MemoryClient]) -> None:
        if not wires:
            return
        wire = wires[fault.target % len(wires)]
        if fault.kind is FaultKind.BREAK_WIRE:
            wire.disconnect()
            return
        wire.silence(up=fault.ways != "down", down=fault.ways != "up")
        self._disturb(fault.seconds, wire.heal)

    def _cut_off(self, fault: ScheduledFault, cut: Process | None) -> None:
        """Cut one process off from all others; its wires heal one after the other, in any order."""
        for number, wire in enumerate([] if cut is None else self.launcher.run.network.connections_of(cut)):
            wire.silence(up=fault.ways != "down", down=fault.ways != "up")
            self._disturb(fault.seconds * (1 + (fault.target + 7 * number) % 5) / 5, wire.heal)


def _chosen(processes: list[Process], target: int) -> Process | None:
    """Return a process by its number, modulo their number; None if the list is empty."""
    return processes[target % len(processes)] if processes else None

"""Inject the faults of a scenario into a simulated run."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from lockstep.checking.simulation.disk import Disk
from lockstep.checking.simulation.scenario import FaultKind, ScheduledFault
from lockstep.checking.simulation.world import Process, World
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork

#: Seconds until an idle process dies that should be killed in the middle of an action.
IDLE_S = 1.0

#: How much slower a slow worker gets per second of its fault, and for how many seconds.
SLOWNESS, SLOW_S = 20.0, 10.0


class FaultTarget(Protocol):
    """A run into which faults are injected."""

    world: World
    network: MemoryNetwork
    disk: Disk

    def process_at(self, role: str, target: int) -> Process | None: ...
    def start_worker(self) -> None: ...
    def disturb(self, seconds: float) -> None: ...


def inject(run: FaultTarget, fault: ScheduledFault) -> None:
    """Inject one fault."""
    run.world.record(
        "fault",
        f"{fault.kind.label} {fault.target}: {fault.seconds:.3f} s, {fault.ways}, kill after {fault.kill_after}",
    )
    run.disturb(0.0)
    action, _, role = fault.kind.label.partition("-")
    match fault.kind:
        case FaultKind.FILL_DISK:
            run.disk.is_full = True
            _later(run, fault.seconds, partial(setattr, run.disk, "is_full", False))
        case FaultKind.ADD_WORKER:
            run.start_worker()
        case FaultKind.BREAK_WIRE | FaultKind.CUT_WIRE:
            wires = [wire for wire in run.network.clients if wire.peer is not None]
            if wires:
                _harm_wire(run, fault, wires[fault.target % len(wires)])
        case FaultKind.PARTITION:
            _cut_off(run, fault)
        case _:
            process = run.process_at(role, fault.target)
            if process is not None and not process.is_dead:
                _harm_process(run, action, fault, process)


def _later(run: FaultTarget, seconds: float, then: Callable[[], None]) -> None:
    run.disturb(seconds)
    run.world.after(seconds, then)


def _harm_process(run: FaultTarget, action: str, fault: ScheduledFault, process: Process) -> None:
    match action:
        case "kill":
            process.kill_after = fault.kill_after
            _later(run, IDLE_S, lambda: process.end(is_killed=True))
        case "stop":
            process.stop()
            _later(run, fault.seconds, process.resume)
        case "interrupt":
            process.interrupt()
        case "slow":
            process.slowness = 1.0 + SLOWNESS * fault.seconds
            _later(run, SLOW_S, partial(setattr, process, "slowness", 1.0))
        case "jump":
            process.jump_clock(fault.seconds)
        case _:
            raise AssertionError(f"{fault.kind} has no target")


def _harm_wire(run: FaultTarget, fault: ScheduledFault, wire: MemoryClient) -> None:
    if fault.kind is FaultKind.BREAK_WIRE:
        wire.disconnect()
        return
    wire.silence(up=fault.ways != "down", down=fault.ways != "up")
    _later(run, fault.seconds, wire.heal)


def _cut_off(run: FaultTarget, fault: ScheduledFault) -> None:
    """Cut one process off from all others; its wires heal one after the other, in any order."""
    processes = run.world.processes
    if processes:
        cut = processes[fault.target % len(processes)]
        for number, wire in enumerate(run.network.connections_of(cut)):
            wire.silence(up=fault.ways != "down", down=fault.ways != "up")
            _later(run, fault.seconds * (1 + (fault.target + 7 * number) % 5) / 5, wire.heal)

"""Lets happen to a simulated run what its story tells."""

from collections.abc import Callable
from typing import Protocol

from common.transport.memory import MemoryClient, MemoryNetwork
from lockstep.simulation.disk import Disk
from lockstep.simulation.scenario import Fault, ScheduledFault
from lockstep.simulation.world import Process, World

#: Seconds until a process dies that is to be killed in the middle of what it does, and has nothing to do.
IDLE_S = 1.0

#: How many times as long a slow worker takes for each second of its story, and for how many seconds.
SLOWNESS, SLOW_S = 20.0, 10.0


class Scene(Protocol):
    """What things happen to."""

    world: World
    network: MemoryNetwork
    disk: Disk

    def one_of(self, whom: str, target: int) -> Process | None: ...
    def start_worker(self) -> None: ...
    def trouble(self, seconds: float) -> None: ...


def happen(scene: Scene, it: ScheduledFault) -> None:
    """Let one thing happen."""
    scene.world.record("story", f"{it.fault.value} {it.target}: {it.seconds:.3f} s, {it.ways}, fuse {it.fuse}")
    scene.trouble(0.0)
    what, _, whom = it.fault.value.partition("-")
    match it.fault:
        case Fault.FILL_DISK:
            scene.disk.is_full = True
            _later(scene, it.seconds, scene.disk.empty)
        case Fault.ADD_WORKER:
            scene.start_worker()
        case Fault.BREAK_WIRE | Fault.CUT_WIRE:
            wires = [wire for wire in scene.network.clients if wire.peer is not None]
            if wires:
                _harm_wire(scene, it, wires[it.target % len(wires)])
        case Fault.PARTITION:
            _cut_off(scene, it)
        case _:
            process = scene.one_of(whom, it.target)
            if process is not None and not process.is_dead:
                _harm(scene, what, it, process)


def _later(scene: Scene, seconds: float, then: Callable[[], None]) -> None:
    scene.trouble(seconds)
    scene.world.after(seconds, then)


def _harm(scene: Scene, what: str, it: ScheduledFault, process: Process) -> None:
    match what:
        case "kill":
            process.fuse = it.fuse
            _later(scene, IDLE_S, lambda: process.end(is_killed=True))
        case "stop":
            process.stop()
            _later(scene, it.seconds, process.go_on)
        case "interrupt":
            process.interrupt()
        case "slow":
            process.slowness = 1.0 + SLOWNESS * it.seconds
            _later(scene, SLOW_S, process.hurry)
        case "jump":
            process.jump(it.seconds)
        case _:
            raise AssertionError(f"{it.fault} happens to nobody")


def _harm_wire(scene: Scene, it: ScheduledFault, wire: MemoryClient) -> None:
    if it.fault is Fault.BREAK_WIRE:
        wire.disconnect()
        return
    wire.silence(up=it.ways != "down", down=it.ways != "up")
    _later(scene, it.seconds, wire.heal)


def _cut_off(scene: Scene, it: ScheduledFault) -> None:
    """Cut one process off from all others; its wires heal one after the other, in any order."""
    everybody = scene.world.processes
    if everybody:
        cut = everybody[it.target % len(everybody)]
        for number, wire in enumerate(scene.network.connections_of(cut)):
            wire.silence(up=it.ways != "down", down=it.ways != "up")
            _later(scene, it.seconds * (1 + (it.target + 7 * number) % 5) / 5, wire.heal)

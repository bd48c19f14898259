"""Injects the faults of a scenario into a simulated run, and does what a person does for a run that nothing leads."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Message
from lockstep.common.protocol.standby_messages import Drain, Promote
from lockstep.common.transport.in_memory import ADDRESS, MemoryClient
from lockstep.launch.supervision.restarts import SERVER, ProcessPlace, Role
from lockstep.runs.run_dir import leads
from tests.simulation.simulator.launching import Launcher
from tests.simulation.simulator.processes import server_of
from tests.simulation.simulator.scenario import FaultKind, ScheduledFault
from tests.simulation.simulator.world import Process

#: Seconds after which a person lets a standby lead a run that nothing leads, and until the connection is closed.
LEADERLESS_S, COMMAND_S = 10.0, 3.0

#: How many times the silence that counts a standby has to take over before it is cut off as well; and how many times
#: that its predecessor is cut off.
SUCCESSOR_S, PREDECESSOR_S = 4.0, 4.0

#: Seconds until an idle process is killed that was to be in an action; and until a server is lost after its folder.
IDLE_S, DELETED_S = 1.0, 2.0

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
            case FaultKind.CUT_OFF_SERVER:
                self._cut_off(fault, self._process_at("server", fault.target))
            case FaultKind.CUT_OFF_IN_TURN:
                self._cut_off_in_turn(fault)
            case FaultKind.LOSE_SERVER:
                self._lose_server(fault.kill_after)
            case FaultKind.DELETE_FOLDER:
                self._delete_folder(fault.kill_after)
            case FaultKind.PROMOTE:
                self._promote(fault.target)
            case FaultKind.DRAIN:
                self._command(ADDRESS, Drain())
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
        leading = launcher.leading() if role == "server" and launcher.run.standbys else []
        return _chosen(leading or launcher.at(Role(role)), target)

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

    def _cut_off_in_turn(self, fault: ScheduledFault) -> None:
        """Cut off the leader of the run, and later its successor: workers return to the first one in its old term.

        New connections are not cut off, so that only the servers cannot reach one another.
        """
        first, pause_s = self._last_leader(), SUCCESSOR_S * self.launcher.scenario.takeover_s
        if first is None:
            return
        self._cut_off(replace(fault, seconds=fault.seconds + PREDECESSOR_S * pause_s), first)

        def cut_off_successor() -> None:
            successor = self._last_leader()
            if successor is not first:
                self._cut_off(replace(fault, seconds=fault.seconds + pause_s), successor)

        self._disturb(pause_s, cut_off_successor)

    def _last_leader(self) -> Process | None:
        """Return the process that leads the run in the highest term, None if none leads it."""
        leading = [(one, server) for one in self.launcher.leading() if (server := server_of(one)) is not None]
        terms = [(server.server.coordinator.info.term, one) for one, server in leading]
        return max(terms, key=lambda led: (led[0].number, led[0].server, led[0].resumed))[1] if terms else None

    # Servers and standbys

    def promote_if_nothing_leads(self) -> None:
        """Let a standby lead the run if no process leads it, or resume the rest, as a person does in the end."""
        launcher = self.launcher
        if not launcher.leading():
            for number in range(len(launcher.run.standbys)):
                self._promote(number)
            self._resume_the_rest()
        if not launcher.watch.is_over:
            launcher.world.after(LEADERLESS_S, self.promote_if_nothing_leads)

    def _resume_the_rest(self) -> None:
        """Resume the run in the folder of a standby that has led it, and has ended because another server led it.

        A person does that if the other server was lost with its disk as well, and no standby runs.
        """
        launcher = self.launcher
        if not launcher.is_lost or launcher.at(Role.STANDBY):
            return
        for number, name in enumerate(launcher.run.standbys):
            if leads(launcher.run.folder.parent / name):
                launcher.start(ProcessPlace(Role.STANDBY, number))
                return

    def _promote(self, target: int) -> None:
        """Ask a standby to lead the run; one that cannot refuses it."""
        addresses = list(self.launcher.run.standbys.values())
        self._command(addresses[target % len(addresses)], Promote())

    def _command(self, address: str, message: Message) -> None:
        client = self.launcher.run.network.client(address)
        client.send(encode(message))
        self.launcher.world.after(COMMAND_S, client.close)

    def _lose_server(self, kill_after: int) -> None:
        """Lose the host of the server with its disk, if a standby has all that it takes to lead the run."""
        for server in self.launcher.at(Role.SERVER):
            if self.launcher.could_lead():
                self.launcher.is_lost = True
                server.ticks.kill_after = kill_after
                self._disturb(IDLE_S, lambda: self.launcher.end(SERVER))

    def _delete_folder(self, kill_after: int) -> None:
        """Delete the folder of a run that goes on, and lose its server later, if a standby could lead."""
        launcher = self.launcher
        servers = [server_of(one) for one in launcher.at(Role.SERVER)]
        is_leading = any(server is not None and server.server.ended is None for server in servers)
        if is_leading and not launcher.is_lost and launcher.could_lead():
            shutil.rmtree(launcher.run.folder)
            self._disturb(DELETED_S, partial(self._lose_server, kill_after))


def _chosen(processes: list[Process], target: int) -> Process | None:
    """Return a process by its number, modulo their number; None if the list is empty."""
    return processes[target % len(processes)] if processes else None

"""Starts the processes of a simulated run; supervisors decide when each is restarted, as they do for real processes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from msgspec.structs import replace

from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.statemachine.client import Exit
from lockstep.launch.supervision.restarts import (
    SERVER,
    ProcessEnd,
    ProcessPlace,
    Role,
)
from lockstep.launch.supervision.supervisor import (
    Outlook,
    RunEnd,
    RunSupervisor,
)
from lockstep.launch.team import LEADER
from lockstep.ps.records.run_folder import RESULT
from tests.simulation.simulator.processes import (
    HelperProcess,
    Say,
    ServerProcess,
    ShardProcess,
    SimulatedRun,
    WorkerProcess,
    server_of,
)
from tests.simulation.simulator.scenario import Scenario
from tests.simulation.simulator.strand import Strand
from tests.simulation.simulator.team import Hall
from tests.simulation.simulator.watch import RunWatch
from tests.simulation.simulator.world import Process, SimulatedShell, World

#: Seconds by which the clock of each process is ahead of that of the one before: clocks do not begin at zero, and those
#: of two hosts have nothing in common.
CLOCK_S = 7_919.0

#: Least and most seconds until the end of a process is seen, or a person resumes a run that has ended.
SEEN_S = (0.02, 0.3)

#: Deaths in a row that a run puts up with: more than its faults cause, so that none of these ends it.
MAX_RESTARTS = 30

#: Seconds within which the processes of a team end after their leader; then they are killed.
TEAM_SETTLE_S = 1.0

#: Ticks of an action after which a process pauses in the middle of it, at most; for how many seconds at least, and for
#: how many times as long at most.
LATEST_PAUSE, PAUSE_S, LONGEST_PAUSE = 60, 1e-4, 10_000.0

KILLED = ProcessEnd(code=-9)


def end_of(ended: Exit | None) -> ProcessEnd:
    """Return how a supervisor sees the end of a process, which was killed if it has no exit."""
    return KILLED if ended is None else ProcessEnd(code=ended.code, has_reported=bool(ended.reason))


@dataclass
class Launcher:
    """The processes of a run, as a supervisor handles them: starts them, and reports how they end."""

    scenario: Scenario
    run: SimulatedRun
    world: World
    watch: RunWatch
    rng: np.random.Generator
    #: The current servers, by their places, or the last ones; and teams, also those that were started elsewhere.
    processes: dict[ProcessPlace, Process] = field(default_factory=dict)
    teams: dict[ProcessPlace, Hall] = field(default_factory=dict)
    supervisor: RunSupervisor = field(init=False)
    #: Whether the supervisor has ended the run, and whether it has just started a server.
    _is_over: bool = False
    _is_new_server: bool = False
    #: The ends that the supervisor has not seen, and the last end of each place since it has begun.
    _unseen: dict[ProcessPlace, ProcessEnd] = field(default_factory=dict)
    _ends: dict[ProcessPlace, ProcessEnd] = field(default_factory=dict)
    #: The most steps that the run has made.
    _steps: int = 0
    #: By what they are, the processes that were started.
    _starts: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Start a run, or resume one of which no process runs any more."""
        workers, shards = self.scenario.workers, self.scenario.servers - 1
        # A team is one process of the run, which starts the others.
        options = RunOptions(workers=workers, servers=1 + shards, max_restarts=MAX_RESTARTS)
        self.supervisor = self.run.parts.supervisor(options, self, workers, has_external_workers=True)
        self._is_over = False
        self._tell(self.supervisor.begin)

    def start_team(self) -> None:
        """Start a team that no supervisor of the run restarts."""
        added = sum(place.number >= self.scenario.workers for place in self.teams)
        self._start_team(ProcessPlace(Role.WORKER, self.scenario.workers + added))

    def at(self, *roles: Role) -> list[Process]:
        """Return the servers of these roles that run."""
        return [one for place, one in self.processes.items() if place.role in roles and not one.is_dead]

    def workers(self) -> list[Process]:
        """Return the processes of all teams that run."""
        return [process for team in self.teams.values() for process in team.current.values() if not process.is_dead]

    def end(self, place: ProcessPlace) -> None:
        """Kill the process of a place, or all of a team."""
        if place in self.teams:
            self.teams[place].end()
        elif place in self.processes:
            self.processes[place].end(is_killed=True)

    # The supervisor acts through these

    def start(self, place: ProcessPlace) -> None:
        """Start the process of a place, as a supervisor or a person wants it."""
        self.end(place)
        self._unseen.pop(place, None)
        if not self.watch.is_over:
            self._start_place(place)

    def stop(self, place: ProcessPlace) -> None:
        self.end(place)

    def report(self, place: ProcessPlace, outlook: Outlook, delay_s: float) -> None:
        """Do nothing: the watch has seen the death."""

    def has_result(self) -> bool:
        return (self.run.folder / RESULT).exists()

    # The supervisor sees what happens

    def _status(self) -> Status | None:
        server = next((server_of(one) for one in self.at(Role.SERVER) if not one.is_stopped), None)
        if server is None:
            return None
        coordinator = server.server.coordinator
        return Status(
            run=self.run.folder.name,
            phase=coordinator.phase.value,
            step=self._steps,
            steps=self._steps,
            min_workers=coordinator.info.options.least_workers(),
        )

    def _turn(self, supervisor: RunSupervisor) -> None:
        """Let a supervisor look at all, unless another one has taken its place."""
        if supervisor is self.supervisor and not self.watch.is_over:
            ends, self._unseen = self._unseen, {}
            self._ends.update(ends)
            supervisor.on_status(self._status())
            self._tell(lambda now: supervisor.on_ends(ends, now))
            self._tell(supervisor.on_time)

    def _tell(self, tell: Callable[[float], None]) -> None:
        """Let the supervisor react to something, and to a server that it has started; see to what follows."""
        supervisor, before = self.supervisor, self.supervisor.deadline()
        tell(self.world.now)
        is_new, self._is_new_server = self._is_new_server, False
        if is_new and self.processes[SERVER].is_dead:
            self._ends[SERVER] = self._unseen.pop(SERVER)
            supervisor.on_ends({SERVER: self._ends[SERVER]}, self.world.now)
        elif is_new:
            supervisor.on_listening(self.world.now, is_elsewhere=not self.teams)
        if supervisor.end is not None and not self._is_over:
            self._is_over = True
            self._give_up(supervisor.end, supervisor.cause)
        due = supervisor.deadline()
        if due is not None and due != before:
            self.world.at(due, partial(self._turn, supervisor))

    def _give_up(self, end: RunEnd, cause: ProcessPlace) -> None:
        """End the run, or let a person resume it. Only a process that has ended with an error ends it."""
        if end is RunEnd.RESULT:
            # The server may have been killed in the moment in which its result was written.
            self.watch.finished = self.watch.finished or [self.run.folder]
            return
        if self._ends[cause].was_killed:
            self.watch.fail(f"the supervisor ends the run, since {cause} was killed: {end.value}")
        self.world.after(self._seen_s(), self._resume)

    def _resume(self) -> None:
        if not self.watch.is_over:
            for place in (*self.processes, *self.teams):
                self.end(place)
            self.teams.clear()
            self._unseen.clear()
            self._ends.clear()
            self.begin()

    def _seen_s(self) -> float:
        low, high = SEEN_S
        return low + (high - low) * float(self.rng.random())

    def _note(self, place: ProcessPlace, end: ProcessEnd) -> None:
        self._unseen[place] = end
        self.world.after(self._seen_s(), partial(self._turn, self.supervisor))

    # Processes

    def _start(
        self, name: str, open_shell: Callable[[Process, Say], SimulatedShell], on_end: Callable[[Process, bool], None]
    ) -> Process:
        kills, slowness = self.scenario.early_kills, self.scenario.slowness
        is_early = name in (Role.SERVER.value, Role.SHARD.value) and self._starts[name] < len(kills)
        process = Process(f"{name}-{self._starts.total()}", self.world, strand=Strand())
        process.ticks.kill_after = (kills[self._starts[name]] if is_early else 0) or None
        self._starts[name] += 1
        process.ahead_s = CLOCK_S * self._starts.total()
        process.on_end = on_end
        if name == "worker":
            process.ticks.slowness = slowness[self._starts.total() % len(slowness)]
        process.needs_strand = name == "worker"
        process.on_act = self._before_action
        self.world.record(process.name, "starts")
        process.start(lambda: open_shell(process, partial(self.watch.report, process)))
        return process

    def _before_action(self, process: Process) -> None:
        """Check a process; now and then, let it pause in the middle of the action that it begins."""
        self.watch.check(process)
        server = server_of(process)
        if server is not None:
            self._steps = max(self._steps, server.server.shard.updates)
        if process.ticks.pause_after is None and self.rng.random() < self.scenario.pauses:
            process.ticks.pause_after = int(self.rng.integers(1, LATEST_PAUSE))
            process.ticks.pause_s = PAUSE_S * float(LONGEST_PAUSE ** (self.rng.random() ** 2))

    def _start_place(self, place: ProcessPlace) -> None:
        if place.role is Role.WORKER:
            self._start_team(place)
        else:
            opening = self._open_server if place == SERVER else self._open_shard
            self.processes[place] = self._start(place.role.value, opening, partial(self._ended, place))
            self._is_new_server = self._is_new_server or place == SERVER

    def _ended(self, place: ProcessPlace, process: Process, is_killed: bool) -> None:  # a callback
        self._note(place, end_of(self.watch.ended(process, is_killed=is_killed)))

    def _start_team(self, place: ProcessPlace) -> None:
        sizes = self.scenario.processes
        team = self.teams[place] = Hall(sizes[place.number % len(sizes)])
        for number in range(team.processes):
            self._start_process(place, team, number)

    def _start_process(self, place: ProcessPlace, team: Hall, number: int) -> None:
        """Start a process of a team, unless the run is over; then a team without a leader ends."""
        if self.watch.is_over and number == LEADER.number:
            team.end()
        elif not (self.watch.is_over or team.is_over):
            team.places.begin(ProcessPlace(Role.WORKER, number), self.world.now)
            ended = partial(self._process_ended, place, team, number)
            team.current[number] = self._start("worker", partial(self._open_process, team, number), ended)

    def _process_ended(  # a callback
        self, place: ProcessPlace, team: Hall, number: int, process: Process, is_killed: bool
    ) -> None:
        """Restart a process of a team that has ended, or end the team if its leader has left."""
        ended = self.watch.ended(process, is_killed=is_killed)
        if team.is_over:
            return
        if number == LEADER.number and ended is not None:
            team.is_over = True
            self.world.after(TEAM_SETTLE_S, team.end)
            # No supervisor of the run restarts a team that was started elsewhere.
            if place.number < self.scenario.workers:
                self._note(place, end_of(ended))
            return
        member = ProcessPlace(Role.WORKER, number)
        team.places.end(member, end_of(ended), self.world.now)
        delay_s = team.places.restart(member, self.world.now)
        if delay_s is not None:
            self.world.after(delay_s, partial(self._start_process, place, team, number))

    def _shares(self) -> bool:
        return bool(self.rng.random() < self.scenario.sharing)

    def _open_server(self, process: Process, say: Say) -> SimulatedShell:
        run = self.run
        if SERVER in self._ends:
            # Not all workers may be back, as `train` has it.
            run = replace(run, options=replace(run.options, min_workers=1))
        return ServerProcess.open(run, process, say, shares=self.scenario.sharing > 0.0)

    def _open_shard(self, process: Process, say: Say) -> SimulatedShell:
        return ShardProcess.open(self.run, process, self._starts.total(), say)

    def _open_process(self, team: Hall, number: int, process: Process, say: Say) -> SimulatedShell:
        count = self._starts.total()
        if number:
            return HelperProcess.open(self.run, process, count, say, team, number)
        return WorkerProcess.open(self.run, process, count, say, shares=self._shares(), hall=team)

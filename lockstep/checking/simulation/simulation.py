"""Run a scenario: all processes of a run, their restarts, and the faults."""

import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from lockstep.checking.simulation.jobs import data, job_named, load_nothing
from lockstep.checking.simulation.messages import AnyMessage, describe
from lockstep.checking.simulation.processes import (
    SILENCE_S,
    HelperProcess,
    NodeProcess,
    Parts,
    ServerProcess,
    ShardProcess,
    SimulatedRun,
    StandbyProcess,
    WorkerProcess,
    could_lead,
    kind_of,
    server_of,
)
from lockstep.checking.simulation.remembered import remembering
from lockstep.checking.simulation.scenario import FaultKind, Scenario, ScheduledFault
from lockstep.checking.simulation.strand import Strand
from lockstep.checking.simulation.team import Hall
from lockstep.checking.simulation.world import VARYING, Process, SimulatedShell, World
from lockstep.common.errors import CONTINUED, RESUMED_HERE, FailureKind
from lockstep.common.model.source import ModelSource
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.codec import decode_header, encode
from lockstep.common.protocol.messages import Message, Result, SumsFrame
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import Drain, Promote
from lockstep.common.statemachine.client import ClientPhase
from lockstep.common.transport.in_memory import ADDRESS, Link, MemoryClient, MemoryNetwork
from lockstep.launch.run_starter import has_checkpoint
from lockstep.ps.records.run_folder import RESULT, RunResult, read_result
from lockstep.ps.standby.mirror import MIRROR
from lockstep.runs.run_dir import has_begun
from lockstep.worker.team.progress import CROWDED, PATIENT

#: Seconds by which the clock of each process is ahead of that of the one before: clocks do not begin at zero, and those
#: of two hosts have nothing in common.
CLOCK_S = 7_919.0

#: Seconds until a lease expires.
LEASE_S = 2.0

#: Virtual seconds within which all processes end after their run: one that has lost the server waits for it first.
SETTLE_S = 2 * SILENCE_S

#: Virtual seconds after the last fault within which a run has to end, and events after which it counts as stuck; and
#: what each step of a longer run may add to both.
BOUND_S, LIMIT = 120.0, 100_000
STEP_BOUND_S, STEP_LIMIT = 1.0, 400

#: Least and most seconds until an ended process is started again.
RESTART_S = (0.05, 0.5)

#: Seconds that every message takes, and least and most seconds between two attempts to dial.
LEAST_S, REDIAL_S = 1e-4, (0.02, 0.5)

#: Ticks of an action after which a process stands still in the middle of it, at most; for how many seconds at least,
#: and for how many times as long at most.
LATEST_PAUSE, PAUSE_S, LONGEST_PAUSE = 60, 1e-4, 10_000.0

#: Seconds within which the processes of a team end after their leader; then they are killed.
TEAM_SETTLE_S = 1.0

#: Share of ended connections that are not reported to the server.
SWALLOWED = 0.2

#: Seconds after which a person lets a standby lead a run that nobody leads, and until its connection is closed.
LEADERLESS_S, COMMAND_S = 10.0, 3.0

#: How many times the silence that counts a standby has to take over before it is cut off as well; and how many times
#: that its predecessor is cut off.
SUCCESSOR_S, PREDECESSOR_S = 4.0, 4.0

#: Seconds until an idle process is killed that was to be in an action; and until a server is lost after its folder.
IDLE_S, DELETED_S = 1.0, 2.0

#: How much slower a slow worker gets per second of its fault, and for how many seconds.
SLOWNESS, SLOW_S = 20.0, 10.0

#: How processes report a breach of the protocol, which none of these would commit.
_BREACH = re.compile(r"broke (the )?protocol")

#: Why a process may end that never hears of the run's success: it lost the server, or was told of an interrupt before,
#: or another server has led the run to its end.
_LOST = re.compile(
    r"has been silent for \d+ s: is it gone\?|no server answered at \S+ within \d+ s|the run failed: interrupted$"
    r"|another server leads run|the run was handed over to|is gone, and its slice of the weights with it"
)


#: How a server ends whose run continues at another one.
ELSEWHERE = CONTINUED - RESUMED_HERE


@dataclass(eq=False)
class Team:
    """A worker: the hall in which its processes meet, and the current ones by their numbers."""

    hall: Hall
    processes: dict[int, Process] = field(default_factory=dict)
    #: Whether its leader has ended by itself.
    is_over: bool = False


@dataclass
class Simulation:
    """One run of a scenario, in a folder of its own."""

    scenario: Scenario
    root: Path
    parts: Parts
    world: World
    #: The current processes, in the order of their starts.
    server: Process | None = None
    #: The standbys, by their names, those that lead the run among them.
    standbys: dict[str, Process] = field(default_factory=dict)
    shards: list[Process] = field(default_factory=list)
    teams: list["Team"] = field(default_factory=list)
    #: The result, once the run has succeeded, and the folder that it is in; there may be several.
    result: RunResult | None = None
    finished: list[Path] = field(default_factory=list)
    #: By the number of a term, the folder of the server that has led the run in it.
    leaders: dict[int, str] = field(default_factory=dict)
    #: Why the run was stopped: two workers disagreed, or a process reported a breach of the protocol.
    failure: str = ""
    #: When the last fault ends.
    disturbed_until: float = 0.0
    network: MemoryNetwork = field(init=False)
    run: SimulatedRun = field(init=False)
    #: Kind of fault -> how often it occurred.
    injected: Counter[str] = field(default_factory=Counter)
    #: The faults to come, the next one last.
    _pending: list[ScheduledFault] = field(default_factory=list)
    #: Process -> the step of the weights that it last had.
    _seen: dict[str, int | None] = field(default_factory=dict)
    _started: int = 0
    #: Teams so far.
    _teams: int = 0
    #: How often the servers were started, and whether they are down.
    _server_starts: int = 0
    _is_down: bool = False
    #: Whether the host of the server is gone for good.
    _is_lost: bool = False
    #: Process -> the term that it last had.
    _terms: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scenario = self.scenario
        self._rng = generator(scenario.seed, Purpose.SIMULATE, layer=2)
        link = Link(
            least_s=LEAST_S,
            delay_s=scenario.delay_s,
            repeats=scenario.doubling,
            may_repeat=lambda message: isinstance(decode_header(message[0], AnyMessage), SumsFrame | Result),
            swallows=SWALLOWED,
            redial_s=REDIAL_S,
        )
        self.network = MemoryNetwork(scenario.seed, link=link, timeline=self.world)
        (self.root / "run").mkdir()
        (self.root / "memory").mkdir()
        self.run = SimulatedRun(
            job=job_named(scenario.job, scenario.steps),
            data=data(job_named(scenario.job, scenario.steps).data),
            options=RunOptions(
                workers=sum(scenario.team_sizes()),
                min_workers=scenario.min_workers,
                lease_timeout=LEASE_S,
                servers=scenario.servers,
                audit=scenario.audit,
                ship_data=scenario.ships,
                takeover_seconds=scenario.takeover_s,
                checkpoint_keep=scenario.keep,
                checkpoint_every_steps=scenario.checkpoint_every,
            ),
            folder=self.root / "run",
            root=self.root / "memory",
            network=self.network,
            parts=replace(self.parts, load=lambda number: load_nothing) if scenario.ships else self.parts,
            cores=scenario.cores,
            patience=replace(CROWDED, cores=2) if scenario.is_crowded else PATIENT,
            cache=self.root / "cache" if scenario.ships else None,
            build=remembering if scenario.remembers else ModelSource.build,
            standbys={f"standby{number}": f"memory://standby{number}" for number in range(scenario.standbys)},
        )
        self.world.describe = describe
        self._pending = list(reversed(scenario.faults))

    def run_to_end(self) -> str:
        """Run the scenario; return why the run did not end, or an empty string."""
        self._start_servers()
        for name in self.run.standbys:
            self._start_standby(name)
        for _ in range(self.scenario.workers):
            self.start_team()
        if self.run.standbys:
            self.world.after(LEADERLESS_S, self._promote_if_nobody_leads)
        steps = self.run.job.steps or 0
        bound_s, limit = BOUND_S + STEP_BOUND_S * steps, LIMIT + STEP_LIMIT * steps
        while self.result is None and not self.failure:
            while self._pending and self._pending[-1].event <= self.world.events:
                fault = self._pending.pop()
                self.injected[fault.kind.label] += 1
                inject(self, fault)
            self.world.looks_at = min([limit + 1, *(fault.event for fault in self._pending[-1:])])
            if not self.world.turn():
                return "no process acts, and nothing is scheduled"
            if self.world.events > limit:
                return f"the run is stuck: it has not ended after {limit} events"
            if not self._pending and self.world.now > self.disturbed_until + bound_s:
                return f"the run has not ended within {bound_s:g} s of the last fault"
        return self.failure

    def settle(self) -> str:
        """Let the processes of a finished run end; return which do not, or end for another reason, "" if all is well.

        A worker that has never found a server goes on waiting for one: it cannot know that none will come.
        """
        self.world.looks_at, end = 0, self.world.now + SETTLE_S
        while not self.failure and self.world.now < end and any(map(self._has_to_end, self.world.processes)):
            if not self.world.turn():
                break
        left = [process.name for process in self.world.processes if self._has_to_end(process)]
        return self.failure or (f"not ended {SETTLE_S:g} s after the run: {', '.join(left)}" if left else "")

    def _has_to_end(self, process: Process) -> bool:
        """Tell whether a process has to end once the run has."""
        if isinstance(process.shell, HelperProcess):
            leader = process.shell.leader()
            return leader is None or self._has_to_end(leader)
        if isinstance(process.shell, StandbyProcess | ServerProcess):
            if process.is_in_action():
                return True  # killed there, it would leave half of what it writes
            # One that was cut off when the run ended elsewhere waits for workers, which a person has to end.
            server = server_of(process)
            return not process.shell.run.standbys or (server is not None and server.server.ended is not None)
        if not isinstance(process.shell, NodeProcess):
            return True
        client = process.shell.runner.state.client
        if client.phase is ClientPhase.JOINING:
            return bool(client.run)
        # A shard that is alone with such a server waits with it.
        places = {ADDRESS: self.server, **{self.run.standbys[name]: one for name, one in self.standbys.items()}}
        place = places.get(client.search.server.address)
        return place is None or place.is_dead or self._has_to_end(place)

    def leftovers(self) -> list[str]:
        """Return the names of what a closed run has left in shared memory, or half written on the disk."""
        shared = [path.name for path in self.run.root.iterdir()]
        # What a lost host had on its disk is of no interest to anybody.
        folders = self.finished if self._is_lost else [self.run.folder]
        return [*shared, *(path.name for folder in folders for path in folder.rglob("*.partial"))]

    def close(self) -> None:
        """End all processes."""
        for process in list(self.world.processes):
            process.on_end = Process.on_end
            process.end(is_killed=True)

    def _check_version(self, process: Process) -> None:
        """Check that weights only get newer: at a server, and at a worker between two joins."""
        name, step = process.name, None if process.shell is None else process.shell.weights_step()
        server = server_of(process)
        if server is not None:
            # One that has lost a shard resumes from a checkpoint.
            term = server.server.coordinator.info.term
            name = f"{name} in term {term.number}, resumed {term.resumed} times"
        before = self._seen.get(name)
        assert before is None or step is None or step >= before, f"{name} went back from weights {before} to {step}"
        self._seen[name] = step
        self._check_term(process)

    def _check_term(self, process: Process) -> None:
        """Check that the terms of a worker never fall, and that no two servers lead the run in the same one."""
        shell = process.shell
        if isinstance(shell, NodeProcess):
            number = shell.runner.state.client.search.term.number
            before = self._terms.get(process.name, 0)
            assert number >= before, f"{process.name} went back from term {before} to {number}"
            self._terms[process.name] = number
        server = server_of(process)
        if server is not None:
            term, folder = server.server.coordinator.info.term, server.run.folder.name
            leader = self.leaders.setdefault(term.number, folder)
            assert leader == folder, f"the servers in {leader} and {folder} lead the run in term {term.number}"

    # Processes start, and start again

    def _start(
        self,
        name: str,
        open_shell: Callable[[Process], SimulatedShell],
        on_end: Callable[[], None],
        kill_after: int | None = None,
    ) -> Process:
        process = Process(f"{name}-{self._started}", self.world, kill_after=kill_after, strand=Strand())
        self._started += 1
        process.ahead_s = CLOCK_S * self._started
        process.on_end = lambda ended, is_killed: self._ended(ended, on_end, is_killed=is_killed)
        if name == "worker":
            slowness = self.scenario.slowness
            process.slowness = slowness[self._started % len(slowness)]
        process.needs_strand = name == "worker"
        process.on_act = self._before_action
        self.world.record(process.name, "starts")
        process.start(lambda: open_shell(process))
        return process

    def _ended(self, process: Process, on_end: Callable[[], None], *, is_killed: bool) -> None:
        self._check_version(process)
        reason = (process.shell.exit_reason() if process.shell and not is_killed else None) or ""
        self._check_breach(process, reason)
        is_allowed = not reason or _LOST.search(reason) or (process.was_interrupted and reason == "interrupted")
        if self.result is not None and not is_allowed:
            self.failure = f"{process.name} ends, although the run is done, with: {self._plain(reason)}"
        self.world.record(process.name, "is killed" if is_killed else f"ends{': ' * bool(reason)}{self._plain(reason)}")
        on_end()

    def _start_servers(self) -> None:
        """Start the server and its shards; none of them continues without the others."""
        self._server_starts, self._is_down = self._server_starts + 1, False
        again = partial(self._restart_servers, self._server_starts)

        def open_server(process: Process) -> SimulatedShell:
            return ServerProcess.open(
                self.run, process, partial(self._report, process), shares=self.scenario.sharing > 0.0
            )

        if self._is_lost:
            return
        kill_after = dict(enumerate(self.scenario.early_kills, 1)).get(self._server_starts, 0)
        server = self._start("server", open_server, again, kill_after or None)
        if self._is_down:
            return
        self.server = server
        for _ in range(1, self.scenario.servers):
            self._start_shard()

    def _start_shard(self) -> None:
        """Start a shard, unless the run is over."""
        if not self._is_over():
            self.shards = [shard for shard in self.shards if not shard.is_dead]
            again = partial(self._shard_ended, self._server_starts)
            self.shards.append(self._start("shard", self._open_shard, again))

    def _shard_ended(self, start: int) -> None:
        """Start a shard again that has ended: alone if a server can resume with it, with all others if not."""
        servers = [server for one in self._leading() if (server := server_of(one)) is not None]
        # One that hands the run over, or has to leave it to another, is not started again, and waits for no shard.
        is_elsewhere = any(kind_of(server) in ELSEWHERE for server in servers)
        if self._is_lost or is_elsewhere or any(has_checkpoint(server.run.folder) for server in servers):
            self._later(self._start_shard)
        else:
            self._restart_servers(start)

    def _start_standby(self, name: str) -> None:
        """Start a standby, or the server that it has become and that has died, unless the run is over or it is there.

        It is if a person has resumed what was left before the supervisor that starts what has died again came to it.
        """
        before = self.standbys.get(name)
        if self._is_over() or (before is not None and not before.is_dead):
            return
        # As those that were lost may not come back, one worker is enough.
        options = msgspec.structs.replace(self.run.options, min_workers=1)
        run = replace(self.run, folder=self.root / name, options=options)
        address = self.run.standbys[name]
        leads = has_begun(run.folder) and not (run.folder / MIRROR).exists()

        def open_standby(process: Process) -> SimulatedShell:
            report, shares = partial(self._report, process), self.scenario.sharing > 0.0
            if leads:
                port = self.network.server(address, process)
                return ServerProcess.open(run, process, report, shares=shares, port=port)
            return StandbyProcess.open(run, process, report, address, shares=shares)

        self.standbys[name] = self._start(name, open_standby, partial(self._standby_ended, name))

    def _standby_ended(self, name: str) -> None:
        process = self.standbys[name]
        server = server_of(process)
        if server is not None and self._has_succeeded(process, server):
            return
        is_over = server is None and process.shell is not None and process.shell.exit_reason() == ""
        if is_over and self._is_lost and self.result is None and (self.root / name / RESULT).exists():
            # The server was lost in the moment in which all was done.
            self.result = read_result(self.root / name)
            self.finished.append(self.root / name)
        is_left = server is not None and kind_of(server) in ELSEWHERE
        if not (is_over or is_left):
            self._later(partial(self._start_standby, name))

    def _leading(self) -> list[Process]:
        """Return the processes that lead the run, as far as they know."""
        processes = [self.server, *self.standbys.values()]
        return [one for one in processes if one is not None and not one.is_dead and server_of(one) is not None]

    def last_leader(self) -> Process | None:
        """Return the process that leads the run in the highest term, None if there is none."""
        leading = [(one, server) for one in self._leading() if (server := server_of(one)) is not None]
        terms = [(server.server.coordinator.info.term, one) for one, server in leading]
        return max(terms, key=lambda led: (led[0].number, led[0].resumed, led[0].server))[1] if terms else None

    def _promote_if_nobody_leads(self) -> None:
        """Do what a person does in the end: let a standby lead the run that nobody leads, or resume what is left."""
        if not self._leading():
            for number in range(len(self.run.standbys)):
                self.promote(number)
            self._resume_what_is_left()
        if not self._is_over():
            self.world.after(LEADERLESS_S, self._promote_if_nobody_leads)

    def _resume_what_is_left(self) -> None:
        """Resume the run in the folder of a standby that has led it, and has ended since another server led it.

        As a person does if that other server was lost with its disk as well, and nobody is left.
        """
        if not self._is_lost or not all(process.is_dead for process in self.standbys.values()):
            return
        for name in self.standbys:
            if has_begun(self.root / name) and not (self.root / name / MIRROR).exists():
                self._start_standby(name)
                return

    def promote(self, target: int) -> None:
        """Ask a standby to lead the run; one that cannot refuses it."""
        address = list(self.run.standbys.values())[target % len(self.run.standbys)]
        self._command(address, Promote())

    def drain(self) -> None:
        """Ask the server to hand the run over."""
        self._command(ADDRESS, Drain())

    def _command(self, address: str, message: Message) -> None:
        client = self.network.client(address)
        client.send(encode(message))
        self.world.after(COMMAND_S, client.close)

    def _could_lead(self) -> bool:
        return any(could_lead(one) for one in self.standbys.values() if not one.is_dead)

    def lose_server(self, kill_after: int) -> None:
        """Lose the host of the server with its disk, if a standby has all that it takes to lead the run."""
        if self.server is not None and not self.server.is_dead and self._could_lead():
            self._is_lost = True
            self.server.kill_after = kill_after
            self.disturb(IDLE_S, lambda: None if self.server is None else self.server.end(is_killed=True))

    def delete_folder(self, kill_after: int) -> None:
        """Delete the folder of a run that goes on, and lose its server later, if a standby could lead."""
        leading = None if self.server is None or self.server.is_dead else server_of(self.server)
        if leading is not None and leading.server.ended is None and not self._is_lost and self._could_lead():
            shutil.rmtree(self.run.folder)
            self.disturb(DELETED_S, partial(self.lose_server, kill_after))

    def _restart_servers(self, start: int) -> None:
        """Restart the server and all shards after one of them has ended, unless the run is over."""
        if start != self._server_starts or self._is_down or self._is_finished() or self._is_lost:
            return
        self._is_down = True
        for process in (self.server, *self.shards):
            if process is not None:
                process.end(is_killed=True)
        self.server, self.shards = None, []
        self._later(self._start_servers)

    def _is_finished(self) -> bool:
        """Find out whether the run has succeeded or failed; without a server it has not."""
        server = None if self.server is None else server_of(self.server)
        if self.server is not None and server is not None and self._has_succeeded(self.server, server):
            return True
        if server is not None and kind_of(server) in ELSEWHERE:
            self._is_lost = True
        return self.result is not None or bool(self.failure)

    def _has_succeeded(self, process: Process, server: ServerProcess) -> bool:
        """Record how a server has ended its run; return whether it has succeeded, or failed for good."""
        ended = server.server.ended
        if ended is not None and not ended.failure and server.exit_reason() is None and not process.is_dead:
            return True  # its standbys get the rest
        if ended is not None and not ended.failure:
            self.result = server.session.recorder.result
            self.finished.append(server.run.folder)
        if ended is not None and ended.kind is FailureKind.AUDIT:
            self.failure = ended.failure
        return ended is not None and (not ended.failure or ended.kind is FailureKind.AUDIT)

    def workers(self) -> list[Process]:
        """Return the processes of all teams."""
        return [process for team in self.teams for process in team.processes.values() if not process.is_dead]

    def start_team(self, size: int | None = None) -> None:
        """Start a team of so many processes, by default of the next number, unless the run has ended."""
        if self._is_over():
            return
        self.teams = [team for team in self.teams if not team.is_over]
        sizes = self.scenario.processes
        team = Team(Hall(size or sizes[self._teams % len(sizes)]))
        self._teams += size is None
        self.teams.append(team)
        for place in range(team.hall.processes):
            self._start_process(team, place)

    def _is_over(self) -> bool:
        return self.result is not None or bool(self.failure)

    def _start_process(self, team: Team, place: int) -> None:
        """Start a process of a team, again if it has ended; a team whose leader is not needed any more ends."""
        if self._is_over() and place == 0:
            self._end_team(team)
        elif not (self._is_over() or team.is_over):
            open_process = partial(self._open_helper, team.hall, place) if place else partial(self._open, team.hall)
            team.processes[place] = self._start("worker", open_process, partial(self._after, team, place))

    def _after(self, team: Team, place: int) -> None:
        """Start a process of a team that has ended again, or the team if its leader has left."""
        process = team.processes.get(place)
        shell = None if process is None else process.shell
        has_left = place == 0 and shell is not None and shell.exit_reason() is not None
        if not (has_left or self._is_over()):
            self._later(partial(self._start_process, team, place))
        elif place == 0 and not team.is_over:
            team.is_over = True
            self.world.after(TEAM_SETTLE_S, partial(self._end_team, team))
            self._later(partial(self.start_team, team.hall.processes))

    def _end_team(self, team: Team) -> None:
        for process in team.processes.values():
            process.end(is_killed=True)

    def _before_action(self, process: Process) -> None:
        """Check a process; now and then, let it stand still in the middle of the action that it begins."""
        self._check_version(process)
        if process.pause_after is None and self._rng.random() < self.scenario.pauses:
            process.pause_after = int(self._rng.integers(1, LATEST_PAUSE))
            process.pause_s = PAUSE_S * float(LONGEST_PAUSE ** (self._rng.random() ** 2))

    def _later(self, start: Callable[[], None]) -> None:
        low, high = RESTART_S
        self.world.after(low + (high - low) * self._rng.random(), start)

    def _open(self, hall: Hall, process: Process) -> SimulatedShell:
        shares = self._rng.random() < self.scenario.sharing
        report = partial(self._report, process)
        return WorkerProcess.open(self.run, process, self._started, report, shares=shares, hall=hall)

    def _open_helper(self, hall: Hall, place: int, process: Process) -> SimulatedShell:
        return HelperProcess.open(self.run, process, self._started, partial(self._report, process), hall, place)

    def _open_shard(self, process: Process) -> SimulatedShell:
        return ShardProcess.open(self.run, process, self._started, partial(self._report, process))

    def _report(self, process: Process, text: str) -> None:
        if process.is_dead:
            return  # killed before it could report this
        process.tick()
        self._check_breach(process, text)
        self.world.record(process.name, f"reports: {self._plain(text)}")

    def _check_breach(self, process: Process, text: str) -> None:
        """Fail if a process reports a breach of the protocol, since none of these would commit one on purpose."""
        if _BREACH.search(text) and not self.failure:
            self.world.looks_at = 0
            self.failure = f"{process.name} reports: {self._plain(text)}"

    def _plain(self, text: str) -> str:
        """Return the first line of a text, without what differs in every run."""
        return VARYING.sub("MEMORY", text.replace(str(self.root), "ROOT")).partition("\n")[0]

    def process_at(self, role: str, target: int) -> Process | None:
        """Return a server, shard or worker by its number, if there is any."""
        if role == "server":
            leading = self._leading() if self.run.standbys else []
            return leading[target % len(leading)] if leading else self.server
        if role == "standby":
            standbys = [one for one in self.standbys.values() if not one.is_dead]
            return standbys[target % len(standbys)] if standbys else None
        group = self.shards if role == "shard" else self.workers()
        return group[target % len(group)] if group else None

    def disturb(self, seconds: float, then: Callable[[], None]) -> None:
        """Record a fault that lasts for a number of seconds, and schedule what ends it."""
        self.disturbed_until = max(self.disturbed_until, self.world.now + seconds)
        self.world.after(seconds, then)


def inject(run: Simulation, fault: ScheduledFault) -> None:
    """Inject one fault."""
    run.world.record(
        "fault",
        f"{fault.kind.label} {fault.target}: {fault.seconds:.3f} s, {fault.ways}, kill after {fault.kill_after}",
    )
    run.disturbed_until = max(run.disturbed_until, run.world.now)
    action, _, role = fault.kind.label.partition("-")
    match fault.kind:
        case FaultKind.FILL_DISK:
            run.run.disk.is_full = True
            run.disturb(fault.seconds, partial(setattr, run.run.disk, "is_full", False))
        case FaultKind.ADD_WORKER:
            run.start_team()
        case FaultKind.BREAK_WIRE | FaultKind.CUT_WIRE:
            wires = [wire for wire in run.network.clients if wire.peer is not None]
            if wires:
                _harm_wire(run, fault, wires[fault.target % len(wires)])
        case FaultKind.PARTITION:
            processes = run.world.processes
            if processes:
                _cut_off(run, fault, processes[fault.target % len(processes)])
        case FaultKind.CUT_OFF_SERVER:
            server = run.process_at("server", fault.target)
            if server is not None and not server.is_dead:
                _cut_off(run, fault, server)
        case FaultKind.CUT_OFF_IN_TURN:
            _cut_off_in_turn(run, fault)
        case FaultKind.LOSE_SERVER:
            run.lose_server(fault.kill_after)
        case FaultKind.DELETE_FOLDER:
            run.delete_folder(fault.kill_after)
        case FaultKind.PROMOTE:
            run.promote(fault.target)
        case FaultKind.DRAIN:
            run.drain()
        case _:
            process = run.process_at(role, fault.target)
            if process is not None and not process.is_dead:
                _harm_process(run, action, fault, process)


def _harm_process(run: Simulation, action: str, fault: ScheduledFault, process: Process) -> None:
    match action:
        case "kill":
            process.kill_after = fault.kill_after
            run.disturb(IDLE_S, lambda: process.end(is_killed=True))
        case "stop" if fault.kill_after % 2:
            process.stop()
            run.disturb(fault.seconds, process.resume)
        case "stop":
            # In the middle of something.
            process.pause_after, process.pause_s = fault.kill_after, fault.seconds
            run.disturb(fault.seconds + IDLE_S, lambda: None)
        case "interrupt":
            process.interrupt()
        case "slow":
            process.slowness = 1.0 + SLOWNESS * fault.seconds
            run.disturb(SLOW_S, partial(setattr, process, "slowness", 1.0))
        case "jump":
            process.jump_clock(fault.seconds)
        case _:
            raise AssertionError(f"{fault.kind} has no target")


def _harm_wire(run: Simulation, fault: ScheduledFault, wire: MemoryClient) -> None:
    if fault.kind is FaultKind.BREAK_WIRE:
        wire.disconnect()
        return
    wire.silence(up=fault.ways != "down", down=fault.ways != "up")
    run.disturb(fault.seconds, wire.heal)


def _cut_off(run: Simulation, fault: ScheduledFault, cut: Process) -> None:
    """Cut one process off from all others; its wires heal one after the other, in any order."""
    for number, wire in enumerate(run.network.connections_of(cut)):
        wire.silence(up=fault.ways != "down", down=fault.ways != "up")
        run.disturb(fault.seconds * (1 + (fault.target + 7 * number) % 5) / 5, wire.heal)


def _cut_off_in_turn(run: Simulation, fault: ScheduledFault) -> None:
    """Cut off whoever leads the run, and later its successor, so that workers come back to the first in its old term.

    What they dial anew is not cut off: it is the servers that do not see one another.
    """
    first, pause_s = run.last_leader(), SUCCESSOR_S * run.scenario.takeover_s
    if first is None:
        return
    _cut_off(run, replace(fault, seconds=fault.seconds + PREDECESSOR_S * pause_s), first)

    def cut_off_successor() -> None:
        successor = run.last_leader()
        if successor is not None and successor is not first:
            _cut_off(run, replace(fault, seconds=fault.seconds + pause_s), successor)

    run.disturb(pause_s, cut_off_successor)

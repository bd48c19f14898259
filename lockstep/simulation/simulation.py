"""Carries out a story: all processes of a run, those who start them again, and what happens to them meanwhile."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from common.protocol.codec import decode_header
from common.protocol.messages import Result, ServerMessage, SumsFrame, WorkerMessage
from common.protocol.shard_messages import ShardMessage, ToShardMessage, WorkerToShardMessage
from common.random import Purpose, generator
from common.transport.memory import Link, MemoryNetwork
from lockstep.simulation.disk import Disk, Writing
from lockstep.simulation.faults import happen
from lockstep.simulation.scenario import Scenario, ScheduledFault
from lockstep.simulation.shells import Parts, ServerProcess, ShardProcess, SimulatedRun, WorkerProcess
from lockstep.simulation.small import job_named
from lockstep.simulation.world import Process, SimulatedShell, World
from ps.coordinator.scheduling.audit import is_difference
from ps.records.run_folder import RunResult

#: Seconds of the world after the last thing that happened within which a run has to end, and events after which it
#: counts as stuck.
BOUND_S, LIMIT = 120.0, 20_000

#: Seconds until a process that is gone is started again, at least and at most.
BACK_S = (0.05, 0.5)

#: Seconds that any message takes, and between two attempts to dial.
LEAST_S, REDIAL_S = 1e-4, (0.02, 0.5)

#: Share of ended connections of which the server is not told.
SWALLOWED = 0.2

#: All that is said in a run.
AnyMessage = WorkerMessage | ServerMessage | ShardMessage | ToShardMessage | WorkerToShardMessage

#: Longest value that the trace shows of a message.
LONGEST_VALUE = 40

#: What a process says of another that broke the protocol: none of these would.
_BREACH = re.compile(r"broke (the )?protocol")

#: Names of shared memory, which are never the same.
_MEMORY = re.compile(r"lockstep-\d+-\d+-[0-9a-f]{16}")


@dataclass
class Simulation:
    """One run of a story, in a folder of its own."""

    story: Scenario
    root: Path
    parts: Parts = field(default_factory=Parts)
    world: World = field(default_factory=World)
    disk: Disk = field(default_factory=Disk)
    #: Who is there by now, in the order of their starts.
    server: Process | None = None
    shards: list[Process] = field(default_factory=list)
    workers: list[Process] = field(default_factory=list)
    #: Of a run that has ended well.
    result: RunResult | None = None
    #: Why a run is not gone on with: two workers disagreed, or one process found another to break the protocol.
    failure: str = ""
    #: Until when something is not as it should be.
    troubled_until: float = 0.0
    network: MemoryNetwork = field(init=False)
    run: SimulatedRun = field(init=False)
    #: What has happened, and how often.
    happened: Counter[str] = field(default_factory=Counter)
    #: What has not happened yet.
    _ahead: list[ScheduledFault] = field(default_factory=list)
    #: By name, of which step the weights were that were last seen.
    _seen: dict[str, int | None] = field(default_factory=dict)
    _started: int = 0
    #: How often the servers were started, and whether they are gone by now.
    _lives: int = 0
    _is_down: bool = False

    def __post_init__(self) -> None:
        story = self.story
        self._rng = generator(story.seed, Purpose.SIMULATE, layer=2)
        link = Link(
            least_s=LEAST_S,
            delay_s=story.delay_s,
            repeats=story.doubling,
            may_repeat=_brings_sums,
            swallows=SWALLOWED,
            redial_s=REDIAL_S,
        )
        self.network = MemoryNetwork(story.seed, link=link, timeline=self.world)
        (self.root / "run").mkdir()
        (self.root / "memory").mkdir()
        self.run = SimulatedRun(
            job=job_named(story.job, story.steps),
            folder=self.root / "run",
            root=self.root / "memory",
            network=self.network,
            parts=self.parts,
            workers=story.workers,
            min_workers=story.min_workers,
            servers=story.servers,
            checkpoint_every=story.checkpoint_every,
            keep=story.keep,
            audit=story.audit,
            cache=self.root / "cache" if story.ships else None,
        )
        self.world.describe = describe
        self._ahead = list(reversed(story.happenings))

    def play(self) -> str:
        """Carry the story out; return why that did not come to an end, empty where it did."""
        self._start_servers()
        for _ in range(self.story.workers):
            self.start_worker()
        while self.result is None and not self.failure:
            while self._ahead and self._ahead[-1].event <= self.world.events:
                it = self._ahead.pop()
                self.happened[it.fault.value] += 1
                happen(self, it)
            if not self.world.turn():
                return "nobody acts, and nothing is to happen"
            self._check_versions()
            if self.world.events > LIMIT:
                return f"the run is stuck: {LIMIT} events came to no end"
            if not self._ahead and self.world.now > self.troubled_until + BOUND_S:
                return f"the run has not ended within {BOUND_S:g} s of the last thing that happened to it"
        return self.failure

    def close(self) -> None:
        """End all processes."""
        for process in list(self.world.processes):
            process.on_end = _ignore
            process.end(is_killed=True)

    def _check_versions(self) -> None:
        """Demand that the weights only ever get newer: at a server, and at a worker between two joins."""
        if self.server is not None and isinstance(self.server.shell, ServerProcess):
            self._see(self.server.name, self.server.shell.server.shard.updates)
        for worker in self.workers:
            if isinstance(worker.shell, WorkerProcess):
                self._see(worker.name, worker.shell.runner.state.weights_step)

    def _see(self, name: str, step: int | None) -> None:
        before = self._seen.get(name)
        assert before is None or step is None or step >= before, f"{name} went back from weights {before} to {step}"
        self._seen[name] = step

    # Processes start, and start again

    def _start(
        self, name: str, open_shell: Callable[[Process], SimulatedShell], on_end: Callable[[], None], fuse: int = 0
    ) -> Process:
        process = Process(f"{name}-{self._started}", self.world, fuse=fuse or None)
        self._started += 1
        process.on_end = lambda ended, is_killed: self._ended(ended, on_end, is_killed=is_killed)
        self.world.record(process.name, "starts")
        process.start(lambda: open_shell(process))
        return process

    def _ended(self, process: Process, on_end: Callable[[], None], *, is_killed: bool) -> None:
        words = "" if process.shell is None or is_killed else process.shell.last_words()
        self._heed(process, words)
        self.world.record(process.name, "is killed" if is_killed else f"ends{': ' * bool(words)}{self._plain(words)}")
        on_end()

    def _start_servers(self) -> None:
        """Start the server and its shards: none of them goes on without the others."""
        self._lives, self._is_down = self._lives + 1, False
        again = partial(self._restart_servers, self._lives)

        def open_server(process: Process) -> SimulatedShell:
            writing = Writing(self.disk, process)
            say = partial(self._say, process)
            return ServerProcess.open(self.run, process, writing, say, offers=self.story.sharing > 0.0)

        doomed = dict(enumerate(self.story.doomed, 1)).get(self._lives, 0)
        server = self._start("server", open_server, again, doomed)
        if self._is_down:
            return
        self.server = server
        for _ in range(1, self.story.servers):
            self.shards.append(self._start("shard", self._open_shard, again))

    def _restart_servers(self, life: int) -> None:
        """Take in that a server or a shard has ended: all of them begin again, unless that was the run's end."""
        if life != self._lives or self._is_down or self._is_finished():
            return
        self._is_down = True
        for process in (self.server, *self.shards):
            if process is not None:
                process.end(is_killed=True)
        self.server, self.shards = None, []
        self._later(self._start_servers)

    def _is_finished(self) -> bool:
        """Find out whether the run has ended, well or for good; without a server it cannot have."""
        shell = None if self.server is None else self.server.shell
        ended = shell.server.ended if isinstance(shell, ServerProcess) else None
        if isinstance(shell, ServerProcess) and ended is not None and not ended.failure:
            self.result = shell.session.recorder.result
        if ended is not None and is_difference(ended.failure):
            self.failure = ended.failure
        return self.result is not None or bool(self.failure)

    def start_worker(self) -> None:
        """Start a worker, unless the run has ended."""
        if self.result is None and not self.failure:
            self.workers = [worker for worker in self.workers if not worker.is_dead]
            self.workers.append(self._start("worker", self._open_worker, lambda: self._later(self.start_worker)))

    def _later(self, start: Callable[[], None]) -> None:
        low, high = BACK_S
        self.world.after(low + (high - low) * self._rng.random(), start)

    def _open_shard(self, process: Process) -> SimulatedShell:
        shares = self._rng.random() < self.story.sharing
        return ShardProcess.open(self.run, process, self._started, partial(self._say, process), shares=shares)

    def _open_worker(self, process: Process) -> SimulatedShell:
        shares = self._rng.random() < self.story.sharing
        return WorkerProcess.open(self.run, process, self._started, partial(self._say, process), shares=shares)

    def _say(self, process: Process, text: str) -> None:
        if process.is_dead:
            return  # what it would have said that was killed
        process.tick()
        self._heed(process, text)
        self.world.record(process.name, f"says {self._plain(text)}")

    def _heed(self, process: Process, text: str) -> None:
        """Take in what a process says: nobody here breaks the protocol, so that whoever is found to do so has a bug."""
        if _BREACH.search(text) and not self.failure:
            self.failure = f"{process.name} says {self._plain(text)}"

    def _plain(self, text: str) -> str:
        """Return the first line of a text, without what every run draws anew."""
        return _MEMORY.sub("MEMORY", text.replace(str(self.root), "ROOT")).partition("\n")[0]

    def one_of(self, whom: str, target: int) -> Process | None:
        """Return the server, a shard or a worker, if there is one."""
        if whom == "server":
            return self.server
        group = self.shards if whom == "shard" else self.workers
        return group[target % len(group)] if group else None

    def trouble(self, seconds: float) -> None:
        """Book that something is not as it should be for so long."""
        self.troubled_until = max(self.troubled_until, self.world.now + seconds)


def _brings_sums(message: Sequence[memoryview]) -> bool:
    return isinstance(decode_header(message[0], AnyMessage), SumsFrame | Result)


def describe(message: Sequence[memoryview]) -> str:
    """Return a message in one line, without what is long."""
    header = decode_header(message[0], AnyMessage)
    values = {name: getattr(header, name) for name in header.__struct_fields__}
    told = ", ".join(f"{name}={value!r}" for name, value in values.items() if len(repr(value)) <= LONGEST_VALUE)
    return f"{type(header).__name__}({told})"


def _ignore(process: Process, is_killed: bool) -> None:
    pass

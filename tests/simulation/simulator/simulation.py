"""Run a scenario: all processes of a run, their restarts, the faults, and how a trace shows messages."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.codec import decode_header
from lockstep.common.protocol.messages import Result, ServerMessage, SumsFrame, WorkerMessage
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardMessage, ToShardMessage, WorkerToShardMessage
from lockstep.common.statemachine.client import ClientPhase
from lockstep.common.transport.in_memory import Link, MemoryNetwork
from lockstep.worker.team.progress import CROWDED, PATIENT
from tests.simulation.simulator.faults import Faults
from tests.simulation.simulator.jobs import data, job_named, load_nothing
from tests.simulation.simulator.launching import Launcher
from tests.simulation.simulator.processes import (
    SILENCE_S,
    HelperProcess,
    NodeProcess,
    Parts,
    SimulatedRun,
)
from tests.simulation.simulator.scenario import Scenario
from tests.simulation.simulator.watch import RunWatch
from tests.simulation.simulator.world import Process, World

#: Seconds until a lease expires.
LEASE_S = 2.0

#: Virtual seconds within which all processes end after their run: one that has lost the server waits for it first.
SETTLE_S = 2 * SILENCE_S

#: Virtual seconds after the last fault within which a run has to end, and events after which it counts as stuck; and
#: what each step of a longer run may add to both.
BOUND_S, LIMIT = 120.0, 100_000
STEP_BOUND_S, STEP_LIMIT = 1.0, 400

#: Seconds that every message takes, and least and most seconds between two attempts to dial.
LEAST_S, REDIAL_S = 1e-4, (0.02, 0.5)

#: Share of ended connections that are not reported to the server.
SWALLOWED = 0.2


#: All messages of a run.
AnyMessage = WorkerMessage | ServerMessage | ShardMessage | ToShardMessage | WorkerToShardMessage

#: Longest value that the trace shows of a message.
LONGEST_VALUE = 40


def describe(message: Sequence[memoryview]) -> str:
    """Return a message as a line, without long values."""
    header = decode_header(message[0], AnyMessage)
    values = {name: getattr(header, name) for name in header.__struct_fields__}
    text = ", ".join(f"{name}={value!r}" for name, value in values.items() if len(repr(value)) <= LONGEST_VALUE)
    return f"{type(header).__name__}({text})"


def run_of(scenario: Scenario, root: Path, parts: Parts, world: World) -> SimulatedRun:
    """Return the run of a scenario, in a folder that is empty."""
    link = Link(
        least_s=LEAST_S,
        delay_s=scenario.delay_s,
        repeats=scenario.doubling,
        may_repeat=lambda message: isinstance(decode_header(message[0], AnyMessage), SumsFrame | Result),
        swallows=SWALLOWED,
        redial_s=REDIAL_S,
    )
    (root / "run").mkdir()
    (root / "memory").mkdir()
    job = job_named(scenario.job, scenario.steps)
    return SimulatedRun(
        job=job,
        data=data(job.data),
        options=RunOptions(
            workers=sum(scenario.team_sizes()),
            min_workers=scenario.min_workers,
            lease_timeout=LEASE_S,
            servers=scenario.servers,
            audit=scenario.audit,
            ship_data=scenario.ships,
            checkpoint_keep=scenario.keep,
            checkpoint_every_steps=scenario.checkpoint_every,
        ),
        folder=root / "run",
        root=root / "memory",
        network=MemoryNetwork(scenario.seed, link=link, timeline=world),
        parts=replace(parts, load=lambda number: load_nothing) if scenario.ships else parts,
        cores=scenario.cores,
        patience=replace(CROWDED, cores=2) if scenario.is_crowded else PATIENT,
        cache=root / "cache" if scenario.ships else None,
    )


@dataclass
class Simulation:
    """One run of a scenario, in a folder of its own."""

    scenario: Scenario
    world: World
    run: SimulatedRun
    watch: RunWatch
    launcher: Launcher = field(init=False)
    faults: Faults = field(init=False)

    @classmethod
    def of(cls, scenario: Scenario, root: Path, parts: Parts, world: World) -> "Simulation":
        """Return a run that has not begun, in a folder that is empty."""
        world.describe = describe
        return cls(scenario, world, run_of(scenario, root, parts, world), RunWatch(world, root))

    def __post_init__(self) -> None:
        rng = generator(self.scenario.seed, Purpose.SIMULATE, layer=2)
        self.launcher = Launcher(self.scenario, self.run, self.world, self.watch, rng)
        self.faults = Faults(self.launcher, list(reversed(self.scenario.faults)))

    def run_to_end(self) -> str:
        """Run the scenario; return why the run did not end, or an empty string."""
        self.launcher.begin()
        steps = self.run.job.steps or 0
        bound_s, limit = BOUND_S + STEP_BOUND_S * steps, LIMIT + STEP_LIMIT * steps
        while not self.watch.is_over:
            self.faults.inject_due()
            if not self.world.turn():
                return "no process acts, and nothing is scheduled"
            if self.world.events > limit:
                return f"the run is stuck: it has not ended after {limit} events"
            if not self.faults.pending and self.world.now > self.faults.disturbed_until + bound_s:
                return f"the run has not ended within {bound_s:g} s of the last fault"
        return self.watch.failure

    def settle(self) -> str:
        """Let the processes of a finished run end; return which do not, or end for another reason, "" if all is well.

        A worker that has never found a server goes on waiting for one: it cannot know that none will come.
        """
        end = self.world.now + SETTLE_S
        while not self.watch.failure and self.world.now < end and any(map(self._has_to_end, self.world.processes)):
            if not self.world.turn():
                break
        left = [process.name for process in self.world.processes if self._has_to_end(process)]
        return self.watch.failure or (f"not ended {SETTLE_S:g} s after the run: {', '.join(left)}" if left else "")

    def _has_to_end(self, process: Process) -> bool:
        """Tell whether a process has to end once the run has."""
        if isinstance(process.shell, HelperProcess):
            leader = process.shell.leader()
            return leader is None or self._has_to_end(leader)
        if not isinstance(process.shell, NodeProcess):
            return True
        client = process.shell.runner.state.client
        return client.phase is not ClientPhase.JOINING or bool(client.run)

    def leftovers(self) -> list[str]:
        """Return the names of what a closed run has left in shared memory, or half written on the disk."""
        shared = [path.name for path in self.run.root.iterdir()]
        # A server that is lost, or is killed when another has ended the run, is not started again to clear its folder.
        return [*shared, *(path.name for folder in self.watch.finished for path in folder.rglob("*.partial"))]

    def close(self) -> None:
        """End all processes."""
        for process in list(self.world.processes):
            process.on_end = Process.on_end
            process.end(is_killed=True)

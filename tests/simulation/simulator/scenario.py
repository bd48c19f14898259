"""A scenario, drawn from a seed: a job, the processes and network of its run, and the faults. Pure."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.common.numerics.random import Purpose, generator
from tests.simulation.simulator.jobs import LOCAL, LOCAL_SHARDED, LOCAL_TEAM, LONG, SHARDED, TEAM, jobs

#: Most faults in a run, and the last event at which one may occur.
MOST_FAULTS, LAST_EVENT = 10, 250

#: Share of started servers and shards that are killed while they open the run, or soon after.
EARLY_KILLS = 0.1

#: Shares of micro-batches to audit: none in half of the runs.
AUDITS = (0.0, 0.0, 0.3, 1.0)

#: Cores of the machine that all share: no worker gets a second copy of a lease if cores are fewer than workers.
CORES = (1, 2, 3, 64)

#: Share of runs with the long job.
LONGER = 0.1

#: Share of runs of one team that shares memory, and makes most steps by itself;
#: the most steps between their checkpoints; and the last event at which a fault may occur.
ALONE, MOST_BETWEEN, LAST_OF_TEAM = 0.5, 100, 3_000

#: How much more frequent some faults are in such a run: those that show whether a late process does harm.
OF_TEAM = {"stop-worker": 3.0, "kill-worker": 3.0, "stop-server": 4.0, "slow-server": 3.0, "add-worker": 4.0}

#: Processes of a team: few have many, which take longer.
TEAMS = (1, 2, 2, 3, 4)

#: How many times as long as the fastest a process takes for a micro-batch.
SLOWNESS = (1.0, 1.0, 1.0, 1.6, 4.0)

#: Shares of the actions of a process of a team in the middle of which it pauses for a moment.
PAUSES = (0.0, 0.02, 0.2)

#: Share of runs in which workers have no data, and receive the samples of their leases.
SHIPPING = 0.3


class FaultKind(Enum):
    """Everything that can go wrong, by name, and the relative frequency of each; what stops a whole run is rarer."""

    KILL_WORKER = ("kill-worker", 4.0)
    KILL_SERVER = ("kill-server", 2.0)
    KILL_SHARD = ("kill-shard", 1.0)
    STOP_WORKER = ("stop-worker", 3.0)
    STOP_SERVER = ("stop-server", 1.0)
    STOP_SHARD = ("stop-shard", 1.0)
    INTERRUPT_WORKER = ("interrupt-worker", 1.0)
    INTERRUPT_SERVER = ("interrupt-server", 0.5)
    SLOW_WORKER = ("slow-worker", 2.0)
    SLOW_SERVER = ("slow-server", 1.0)
    ADD_WORKER = ("add-worker", 1.0)
    JUMP_WORKER = ("jump-worker", 1.0)
    JUMP_SERVER = ("jump-server", 0.5)
    BREAK_WIRE = ("break-wire", 3.0)
    CUT_WIRE = ("cut-wire", 3.0)
    PARTITION = ("partition", 1.0)
    FILL_DISK = ("fill-disk", 1.0)

    def __init__(self, label: str, weight: float) -> None:
        self.label, self.weight = label, weight


#: Share of runs whose micro-batches take several steps by themselves.
LOCALLY = 0.15

#: Share of such runs in which only the server is stopped or slow, early, and its team gets as far ahead as it can.
AHEAD, LAST_OF_SERVER, OF_SERVER = 0.3, 500, (FaultKind.STOP_SERVER, FaultKind.SLOW_SERVER)


class ScheduledFault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault at a certain event of a run."""

    kind: FaultKind
    #: The number of events before it.
    event: int
    #: Number of the process or wire, modulo their number at that time.
    target: int
    #: Duration in seconds, if it lasts.
    seconds: float
    #: Ticks of the process until it dies, if it is a kill.
    kill_after: int
    #: The silent directions of a wire: "up", "down" or "both".
    ways: str


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of a simulated run."""

    seed: int
    job: str
    #: Number of steps; None for that of the job.
    steps: int | None = None
    #: Workers, each of which is a team; and of how many processes, in turn.
    workers: int
    processes: tuple[int, ...]
    #: How much slower than the fastest each started process is, in turn.
    slowness: tuple[float, ...]
    #: Share of the actions of a process of a team in the middle of which it pauses.
    pauses: float
    #: Whether processes wait for one another as if there were too few cores for them.
    is_crowded: bool
    servers: int
    #: Share of the workers and shards that share the memory of the server.
    sharing: float
    #: Cores of the machine that all are on.
    cores: int
    #: Mean seconds that a message takes, and the share of messages from clients that arrive twice.
    delay_s: float
    doubling: float
    #: Share of the micro-batches that another worker computes again.
    audit: float
    #: Whether workers have no data, and receive the samples of their leases.
    ships: bool
    #: Steps between checkpoints, and how many are kept.
    checkpoint_every: int
    keep: int
    #: Number of processes with which the run begins.
    min_workers: int
    #: Ticks until each of the first servers, and of the first shards, is killed; 0 if it is not.
    early_kills: tuple[int, ...]
    faults: tuple[ScheduledFault, ...]

    def summary(self) -> str:
        """Return the scenario as a line."""
        faults = ", ".join(f"{fault.kind.label}@{fault.event}" for fault in self.faults) or "none"
        teams = " + ".join(str(count) for count in self.team_sizes())
        return f"{self.job}, {teams} processes, {self.servers} servers; faults: {faults}"

    def team_sizes(self) -> list[int]:
        """Return of how many processes each of the first workers is."""
        return [self.processes[number % len(self.processes)] for number in range(self.workers)]


def scenario_of(
    seed: int,
    *,
    workers: int | None = None,
    servers: int | None = None,
    steps: int | None = None,
    processes: int | None = None,
) -> Scenario:
    """Return the scenario of a seed; values that are given are not drawn."""
    rng, team = (generator(seed, Purpose.SIMULATE, layer=layer) for layer in (1, 9))
    scenario = _drawn(seed, rng, team, workers, servers, processes)
    if workers is None and servers is None and team.random() < ALONE:
        scenario = _alone(scenario, team)
    scenario = _with_local_steps(scenario)
    return replace(scenario, steps=steps, min_workers=int(rng.choice([1, sum(scenario.team_sizes())])))


def _drawn(
    seed: int,
    rng: np.random.Generator,
    team: np.random.Generator,
    workers: int | None,
    servers: int | None,
    processes: int | None,
) -> Scenario:
    """Draw the values that every scenario has, in an order that never changes."""
    drawn = int(rng.choice([1, 1, 1, 2, 3]))  # in any case, as all that is drawn after it
    server_count = drawn if servers is None else servers
    job = _job_of(rng, server_count)
    worker_count = int(rng.integers(1, 5)) if workers is None else workers
    sizes = tuple(int(team.choice(TEAMS)) if processes is None else processes for _ in range(4))
    return Scenario(
        seed=seed,
        job=job,
        workers=worker_count,
        processes=sizes,
        slowness=tuple(float(team.choice(SLOWNESS)) for _ in range(7)),
        pauses=float(team.choice(PAUSES)),
        is_crowded=bool(team.random() < 0.25),
        min_workers=1,
        # The first one begins the run; the others resume it.
        early_kills=tuple(int(rng.integers(1, 120)) if rng.random() < EARLY_KILLS else 0 for _ in range(4)),
        servers=server_count,
        sharing=float(rng.choice([0.0, 0.5, 1.0, 1.0])),
        delay_s=float(rng.choice([0.0003, 0.002, 0.02])),
        doubling=float(rng.choice([0.0, 0.0, 0.2])),
        **_drawn_separately(seed),
        checkpoint_every=int(rng.integers(1, 4)),
        keep=int(rng.integers(1, 3)),
        faults=_faults(rng, LAST_EVENT, {}),
    )


def _job_of(rng: np.random.Generator, servers: int) -> str:
    """Return the name of the job of a run with so many servers."""
    others = (LONG, LOCAL, LOCAL_SHARDED)
    names = [name for name in jobs() if name in SHARDED or (servers == 1 and name not in others)]
    return str(rng.choice([name for name in names if not name.startswith(TEAM)])) if rng.random() >= LONGER else LONG


def _drawn_separately(seed: int) -> dict[str, Any]:
    """Return values that are drawn by themselves, so that scenarios without them stay as they were."""
    return {
        "cores": int(generator(seed, Purpose.SIMULATE, layer=8).choice(CORES)),
        "audit": float(generator(seed, Purpose.SIMULATE, layer=6).choice(AUDITS)),
        "ships": bool(generator(seed, Purpose.SIMULATE, layer=7).random() < SHIPPING),
    }


def _with_local_steps(scenario: Scenario) -> Scenario:
    """Return the scenario with a job with local steps, if it has one. Drawn separately."""
    if generator(scenario.seed, Purpose.SIMULATE, layer=11).random() >= LOCALLY:
        return scenario
    if scenario.job.startswith(TEAM):
        return replace(scenario, job=LOCAL_TEAM)
    return replace(scenario, job=LOCAL if scenario.servers == 1 else LOCAL_SHARDED)


def _alone(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Return the scenario of a team that is left alone, but for a while when another one comes, or comes back."""
    alone = replace(
        scenario,
        job=str(rng.choice([name for name in jobs() if name.startswith(TEAM) and name != LOCAL_TEAM])),
        workers=int(rng.choice([1, 1, 2])),
        servers=1,
        sharing=1.0,
        audit=0.0,
        ships=False,
        checkpoint_every=int(1 + MOST_BETWEEN * float(rng.random()) ** 2),
        faults=_faults(rng, LAST_OF_TEAM, OF_TEAM),
    )
    if rng.random() >= AHEAD:
        return alone
    others = {kind.label: 0.0 for kind in FaultKind if kind not in OF_SERVER}
    faults = _faults(rng, LAST_OF_SERVER, others)
    return replace(alone, workers=1, checkpoint_every=MOST_BETWEEN, pauses=min(alone.pauses, PAUSES[1]), faults=faults)


def _faults(rng: np.random.Generator, last: int, more: Mapping[str, float]) -> tuple[ScheduledFault, ...]:
    weights = {kind: kind.weight * more.get(kind.label, 1.0) for kind in FaultKind}
    count = int(rng.integers(0, MOST_FAULTS + 1))
    found = [_fault(rng, _kind(rng, weights), (0, last), (0.01, 1000)) for _ in range(count)]
    return tuple(sorted(found, key=lambda fault: fault.event))


def _kind(rng: np.random.Generator, weights: Mapping[FaultKind, float]) -> FaultKind:
    kinds, frequencies = list(weights), np.array(list(weights.values()))
    return kinds[int(rng.choice(len(kinds), p=frequencies / frequencies.sum()))]


def _fault(
    rng: np.random.Generator, kind: FaultKind, span: tuple[int, int], lasts: tuple[float, int]
) -> ScheduledFault:
    """Draw a fault within a span of events, and how long it lasts: from the fewest seconds to so many times as many."""
    (first, last), (fewest_s, times) = span, lasts
    return ScheduledFault(
        kind=kind,
        # Most of them early, since a run without faults has a hundred events.
        event=first + int((last - first) * float(rng.random()) ** 2),
        target=int(rng.integers(0, 60)),
        seconds=float(fewest_s * times ** rng.random()),
        kill_after=int(rng.integers(1, 30)),
        ways=str(rng.choice(["up", "down", "both"])),
    )

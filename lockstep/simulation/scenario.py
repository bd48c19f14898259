"""What a seed means: a job, who carries it out over which network, and what happens to them. Pure."""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from common.random import Purpose, generator
from lockstep.simulation.small import LONG, SHARDED, jobs

#: Most things that happen in a run, and the event of the world at which the last one may.
MOST_FAULTS, LAST_EVENT = 10, 250

#: How often a server that is started is killed while it opens the run, or soon after.
DOOM = 0.1

#: Shares of micro-batches that are audited: in half of the runs none is.
AUDITS = (0.0, 0.0, 0.3, 1.0)

#: How often a run is of a job that takes longer.
LONGER = 0.1

#: How often workers have no data, and are sent the samples of their leases.
SHIPPING = 0.3


class Fault(Enum):
    """What can happen."""

    KILL_WORKER = "kill-worker"
    KILL_SERVER = "kill-server"
    KILL_SHARD = "kill-shard"
    STOP_WORKER = "stop-worker"
    STOP_SERVER = "stop-server"
    STOP_SHARD = "stop-shard"
    INTERRUPT_WORKER = "interrupt-worker"
    INTERRUPT_SERVER = "interrupt-server"
    SLOW_WORKER = "slow-worker"
    ADD_WORKER = "add-worker"
    JUMP_WORKER = "jump-worker"
    JUMP_SERVER = "jump-server"
    BREAK_WIRE = "break-wire"
    CUT_WIRE = "cut-wire"
    PARTITION = "partition"
    FILL_DISK = "fill-disk"


#: How often each happens, in relation to the others; what stops a whole run is rarer.
WEIGHTS = {
    Fault.KILL_WORKER: 4.0,
    Fault.KILL_SERVER: 2.0,
    Fault.KILL_SHARD: 1.0,
    Fault.STOP_WORKER: 3.0,
    Fault.STOP_SERVER: 1.0,
    Fault.STOP_SHARD: 1.0,
    Fault.INTERRUPT_WORKER: 1.0,
    Fault.INTERRUPT_SERVER: 0.5,
    Fault.SLOW_WORKER: 2.0,
    Fault.ADD_WORKER: 1.0,
    Fault.JUMP_WORKER: 1.0,
    Fault.JUMP_SERVER: 0.5,
    Fault.BREAK_WIRE: 3.0,
    Fault.CUT_WIRE: 3.0,
    Fault.PARTITION: 1.0,
    Fault.FILL_DISK: 1.0,
}


@dataclass(frozen=True, kw_only=True)
class ScheduledFault:
    """Something that happens in a run."""

    fault: Fault
    #: After how many events of the world.
    event: int
    #: To whom, counted modulo those that there are.
    target: int
    #: For how many seconds, where it lasts.
    seconds: float
    #: After how many moments of its process's, where it is a kill.
    fuse: int
    #: Which ways, of a wire that falls silent: "up", "down" or "both".
    ways: str


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A simulated run before it happens."""

    seed: int
    job: str
    #: Of the job, None where it has its own.
    steps: int | None = None
    workers: int
    servers: int
    #: Whether workers and shards share the server's memory; some of them, where this is between.
    sharing: float
    #: Mean seconds that a message takes, and how often one of a client is heard twice.
    delay_s: float
    doubling: float
    #: Which share of the micro-batches another worker computes again.
    audit: float
    #: Whether workers have no data, and are sent the samples of their leases.
    ships: bool
    #: Steps between checkpoints, and how many are kept.
    checkpoint_every: int
    keep: int
    #: With how many workers the run begins.
    min_workers: int
    #: After how many moments of its life each server that is started is killed, the first ones; 0 where it is not.
    doomed: tuple[int, ...]
    happenings: tuple[ScheduledFault, ...]

    def named(self) -> str:
        """Return what there is to it in one line."""
        told = ", ".join(f"{it.fault.value}@{it.event}" for it in self.happenings) or "nothing"
        return f"{self.job}, {self.workers} workers, {self.servers} servers; happens: {told}"


def scenario_of(
    seed: int, *, workers: int | None = None, servers: int | None = None, steps: int | None = None
) -> Scenario:
    """Return what a seed means; what is given is not drawn."""
    rng = generator(seed, Purpose.SIMULATE, layer=1)
    drawn = int(rng.choice([1, 1, 1, 2, 3]))
    count = drawn if servers is None else servers
    names = [name for name in jobs() if name in SHARDED or (count == 1 and name != LONG)]
    job = str(rng.choice(names)) if rng.random() >= LONGER else LONG
    working = int(rng.integers(1, 5)) if workers is None else workers
    story = Scenario(
        seed=seed,
        job=job,
        workers=working,
        min_workers=int(rng.choice([1, working])),
        # The first one begins the run, the others go on with what they find.
        doomed=tuple(int(rng.integers(1, 120)) if rng.random() < DOOM else 0 for _ in range(4)),
        servers=count,
        sharing=float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        delay_s=float(rng.choice([0.0003, 0.002, 0.02])),
        doubling=float(rng.choice([0.0, 0.0, 0.2])),
        # Drawn apart: the stories without it stay as they were.
        audit=float(generator(seed, Purpose.SIMULATE, layer=6).choice(AUDITS)),
        ships=bool(generator(seed, Purpose.SIMULATE, layer=7).random() < SHIPPING),
        checkpoint_every=int(rng.integers(1, 4)),
        keep=int(rng.integers(1, 3)),
        happenings=_happenings(rng),
    )
    return replace(story, steps=steps)


def _happenings(rng: np.random.Generator) -> tuple[ScheduledFault, ...]:
    faults, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()))
    found = [
        ScheduledFault(
            fault=faults[int(rng.choice(len(faults), p=weights / weights.sum()))],
            # Most of them early: a calm run has a hundred events.
            event=int(LAST_EVENT * float(rng.random()) ** 2),
            target=int(rng.integers(0, 60)),
            seconds=float(0.01 * 1000 ** rng.random()),
            fuse=int(rng.integers(1, 30)),
            ways=str(rng.choice(["up", "down", "both"])),
        )
        for _ in range(int(rng.integers(0, MOST_FAULTS + 1)))
    ]
    return tuple(sorted(found, key=lambda it: it.event))

"""Lives of a run's processes in virtual time, with faults drawn from a seed: what should run, runs in the end."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from lockstep.common.statemachine.machine import TimePassed
from lockstep.launch.supervision.supervisor import (
    GRACE_S,
    SERVER,
    STANDBY,
    EndSupervision,
    FilesSeen,
    FollowStandby,
    ProcessesEnded,
    ProcessPlace,
    Role,
    RunEnd,
    RunStarted,
    RunSupervisor,
    ServerListens,
    StartProcess,
    StatusSeen,
    StopProcess,
    SupervisorConfig,
    SupervisorEffect,
    SupervisorEvent,
)
from lockstep.launch.supervision.worker_supervisor import MOST_S, ProcessEnd

#: Seconds between two looks, and in which a server that misses a shard ends by itself, if it does.
LOOK_S, NOTICED_S = 0.1, 0.5

#: Looks with faults, and looks after the last one within which all is well again.
FAULTY, CALM = 600, round((MOST_S + 2 * GRACE_S) / LOOK_S)

KILLED = ProcessEnd(code=-9)


@dataclass
class Launched:
    """The processes of a run, each of which is only known to run or to have ended."""

    config: SupervisorConfig
    rng: random.Random
    #: Whether a server ends by itself if it misses a shard, without a checkpoint to resume from.
    ends_itself: bool
    now: float = 0.0
    steps: int = 0
    #: How the processes that were started and not replaced have ended, None for those that run.
    processes: dict[ProcessPlace, ProcessEnd | None] = field(default_factory=dict)
    unseen: set[ProcessPlace] = field(default_factory=set)
    outcome: EndSupervision | None = None
    #: Since when the server misses a shard.
    missing_since: float | None = None
    #: The step of the first checkpoint.
    checkpoint: int = 0

    @property
    def has_checkpoint(self) -> bool:
        return self.steps >= self.checkpoint

    def __post_init__(self) -> None:
        self.supervisor = RunSupervisor(self.config, self.look)

    def look(self) -> FilesSeen:
        is_there = self.has_checkpoint
        return FilesSeen(has_begun=True, has_result=False, has_checkpoint=is_there, standby_can_lead=is_there)

    def happened(self, event: SupervisorEvent) -> None:
        pending = [event]
        while pending:
            for effect in self.supervisor.handle(pending.pop(0), self.now):
                pending += self.perform(effect)

    def perform(self, effect: SupervisorEffect) -> Iterator[SupervisorEvent]:
        match effect:
            case StartProcess(place=place):
                assert self.processes.get(place, KILLED) is not None, f"{place} is started while it runs"
                self.processes[place] = None
                self.unseen.discard(place)
                if place == SERVER and self.rng.random() < 0.1:
                    # Killed before it listens.
                    self.processes[SERVER] = KILLED
                    yield ProcessesEnded(ends={SERVER: KILLED})
                elif place == SERVER:
                    yield ServerListens(is_elsewhere=not any(at.role is Role.WORKER for at in self.processes))
            case StopProcess(place=place):
                self.end(place, KILLED)
            case FollowStandby():
                self.processes[SERVER] = self.processes.pop(STANDBY)
            case EndSupervision():
                self.outcome = effect
            case _:
                pass

    def end(self, place: ProcessPlace, end: ProcessEnd) -> None:
        if place in self.processes and self.processes[place] is None:
            self.processes[place] = end
            self.unseen.add(place)

    def runs(self, *roles: Role) -> bool:
        found = [end is None for place, end in self.processes.items() if place.role in roles]
        return all(found)

    def turn(self) -> None:
        """Let a moment pass, in which the run makes a step if its processes are there."""
        self.now += LOOK_S
        self.fail_without_shard()
        ends = {place: end for place in self.unseen if (end := self.processes[place]) is not None}
        self.unseen.clear()
        self.happened(ProcessesEnded(ends=ends))
        if self.processes[SERVER] is None:
            if self.runs(Role.SERVER, Role.SHARD, Role.WORKER):
                self.steps += 1
            self.happened(StatusSeen(is_answered=True, steps=self.steps))
        self.happened(TimePassed())

    def fail_without_shard(self) -> None:
        """Let a server end that has missed a shard for a while, and has no checkpoint."""
        if self.runs(Role.SHARD) or self.has_checkpoint or self.processes[SERVER] is not None:
            self.missing_since = None
            return
        self.missing_since = self.now if self.missing_since is None else self.missing_since
        if self.ends_itself and self.now >= self.missing_since + NOTICED_S:
            self.end(SERVER, ProcessEnd(code=1, has_reported=True))


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_killed_all_processes_run_again_as_long_as_the_run_gets_further(seed: int) -> None:
    rng = random.Random(seed)
    config = SupervisorConfig(
        workers=rng.choice([1, 3]), shards=rng.choice([0, 2]), has_standby=rng.random() < 0.3, max_restarts=10
    )
    run = Launched(config, rng, ends_itself=rng.random() < 0.5, checkpoint=rng.choice([0, 20, 10**6]))
    run.happened(RunStarted())
    for _ in range(FAULTY):
        # Now and then many at once, as a machine without memory does it.
        share = rng.choice([0.0] * 60 + [0.1] * 3 + [0.7])
        for place in [place for place in run.processes if rng.random() < share]:
            run.end(place, KILLED)
        run.turn()
    assert run.outcome is None, "a run that gets further is not given up"
    for _ in range(CALM):
        run.turn()
    steps = run.steps
    run.turn()
    assert run.runs(Role.SERVER, Role.SHARD, Role.WORKER)
    assert run.steps == steps + 1


@pytest.mark.parametrize("seed", range(20))
def test_what_ends_at_its_start_each_time_is_given_up_in_the_end(seed: int) -> None:
    run = Launched(SupervisorConfig(workers=2, shards=1, max_restarts=3), random.Random(seed), ends_itself=True)
    run.happened(RunStarted())
    for _ in range(FAULTY):
        run.end(SERVER, KILLED)
        run.turn()
        if run.outcome is not None:
            break
    assert run.outcome is not None
    assert run.outcome.end is RunEnd.SERVER

"""What a run's supervisor makes of the ends of its processes, in virtual time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.launch.supervision.restarts import (
    FIRST_S,
    INTERRUPTED,
    SERVER,
    STEADY_S,
    USAGE,
    ProcessEnd,
    ProcessPlace,
    Role,
)
from lockstep.launch.supervision.supervisor import (
    GRACE_S,
    Outlook,
    RunEnd,
    RunSupervisor,
)
from lockstep.ps.coordinator.transitions import RunPhase

#: What a supervisor has done to a place, and the consequence that it has reported.
Action = tuple[str, ProcessPlace, Outlook | None]

WORKERS = [ProcessPlace(Role.WORKER, number) for number in range(2)]
SHARDS = [ProcessPlace(Role.SHARD, number) for number in (1, 2)]

KILLED, CRASHED, DONE = ProcessEnd(code=-9), ProcessEnd(code=-4), ProcessEnd(code=0)
INTERRUPT = ProcessEnd(code=INTERRUPTED, has_reported=True)
FAILED, REFUSED = ProcessEnd(code=1, has_reported=True), ProcessEnd(code=USAGE, has_reported=True)
SILENT = ProcessEnd(code=1)


BEGUN = Status(run="run", phase=RunPhase.TRAINING.value, step=0, steps=100, min_workers=2)
BEFORE = msgspec.structs.replace(BEGUN, phase=RunPhase.AWAITING_WORKERS.value)


class Scene:
    """A supervisor, and its processes: the actions, what the run's files show, and the time."""

    def __init__(self, *, has_result: bool = False, has_external_workers: bool = False, **options: Any) -> None:
        self.is_finished, self.now, self.actions = has_result, 0.0, list[Action]()
        launch = RunOptions(**{"workers": 2, **options})
        self.supervisor = RunSupervisor(launch, self, launch.workers, has_external_workers=has_external_workers)

    def start(self, place: ProcessPlace) -> None:
        self.actions.append(("start", place, None))

    def stop(self, place: ProcessPlace) -> None:
        self.actions.append(("stop", place, None))

    def report(self, place: ProcessPlace, outlook: Outlook, delay_s: float) -> None:
        self.actions.append(("report", place, outlook))

    def has_result(self) -> bool:
        return self.is_finished

    def told(self, tell: Callable[[float], None]) -> list[Action]:
        """Return what the supervisor does once it is told something."""
        self.actions = []
        tell(self.now)
        return self.actions

    def listens(self, *, is_elsewhere: bool = False) -> list[Action]:
        return self.told(partial(self.supervisor.on_listening, is_elsewhere=is_elsewhere))

    def served(self) -> "Scene":
        self.told(self.supervisor.begin)
        self.listens(is_elsewhere=True)
        return self

    def ends(self, ends: dict[ProcessPlace, ProcessEnd]) -> list[Action]:
        return self.told(partial(self.supervisor.on_ends, ends))

    def ended(self, *places: ProcessPlace, end: ProcessEnd) -> list[Action]:
        return self.ends(dict.fromkeys(places, end))

    def seen(self, **status: Any) -> list[Action]:
        return self.told(lambda now: self.supervisor.on_status(msgspec.structs.replace(BEGUN, **status)))

    def after(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.told(self.supervisor.on_time)

    def is_over(self, end: RunEnd, cause: ProcessPlace = SERVER) -> bool:
        return (self.supervisor.end, self.supervisor.cause) == (end, cause)


def deaths(actions: list[Action]) -> list[tuple[ProcessPlace, Outlook]]:
    return [(place, outlook) for _, place, outlook in actions if outlook is not None]


def starts(actions: list[Action], action: str = "start") -> list[ProcessPlace]:
    return [place for done, place, _ in actions if done == action]


def test_all_are_started_once_the_server_listens() -> None:
    scene = Scene(servers=3)
    assert starts(scene.told(scene.supervisor.begin)) == [SERVER]
    assert starts(scene.listens(is_elsewhere=True)) == [*SHARDS, *WORKERS]


@pytest.mark.parametrize(
    ("end", "status", "has_result", "expected"),
    [
        (KILLED, BEGUN, False, None),
        (SILENT, BEGUN, False, None),
        # By somebody: an interrupt of the run's own process ends that first.
        (INTERRUPT, BEGUN, False, None),
        (CRASHED, BEGUN, False, None),
        (CRASHED, BEFORE, False, RunEnd.CRASH),
        # To be killed is no crash.
        (KILLED, BEFORE, False, None),
        (FAILED, BEGUN, False, RunEnd.SERVER),
        (REFUSED, BEGUN, False, RunEnd.SERVER),
        (DONE, BEGUN, False, RunEnd.RESULT),
        (KILLED, BEGUN, True, RunEnd.RESULT),
    ],
)
def test_a_server_is_restarted_if_it_was_killed_and_not_if_it_would_end_so_again(
    end: ProcessEnd, status: Status, has_result: bool, expected: RunEnd | None
) -> None:
    scene = Scene(has_result=has_result).served()
    scene.supervisor.on_status(status)
    actions = scene.ended(SERVER, end=end)
    if expected is not None:
        assert not actions
        assert scene.is_over(expected)
        return
    assert deaths(actions) == [(SERVER, Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SERVER]
    # Its workers know where it is.
    assert starts(scene.listens()) == []


def test_a_server_that_is_killed_before_it_listens_begins_as_the_first() -> None:
    scene = Scene()
    scene.told(scene.supervisor.begin)
    scene.ended(SERVER, end=KILLED)
    assert starts(scene.after(FIRST_S)) == [SERVER]
    assert starts(scene.listens(is_elsewhere=True)) == WORKERS


def test_a_server_that_is_killed_again_and_again_is_given_up_unless_the_run_gets_further() -> None:
    for steps_each, lives in ((0, 4), (1, 20)):
        scene = Scene().served()
        for life in range(lives - 1):
            scene.seen(step=life * steps_each)
            scene.now += 3.0
            assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]
            assert starts(scene.after(10.0)) == [SERVER]
            scene.listens()
        scene.now += 3.0
        last = scene.ended(SERVER, end=KILLED)
        assert not last and scene.is_over(RunEnd.SERVER) if not steps_each else starts(scene.after(10.0)) == [SERVER]


def test_steps_that_an_earlier_server_had_made_already_are_no_progress() -> None:
    scene = Scene().served()
    for _ in range(3):
        scene.seen(step=7)
        scene.ended(SERVER, end=KILLED)
        scene.after(10.0)
        scene.listens()
        scene.seen(step=4)
    # The first death came after progress, so that it is not counted with the others.
    scene.ended(SERVER, end=KILLED)
    assert scene.is_over(RunEnd.SERVER)


# Shards


def test_a_shard_that_was_killed_is_restarted_alone_and_not_for_ever() -> None:
    scene = Scene(servers=3).served()
    assert deaths(scene.ended(SHARDS[1], end=KILLED)) == [(SHARDS[1], Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SHARDS[1]]
    for _ in range(2):
        scene.ended(SHARDS[1], end=KILLED)
        scene.after(10.0)
    scene.ended(SHARDS[1], end=KILLED)
    assert scene.is_over(RunEnd.SHARD_KILLED, SHARDS[1])


def test_a_server_is_restarted_with_all_its_shards_once_it_listens() -> None:
    scene = Scene(servers=3).served()
    actions = scene.ends({SERVER: KILLED, SHARDS[1]: KILLED})
    assert (deaths(actions), starts(actions, "stop")) == ([(SERVER, Outlook.RESTARTED)], SHARDS)
    assert scene.ended(SHARDS[0], end=KILLED) == []
    assert starts(scene.after(FIRST_S)) == [SERVER]
    assert starts(scene.listens()) == SHARDS


def test_a_shard_that_fails_ends_the_run_if_its_server_does_not_say_why() -> None:
    scene = Scene(servers=3).served()
    assert scene.ended(SHARDS[1], end=FAILED) == []
    scene.after(GRACE_S)
    assert scene.is_over(RunEnd.SHARD_FAILED, SHARDS[1])
    scene = Scene(servers=3).served()
    scene.ended(SHARDS[1], end=CRASHED)
    assert scene.is_over(RunEnd.CRASH, SHARDS[1])


def test_why_a_run_without_restarts_fails_is_the_shard_that_is_gone() -> None:
    scene = Scene(servers=2, max_restarts=0).served()
    scene.ended(SHARDS[0], end=KILLED)
    assert scene.is_over(RunEnd.SHARD_KILLED, SHARDS[0])


# Workers


def test_a_worker_that_was_killed_is_restarted_and_the_others_stay() -> None:
    scene = Scene().served()
    assert deaths(scene.ended(WORKERS[1], end=KILLED)) == [(WORKERS[1], Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [WORKERS[1]]


def test_what_a_server_says_that_ends_a_moment_after_its_workers_is_the_reason() -> None:
    scene = Scene().served()
    assert scene.ended(WORKERS[0], end=FAILED) == []
    scene.now += GRACE_S / 2
    scene.ended(SERVER, end=FAILED)
    assert scene.is_over(RunEnd.SERVER)
    # If it does not end, the worker's end is its own.
    scene = Scene().served()
    scene.ended(WORKERS[0], end=FAILED)
    assert deaths(scene.after(GRACE_S)) == [(WORKERS[0], Outlook.RESTARTED)]


def test_workers_that_end_with_a_server_that_was_killed_are_back_with_it() -> None:
    scene = Scene().served()
    scene.ends({SERVER: KILLED, WORKERS[0]: FAILED, WORKERS[1]: KILLED})
    assert sorted(starts(scene.after(FIRST_S)), key=str) == sorted([SERVER, *WORKERS], key=str)


@pytest.mark.parametrize(
    ("end", "status", "expected"),
    [
        (CRASHED, BEFORE, RunEnd.CRASH),
        (CRASHED, BEGUN, None),
        (REFUSED, BEFORE, RunEnd.NOT_ALL_WORKERS),
        (REFUSED, BEGUN, None),
        # If the server does not answer, nothing is known.
        (CRASHED, None, None),
        (REFUSED, None, None),
        # A run that is continued without one that was evicted, or after the death of its server.
        (REFUSED, msgspec.structs.replace(BEFORE, min_workers=1), None),
    ],
)
def test_a_run_that_has_not_begun_needs_all_its_workers_and_does_not_restart_one_that_crashes(
    end: ProcessEnd, status: Status | None, expected: RunEnd | None
) -> None:
    scene = Scene().served()
    scene.supervisor.on_status(status)
    actions = [*scene.ended(WORKERS[0], end=end), *scene.after(GRACE_S)]
    assert scene.supervisor.end is expected
    outlook = Outlook.RESTARTED if end is CRASHED else Outlook.GIVEN_UP
    assert deaths(actions) == ([(WORKERS[0], outlook)] if expected is None else [])


def test_a_worker_that_is_lost_before_the_server_answers_is_missed_once_it_does() -> None:
    scene = Scene().served()
    assert deaths([*scene.ended(WORKERS[0], end=REFUSED), *scene.after(GRACE_S)]) == [(WORKERS[0], Outlook.GIVEN_UP)]
    scene.seen(phase=BEFORE.phase, min_workers=1)
    scene.after(0.0)
    assert scene.supervisor.end is None
    scene.seen(phase=BEFORE.phase)
    scene.after(0.0)
    assert scene.is_over(RunEnd.NOT_ALL_WORKERS, WORKERS[0])


@pytest.mark.parametrize("has_external_workers", [True, False])
def test_a_run_without_any_worker_is_hopeless_unless_others_take_part(has_external_workers: bool) -> None:
    scene = Scene(max_restarts=0, has_external_workers=has_external_workers).served()
    scene.seen(step=1)
    assert deaths(scene.ended(WORKERS[0], end=KILLED)) == [(WORKERS[0], Outlook.GIVEN_UP)]
    scene.ended(WORKERS[1], end=KILLED)
    assert scene.is_over(RunEnd.NO_WORKER, WORKERS[1]) is not has_external_workers


def test_workers_start_again_where_a_server_listens_elsewhere() -> None:
    scene = Scene().served()
    scene.ended(SERVER, end=KILLED)
    scene.after(STEADY_S)
    actions = scene.listens(is_elsewhere=True)
    assert starts(actions, "stop") == starts(actions) == WORKERS


def test_nothing_follows_once_the_run_is_over() -> None:
    scene = Scene(max_restarts=0).served()
    scene.ended(SERVER, end=KILLED)
    assert scene.is_over(RunEnd.SERVER)
    assert scene.ended(*WORKERS, end=KILLED) == []
    assert scene.after(STEADY_S) == []

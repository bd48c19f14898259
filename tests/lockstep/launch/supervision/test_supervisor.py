"""What a run's supervisor makes of the ends of its processes, in virtual time."""

from typing import Any

import msgspec
import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.statemachine.machine import Started, TimePassed
from lockstep.launch.supervision.restarts import (
    FIRST_S,
    INTERRUPTED,
    SERVER,
    STANDBY,
    STEADY_S,
    USAGE,
    ProcessEnd,
    ProcessPlace,
    Role,
)
from lockstep.launch.supervision.supervisor import (
    GRACE_S,
    LATE_S,
    TRANSITIONS,
    EndSupervision,
    FilesSeen,
    Outlook,
    ProcessesEnded,
    PromoteStandby,
    ReportDeath,
    RunEnd,
    RunSupervisor,
    ServerListens,
    StartProcess,
    StatusSeen,
    StopProcess,
    SupervisorEffect,
    SupervisorEvent,
    SupervisorPhase,
)

WORKERS = [ProcessPlace(Role.WORKER, number) for number in range(2)]
SHARDS = [ProcessPlace(Role.SHARD, number) for number in (1, 2)]

KILLED, CRASHED, DONE = ProcessEnd(code=-9), ProcessEnd(code=-4), ProcessEnd(code=0)
INTERRUPT = ProcessEnd(code=INTERRUPTED, has_reported=True)
FAILED, REFUSED = ProcessEnd(code=1, has_reported=True), ProcessEnd(code=USAGE, has_reported=True)
SILENT = ProcessEnd(code=1)

NEW = FilesSeen(has_begun=False, has_result=False, has_checkpoint=False)
BEGUN = msgspec.structs.replace(NEW, has_begun=True)
RESUMABLE = msgspec.structs.replace(BEGUN, has_checkpoint=True)

BEFORE = StatusSeen(is_answered=True, is_before=True)


class Scene:
    """A supervisor, what the run's files show, and the time."""

    def __init__(self, files: FilesSeen = BEGUN, has_external_workers: bool = False, **options: Any) -> None:
        self.files, self.now = files, 0.0
        launch = RunOptions(**{"workers": 2, **options})
        self.supervisor = RunSupervisor(launch, lambda: self.files, has_external_workers=has_external_workers)

    def happened(self, event: SupervisorEvent) -> list[SupervisorEffect]:
        return self.supervisor.handle(event, self.now)

    def served(self) -> "Scene":
        """Start everything."""
        self.happened(Started())
        self.happened(ServerListens(is_elsewhere=True))
        return self

    def ended(self, *places: ProcessPlace, end: ProcessEnd) -> list[SupervisorEffect]:
        return self.happened(ProcessesEnded(ends=dict.fromkeys(places, end)))

    def stepped(self, steps: int) -> None:
        self.happened(StatusSeen(is_answered=True, steps=steps))

    def after(self, seconds: float) -> list[SupervisorEffect]:
        self.now += seconds
        return self.happened(TimePassed())


def over(end: RunEnd, place: ProcessPlace = SERVER) -> list[SupervisorEffect]:
    return [EndSupervision(end=end, place=place)]


def deaths(effects: list[SupervisorEffect]) -> list[tuple[ProcessPlace, Outlook]]:
    return [(effect.place, effect.outlook) for effect in effects if isinstance(effect, ReportDeath)]


def starts(effects: list[SupervisorEffect]) -> list[ProcessPlace]:
    return [effect.place for effect in effects if isinstance(effect, StartProcess)]


def test_every_phase_can_be_reached_and_what_is_over_stays_so() -> None:
    assert {phase for targets in TRANSITIONS.values() for phase in targets or ()} == set(SupervisorPhase)
    assert not any(targets for (phase, _), targets in TRANSITIONS.items() if phase is SupervisorPhase.OVER)
    with pytest.raises(ProtocolError, match="not a transition"):
        Scene().served().happened(Started())


def test_all_are_started_once_the_server_listens() -> None:
    scene = Scene(servers=3, standby=True)
    assert starts(scene.happened(Started())) == [SERVER]
    assert starts(scene.happened(ServerListens(is_elsewhere=True))) == [*SHARDS, *WORKERS, STANDBY]


@pytest.mark.parametrize(
    ("end", "files", "expected"),
    [
        (KILLED, BEGUN, None),
        (SILENT, BEGUN, None),
        # By somebody: an interrupt of the run's own process ends that first.
        (INTERRUPT, BEGUN, None),
        (CRASHED, BEGUN, None),
        (CRASHED, NEW, RunEnd.CRASH),
        # To be killed is no crash.
        (KILLED, NEW, None),
        (FAILED, BEGUN, RunEnd.SERVER),
        (REFUSED, BEGUN, RunEnd.SERVER),
        (DONE, BEGUN, RunEnd.RESULT),
        (KILLED, msgspec.structs.replace(BEGUN, has_result=True), RunEnd.RESULT),
    ],
)
def test_a_server_is_restarted_if_it_was_killed_and_not_if_it_would_end_so_again(
    end: ProcessEnd, files: FilesSeen, expected: RunEnd | None
) -> None:
    scene = Scene(files).served()
    effects = scene.ended(SERVER, end=end)
    if expected is not None:
        assert effects == over(expected)
        return
    assert deaths(effects) == [(SERVER, Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SERVER]
    # Its workers know where it is.
    assert starts(scene.happened(ServerListens(is_elsewhere=False))) == []
    assert scene.supervisor.is_second


def test_a_server_that_is_killed_before_it_listens_begins_as_the_first() -> None:
    scene = Scene(NEW)
    scene.happened(Started())
    scene.ended(SERVER, end=KILLED)
    assert starts(scene.after(FIRST_S)) == [SERVER]
    assert not scene.supervisor.is_second
    assert starts(scene.happened(ServerListens(is_elsewhere=True))) == WORKERS


def test_a_server_that_is_killed_again_and_again_is_given_up_unless_the_run_gets_further() -> None:
    for steps_each, lives in ((0, 4), (1, 20)):
        scene = Scene().served()
        for life in range(lives - 1):
            scene.stepped(life * steps_each)
            scene.now += 3.0
            assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]
            assert starts(scene.after(10.0)) == [SERVER]
            scene.happened(ServerListens(is_elsewhere=False))
        scene.now += 3.0
        last = scene.ended(SERVER, end=KILLED)
        assert last == over(RunEnd.SERVER) if not steps_each else starts(scene.after(10.0)) == [SERVER]


def test_steps_that_an_earlier_server_had_made_already_are_no_progress() -> None:
    scene = Scene().served()
    for _ in range(3):
        scene.stepped(7)
        scene.ended(SERVER, end=KILLED)
        scene.after(10.0)
        scene.happened(ServerListens(is_elsewhere=False))
        scene.stepped(4)
    # The first death came after progress, so that it is not counted with the others.
    scene.ended(SERVER, end=KILLED)
    assert scene.supervisor.phase is SupervisorPhase.OVER


# Shards


def test_a_shard_that_was_killed_is_restarted_alone_if_there_is_a_checkpoint() -> None:
    scene = Scene(RESUMABLE, servers=3).served()
    assert deaths(scene.ended(SHARDS[1], end=KILLED)) == [(SHARDS[1], Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SHARDS[1]]
    for _ in range(2):
        scene.ended(SHARDS[1], end=KILLED)
        scene.after(10.0)
    assert scene.ended(SHARDS[1], end=KILLED) == over(RunEnd.SHARD_KILLED, SHARDS[1])


def test_without_a_checkpoint_a_server_that_misses_a_killed_shard_is_restarted_with_all() -> None:
    scene = Scene(servers=3).served()
    assert scene.ended(SHARDS[0], end=KILLED) == []
    effects = scene.ended(SERVER, end=FAILED)
    assert deaths(effects) == [(SHARDS[0], Outlook.RESTARTED)]
    assert [effect.place for effect in effects if isinstance(effect, StopProcess)] == SHARDS
    scene.after(FIRST_S)
    assert starts(scene.happened(ServerListens(is_elsewhere=False))) == SHARDS


def test_a_server_and_its_shard_that_end_together_are_restarted_together() -> None:
    scene = Scene(RESUMABLE, servers=3).served()
    effects = scene.happened(ProcessesEnded(ends={SERVER: FAILED, SHARDS[1]: KILLED}))
    assert deaths(effects) == [(SHARDS[1], Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SERVER]


def test_a_server_that_misses_a_shard_is_ended_if_it_does_not_end_by_itself() -> None:
    scene = Scene(servers=3).served()
    scene.ended(SHARDS[0], end=KILLED)
    assert scene.after(GRACE_S - 0.1) == []
    assert scene.after(0.1) == [StopProcess(place=SERVER)]
    assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]


def test_a_shard_that_fails_ends_the_run_if_its_server_does_not_say_why() -> None:
    scene = Scene(RESUMABLE, servers=3).served()
    assert scene.ended(SHARDS[1], end=FAILED) == []
    assert scene.after(GRACE_S) == over(RunEnd.SHARD_FAILED, SHARDS[1])
    scene = Scene(NEW, servers=3).served()
    assert scene.ended(SHARDS[1], end=CRASHED) == over(RunEnd.CRASH, SHARDS[1])


def test_why_a_run_without_restarts_fails_is_the_shard_that_is_gone() -> None:
    scene = Scene(servers=2, max_restarts=0).served()
    scene.ended(SHARDS[0], end=KILLED)
    assert scene.ended(SERVER, end=FAILED) == over(RunEnd.SHARD_KILLED, SHARDS[0])


# The standby

MIRRORS, CAN_LEAD = BEGUN, msgspec.structs.replace(BEGUN, standby_can_lead=True)
FOLLOWED = [(SERVER, Outlook.STANDBY)]
LEADS = msgspec.structs.replace(CAN_LEAD, standby_leads=True)


@pytest.mark.parametrize(
    ("end", "files", "is_followed"),
    [
        (KILLED, MIRRORS, False),
        (KILLED, CAN_LEAD, True),
        (KILLED, LEADS, True),
        # It has told its standby that the run is over.
        (INTERRUPT, CAN_LEAD, False),
        (INTERRUPT, LEADS, True),
        # It has handed the run over, or found that its standby leads.
        (DONE, CAN_LEAD, True),
        (FAILED, LEADS, True),
        (REFUSED, LEADS, True),
        # It has failed.
        (DONE, MIRRORS, False),
        (FAILED, CAN_LEAD, False),
        (REFUSED, MIRRORS, False),
    ],
)
def test_a_server_that_ends_is_followed_to_a_standby_that_leads_or_can(
    end: ProcessEnd, files: FilesSeen, is_followed: bool
) -> None:
    scene = Scene(files, standby=True).served()
    effects = scene.ended(SERVER, end=end)
    assert (deaths(effects) == FOLLOWED) == is_followed
    if is_followed:
        # It is the server now, and there is no other.
        assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]


def test_a_standby_that_was_not_started_is_not_followed_whatever_an_earlier_one_has_left() -> None:
    scene = Scene(CAN_LEAD, standby=True)
    scene.happened(Started())
    assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]


@pytest.mark.parametrize(
    ("end", "outlook"), [(KILLED, Outlook.RESTARTED), (FAILED, Outlook.RESTARTED), (REFUSED, Outlook.GIVEN_UP)]
)
def test_a_standby_that_has_died_is_restarted_and_not_followed_meanwhile(end: ProcessEnd, outlook: Outlook) -> None:
    scene = Scene(CAN_LEAD, standby=True).served()
    assert deaths(scene.ended(STANDBY, end=end)) == [(STANDBY, outlook)]
    is_back = outlook is Outlook.RESTARTED
    assert starts(scene.after(FIRST_S)) == [STANDBY] * is_back
    assert (deaths(scene.ended(SERVER, end=KILLED)) == FOLLOWED) is is_back


def test_a_standby_whose_run_is_over_is_not_restarted() -> None:
    scene = Scene(CAN_LEAD, standby=True).served()
    assert scene.ended(STANDBY, end=DONE) == []
    assert starts(scene.after(STEADY_S)) == []
    assert deaths(scene.ended(SERVER, end=KILLED)) != FOLLOWED


def test_a_standby_that_leads_and_dies_is_restarted_as_the_server_and_the_old_one_is_ended() -> None:
    scene = Scene(LEADS, standby=True).served()
    stopped, *effects = scene.ended(STANDBY, end=KILLED)
    assert (stopped, deaths(effects)) == (StopProcess(place=SERVER), FOLLOWED)
    # Its end is seen again, as that of the server, whose place it has.
    assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [SERVER]


def test_a_standby_that_leads_and_dies_with_the_old_server_is_restarted_as_the_server() -> None:
    scene = Scene(LEADS, standby=True).served()
    assert deaths(scene.ended(SERVER, STANDBY, end=KILLED)) == FOLLOWED
    assert deaths(scene.ended(SERVER, end=KILLED)) == [(SERVER, Outlook.RESTARTED)]


def test_a_standby_that_dies_with_its_server_is_restarted_with_it_and_not_for_ever() -> None:
    scene = Scene(CAN_LEAD, standby=True, max_restarts=1).served()
    effects = scene.ended(SERVER, STANDBY, end=KILLED)
    assert deaths(effects) == [(SERVER, Outlook.RESTARTED), (STANDBY, Outlook.RESTARTED)]
    started = [*starts(scene.after(FIRST_S)), *starts(scene.after(FIRST_S))]
    assert sorted(started, key=str) == [SERVER, STANDBY]
    assert deaths(scene.ended(STANDBY, end=KILLED)) == [(STANDBY, Outlook.GIVEN_UP)]


def test_a_shard_that_is_gone_when_the_standby_takes_over_joins_that() -> None:
    scene = Scene(CAN_LEAD, standby=True, servers=3).served()
    scene.ended(SHARDS[1], end=KILLED)
    assert deaths(scene.ended(SERVER, end=KILLED)) == FOLLOWED
    assert starts(scene.after(0.0)) == [SHARDS[1]]


def test_a_standby_whose_workers_had_the_time_to_ask_for_it_is_to_lead() -> None:
    scene = Scene(CAN_LEAD, standby=True, takeover_seconds=2.0).served()
    waiting = StatusSeen(is_answered=True, is_standby=True)
    scene.now = 2.0 + LATE_S
    assert scene.happened(StatusSeen(is_answered=True)) == []
    assert scene.happened(waiting) == [PromoteStandby()]
    # Not again and again.
    assert scene.happened(waiting) == []


# Workers


def test_a_worker_that_was_killed_is_restarted_and_the_others_stay() -> None:
    scene = Scene().served()
    assert deaths(scene.ended(WORKERS[1], end=KILLED)) == [(WORKERS[1], Outlook.RESTARTED)]
    assert starts(scene.after(FIRST_S)) == [WORKERS[1]]


def test_what_a_server_says_that_ends_a_moment_after_its_workers_is_the_reason() -> None:
    scene = Scene().served()
    assert scene.ended(WORKERS[0], end=FAILED) == []
    scene.now += GRACE_S / 2
    assert scene.ended(SERVER, end=FAILED) == over(RunEnd.SERVER)
    # If it does not end, the worker's end is its own.
    scene = Scene().served()
    scene.ended(WORKERS[0], end=FAILED)
    assert deaths(scene.after(GRACE_S)) == [(WORKERS[0], Outlook.RESTARTED)]


def test_workers_that_end_with_a_server_that_was_killed_are_back_with_it() -> None:
    scene = Scene().served()
    scene.happened(ProcessesEnded(ends={SERVER: KILLED, WORKERS[0]: FAILED, WORKERS[1]: KILLED}))
    assert sorted(starts(scene.after(FIRST_S)), key=str) == sorted([SERVER, *WORKERS], key=str)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (BEFORE, over(RunEnd.CRASH, WORKERS[0])),
        (StatusSeen(is_answered=True), None),
        # If the server does not answer, nothing is known.
        (StatusSeen(is_answered=False), None),
    ],
)
def test_a_worker_that_crashes_before_the_run_has_begun_would_do_so_again(
    status: StatusSeen, expected: list[SupervisorEffect] | None
) -> None:
    scene = Scene().served()
    scene.happened(status)
    effects = scene.ended(WORKERS[0], end=CRASHED)
    if expected is None:
        assert deaths(effects) == [(WORKERS[0], Outlook.RESTARTED)]
    else:
        assert effects == expected


@pytest.mark.parametrize(
    ("status", "files", "is_needed"),
    [
        (BEFORE, BEGUN, True),
        (StatusSeen(is_answered=True), BEGUN, False),
        (StatusSeen(is_answered=False), BEGUN, False),
        # The run goes on without one that was evicted.
        (BEFORE, msgspec.structs.replace(BEGUN, has_evicted=True), False),
    ],
)
def test_a_run_that_has_not_begun_needs_all_its_workers(status: StatusSeen, files: FilesSeen, is_needed: bool) -> None:
    scene = Scene(files).served()
    scene.happened(status)
    scene.ended(WORKERS[0], end=REFUSED)
    effects = scene.after(GRACE_S)
    assert effects == over(RunEnd.NOT_ALL_WORKERS, WORKERS[0]) if is_needed else deaths(effects)


@pytest.mark.parametrize("has_external_workers", [True, False])
def test_a_run_without_any_worker_is_hopeless_unless_others_take_part(has_external_workers: bool) -> None:
    scene = Scene(max_restarts=0, has_external_workers=has_external_workers).served()
    scene.stepped(1)
    assert deaths(scene.ended(WORKERS[0], end=KILLED)) == [(WORKERS[0], Outlook.GIVEN_UP)]
    effects = scene.ended(WORKERS[1], end=KILLED)
    assert (effects == over(RunEnd.NO_WORKER, WORKERS[1])) is not has_external_workers


def test_workers_start_again_where_a_server_listens_elsewhere() -> None:
    scene = Scene().served()
    scene.ended(SERVER, end=KILLED)
    scene.after(STEADY_S)
    effects = scene.happened(ServerListens(is_elsewhere=True))
    assert effects[:2] == [StopProcess(place=place) for place in WORKERS]
    assert starts(effects) == WORKERS


def test_nothing_follows_once_the_run_is_over() -> None:
    scene = Scene(max_restarts=0).served()
    assert scene.ended(SERVER, end=KILLED) == over(RunEnd.SERVER)
    assert scene.ended(*WORKERS, end=KILLED) == []
    assert scene.after(STEADY_S) == []

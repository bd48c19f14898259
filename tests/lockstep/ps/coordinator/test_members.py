"""Workers come, are refused, stand by, fall silent and go."""

import math

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint_of
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Eviction,
    Finished,
    Join,
    Lease,
    Message,
    Ping,
    Refused,
    Result,
    Spare,
    Weights,
    Welcome,
)
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.statemachine.machine import ReportKind
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import STRANGER
from lockstep.ps.coordinator.effects import Report, Send
from lockstep.ps.coordinator.membership import PROBE_S
from lockstep.ps.coordinator.status import REMINDER_S
from lockstep.ps.coordinator.transitions import RunPhase
from tests.lockstep.ps.runs import (
    DIGEST,
    INTERRUPT,
    Drive,
    called,
    facts_of,
    join_of,
    kinds,
    messages,
    other_numerics,
    peer_of,
    said,
)


def test_a_join_of_another_run_is_refused_and_told_of() -> None:
    """Be it an old word said again, or a worker whose server was replaced: that may ask anew, as one of no run."""
    drive = Drive()
    replayed = msgspec.structs.replace(join_of(1), run="another")
    effects = drive.happen(events.Received(peer=peer_of(1), message=replayed))
    (refused,) = messages(effects)
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.OTHER_RUN
    assert f"asks for run 'another': this is run {drive.info.run!r}" in refused.reason
    assert f"refused a worker: {refused.reason}" in said(effects)
    assert drive.coordinator.membership.members == {}
    ours = msgspec.structs.replace(join_of(1), run=drive.info.run)
    assert kinds(drive.happen(events.Received(peer=peer_of(1), message=ours)), 1) == [Welcome]


def test_a_worker_is_welcomed_with_all_that_it_must_know() -> None:
    drive = Drive()
    effects = drive.join(1)
    info = drive.info
    welcome = Welcome(rank=0, run="test", job=info.job, layout=DIGEST, dataset=DIGEST, source="", options=info.options)
    assert messages(effects) == [welcome]
    assert "worker 0 (host host, pid 1) joined" in said(effects)


def test_a_doubled_join_is_ignored() -> None:
    drive = Drive()
    drive.join(1)
    assert drive.join(1) == []


@pytest.mark.parametrize(
    ("join", "text"),
    [
        (join_of(2, protocol=99), f"the worker speaks protocol 99, the server {PROTOCOL_VERSION}: install"),
        (join_of(2, numerics=other_numerics()), "at the server, 'Z80' there"),
        (join_of(1), "incarnation 'life-1' is worker 0 (host host, pid 1) already"),
    ],
    ids=["protocol", "numerics", "twin"],
)
def test_a_worker_is_refused_with_the_reason(join: Join, text: str) -> None:
    drive = Drive()
    drive.enter(1)
    effects = drive.happen(events.Received(peer=peer_of(2), message=join))
    (refused,) = messages(effects)
    assert isinstance(refused, Refused)
    assert text in refused.reason
    assert text in said(effects)
    assert len(drive.coordinator.membership.members) == 1


def joined(ours: Fingerprint, theirs: Fingerprint) -> Message:
    """Return what a worker is sent that shows one fingerprint to a server with another."""
    drive = Drive(replace(facts_of(), fingerprint=ours))
    (message,) = messages(drive.happen(events.Received(peer=peer_of(1), message=join_of(1, numerics=theirs))))
    return message


PORTABLE = fingerprint_of("portable")

#: Fields of a fingerprint in which machines and installations differ that have the same kernels.
ELSEWHERE = ("target", "numpy", "blas", "kernel", "features", "canary", "python", "libc")


@pytest.mark.parametrize("field", ELSEWHERE)
def test_any_machine_with_the_contracts_kernels_joins_a_portable_run(field: str) -> None:
    assert isinstance(joined(PORTABLE, msgspec.structs.replace(PORTABLE, **{field: "other"})), Welcome)


@pytest.mark.parametrize("mode", ["native", "portable"])
def test_a_worker_takes_the_numerics_of_the_run(mode: Numerics) -> None:
    other = fingerprint_of("portable" if mode == "native" else "native")
    assert isinstance(joined(fingerprint_of(mode), other), Welcome)


def test_a_machine_without_kernels_is_refused_where_the_run_is_portable() -> None:
    bare = msgspec.structs.replace(PORTABLE, kernels="", target="")
    assert isinstance(joined(fingerprint_of("native"), bare), Welcome)
    refused = joined(PORTABLE, bare)
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.NUMERICS
    assert "host 'host' has no kernels for the portable numerics of this run" in refused.reason


@pytest.mark.parametrize(
    ("mode", "field", "kind"),
    [
        ("portable", "kernels", RefusalKind.NUMERICS),
        ("portable", "draws", RefusalKind.NUMERICS),
        ("portable", "code", RefusalKind.VERSION),
        ("native", "canary", RefusalKind.NUMERICS),
        ("native", "features", RefusalKind.NUMERICS),
        ("native", "numpy", RefusalKind.VERSION),
    ],
)
def test_what_decides_the_bits_of_the_run_is_named_with_both_values(
    mode: Numerics, field: str, kind: RefusalKind
) -> None:
    ours = fingerprint_of(mode)
    refused = joined(ours, msgspec.structs.replace(ours, **{field: "other"}))
    assert isinstance(refused, Refused)
    assert refused.kind is kind
    assert f"{field} {getattr(ours, field)!r} at the server, 'other' there: use equal " in refused.reason


def test_a_worker_that_dials_again_before_its_welcome_came_is_taken_in() -> None:
    drive = Drive()
    drive.join(1)
    effects = drive.happen(events.Received(peer=peer_of(2), message=join_of(1)))
    (welcome,) = messages(effects)
    assert isinstance(welcome, Welcome)
    assert welcome.rank == 1
    assert "worker 0 (host host, pid 1) left: it connected again" in said(effects)
    assert list(drive.coordinator.membership.members) == [peer_of(2)]
    # What comes over the connection before is nobody's.
    assert kinds(drive.prepare(1)) == [Eviction]


def test_other_numerics_are_admitted_on_demand() -> None:
    drive = Drive(facts_of(is_mixed=True))
    join = join_of(1, numerics=other_numerics())
    assert kinds(drive.happen(events.Received(peer=peer_of(1), message=join))) == [Welcome]


def test_other_protocols_are_never_admitted() -> None:
    drive = Drive(facts_of(is_mixed=True))
    assert kinds(drive.happen(events.Received(peer=peer_of(1), message=join_of(1, protocol=98)))) == [Refused]


def test_a_run_begins_when_enough_workers_are_ready() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2)
    drive.join(3)
    assert not drive.coordinator.is_running()
    assert drive.leased() == []
    drive.prepare(3)
    assert drive.coordinator.is_running()
    assert {worker for worker, leases in drive.leases.items() if leases} == {1, 2, 3}


def test_workers_that_stand_by_count_among_those_to_begin_with() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=2), min_workers=3))
    drive.enter(1, 2, 3)
    assert drive.coordinator.phase is RunPhase.TRAINING


def test_ready_said_twice_or_by_a_stranger_changes_nothing() -> None:
    drive = Drive()
    drive.enter(1)
    assert drive.prepare(1) == []
    assert kinds(drive.prepare(9)) == [Eviction]
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=2)))
    drive.enter(1, 2, 3)
    assert drive.prepare(3) == []


def test_while_the_run_waits_it_calls_every_few_seconds() -> None:
    drive = Drive(facts_of(min_workers=2))
    text = "waiting for workers: 0 of 2 are ready"
    assert drive.happen(events.TimePassed()) == [Report(text=text, kind=ReportKind.REMINDER)]
    drive.enter(1)
    assert called(drive.pass_time(REMINDER_S - 0.01)) == []
    assert called(drive.pass_time(3 * REMINDER_S)) == ["waiting for workers: 1 of 2 are ready"] * 3
    drive.enter(2)
    assert called(drive.pass_time(3 * REMINDER_S)) == []


def test_a_run_waits_for_processes_of_whatever_teams() -> None:
    drive = Drive(facts_of(min_workers=4))
    assert kinds(drive.enter_team(1, processes=2)) == [Welcome]
    assert called(drive.pass_time(REMINDER_S)) == ["waiting for workers: 2 of 4 are ready"]
    drive.enter(2)
    effects = drive.enter_team(3, processes=16)
    assert Lease in kinds(effects)
    assert "team 2 (host host, pid 3, 16 workers) joined" in said(effects)
    assert (drive.coordinator.membership.most_prepared, drive.coordinator.membership.most_teams) == (19, 3)


def test_a_run_is_woken_at_once_to_say_that_it_waits() -> None:
    assert Drive().coordinator.deadline() == -math.inf


def test_a_run_that_lost_its_workers_calls_every_few_seconds() -> None:
    drive = Drive()
    drive.enter(1, 2)
    assert called(drive.leave(1)) == []
    assert called(drive.leave(2)) == ["waiting for a worker: none is left"]
    assert called(drive.pass_time(2 * REMINDER_S)) == ["waiting for a worker: none is left"] * 2
    assert drive.coordinator.status(drive.now).waiting == "waiting for a worker: none is left"
    assert Lease in kinds(drive.enter(3))
    assert called(drive.pass_time(2 * REMINDER_S)) == []


def test_silent_workers_do_not_make_the_calls_more_frequent() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2, 3)
    drive.pass_time(60.0)
    assert len(called(drive.pass_time(10 * REMINDER_S))) == 10


def test_a_worker_that_comes_in_the_middle_gets_the_weights_and_then_work() -> None:
    drive = Drive()
    drive.enter(1)
    drive.finish_round()
    drive.join(2)
    drive.leave(1)
    effects = drive.prepare(2)
    (lease,) = messages(effects, 2)
    assert isinstance(lease, Lease)
    assert lease.step == 1
    assert effects[0] == Send(peer=peer_of(2), message=lease)


def test_a_worker_that_comes_during_the_evaluation_helps_with_it() -> None:
    drive = Drive(facts_of(test_samples=2000))
    drive.enter(1, 2)
    for _ in range(3):
        drive.finish_round()
    assert drive.coordinator.phase is RunPhase.EVALUATING
    drive.leave(2)
    effects = drive.enter(3)
    (lease, *_) = [message for message in messages(effects, 3) if isinstance(message, Lease)]
    assert (lease.work, lease.step) == ("evaluate", 3)


def test_more_workers_than_micro_batches_stand_by_and_are_told() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=2), min_workers=2))
    drive.enter(1, 2)
    effects = drive.enter(3)
    assert kinds(effects, 3) == [Welcome, Spare]
    assert "2 micro-batches keep 2 workers busy" in said(effects)
    states = {worker.pid: worker.state for worker in drive.coordinator.status(drive.now).workers}
    assert states == {1: "computing", 2: "computing", 3: "spare"}


@pytest.mark.parametrize("how", ["leaves", "falls silent"])
def test_a_worker_that_stands_by_takes_the_place_of_one_that_goes(how: str) -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=2), min_workers=2))
    drive.enter(1, 2, 3)
    if how == "leaves":
        effects = drive.leave(1)
    else:
        drive.pass_time(30.0)
        drive.answer(2)
        effects = drive.pass_time(31.0)
    assert "worker 2 (host host, pid 3) is no longer a spare" in said(effects)
    assert Lease in kinds(effects + drive.finish_round(), 3)


def test_a_worker_heard_again_after_its_place_was_taken_stands_by() -> None:
    drive = Drive(facts_of(Job(model="linear", global_batch=16, micro_batches=2), min_workers=2))
    drive.enter(1, 2, 3)
    drive.pass_time(30.0)
    drive.answer(2)
    drive.pass_time(31.0)
    assert Spare in kinds(drive.answer(1), 1)


def test_what_a_worker_held_goes_to_others_when_it_leaves() -> None:
    drive = Drive()
    drive.enter(1)
    assert drive.leased() == [Node(0, 4)]
    drive.enter(2)
    effects = drive.leave(1, "its connection is gone")
    assert "left: its connection is gone; micro-batches 0-3 of step 0 go to others" in said(effects)
    assert drive.leased() == [Node(0, 4)]
    assert drive.leases[2]


def test_one_that_leaves_without_work_is_told_without_micro_batches() -> None:
    drive = Drive()
    drive.join(1)
    assert said(drive.leave(1)) == "worker 0 (host host, pid 1) left: interrupted"
    assert drive.leave(1) == []


def test_a_member_that_asks_is_answered_and_a_stranger_is_told_to_join() -> None:
    drive = Drive()
    drive.enter(1)
    assert messages(drive.ask(1)) == [Ping()]
    assert messages(drive.ask(9)) == [Eviction(reason=STRANGER)]


def test_a_status_says_how_far_the_run_is() -> None:
    drive = Drive()
    drive.enter(1)
    status = drive.coordinator.status(drive.now)
    assert (status.phase, status.step, status.steps, status.epochs) == ("training", 0, 6, 2)
    assert [worker.state for worker in status.workers] == ["computing"]


def probes(drive: Drive, seconds: float) -> int:
    return kinds(drive.pass_time(seconds), 1).count(Ping)


def test_a_worker_that_says_nothing_is_probed_ever_more_rarely() -> None:
    drive = Drive()
    drive.join(1)
    assert probes(drive, PROBE_S) == 1
    assert probes(drive, 1.9) == 0
    assert probes(drive, 0.2) == 1
    # Within an hour it is not sent more than its queue takes, and in a minute more than once.
    assert 3 <= probes(drive, 60.0) <= 6
    assert probes(drive, 3600.0) <= 8


def test_a_worker_that_was_heard_is_probed_soon_again() -> None:
    drive = Drive()
    drive.join(1)
    drive.pass_time(40.0)
    drive.ask(1)
    assert probes(drive, PROBE_S) == 1


@pytest.mark.parametrize("is_failed", [False, True])
def test_after_the_end_late_comers_are_told(is_failed: bool) -> None:
    drive = Drive()
    drive.enter(1)
    if is_failed:
        drive.happen(INTERRUPT)
    else:
        drive.finish()
    failed = Finished(reason="interrupted", kind=FailureKind.INTERRUPTED)
    told = [failed if is_failed else Finished(reason="")]
    assert drive.join(2) == [Send(peer=peer_of(2), message=message) for message in told]
    assert drive.ask(3) == [Send(peer=peer_of(3), message=message) for message in told]
    assert drive.coordinator.deadline() is None


def test_after_the_end_nothing_else_matters() -> None:
    drive = Drive()
    drive.enter(1, 2)
    drive.finish()
    late = Result(work="train", step=5, lo=0, hi=1, loss_sum=0.0, count=1, compute_s=0.0)
    assert drive.send(1, late) == []
    assert drive.leave(1) == drive.prepare(2) == []
    assert drive.happen(events.TimePassed()) == drive.happen(INTERRUPT) == []
    assert Weights not in kinds(drive.effects)

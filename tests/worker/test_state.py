"""What a worker does: it joins, prepares, computes what is leased on the weights at hand, and knows when to go."""

from itertools import product
from typing import get_args

import msgspec
import pytest

from common.errors import ProtocolError, RefusalKind
from common.protocol.messages import (
    NAME_LIMIT,
    TEXT_LIMIT,
    ComputeFailed,
    Diverged,
    Eviction,
    Finished,
    Join,
    Leave,
    Ping,
    Ready,
    Refused,
    SamplesRequest,
    Standby,
)
from common.statemachine.transitions import ILLEGAL
from tests.worker.states import JOIN, WELCOME, Drive, exits, lease_of, result_of, said, sent
from worker import events
from worker.effects import ComputeLease, Exit, Greet, Prepare, Report, Send, SendResult
from worker.state import ASK_MOST_S, ASK_S, CALL_MOST_S, MOST_LEASES, SILENT_S, TRANSITIONS, WorkerPhase

LEASE = lease_of(3)

ASKED = SamplesRequest(part="train", places=b"\7\0\0\0")

#: One event of each kind.
EVENTS: dict[type[events.Event], events.Event] = {
    type(event): event
    for event in (
        events.Started(),
        events.Welcomed(welcome=WELCOME),
        events.JoinRefused(refused=Refused(reason="no")),
        events.Evicted(fenced=Eviction(reason="silent for 9 s")),
        events.Prepared(),
        events.PreparationFailed(reason="no data"),
        events.ToldToStandBy(standby=Standby(reason="enough")),
        events.WeightsReceived(step=3),
        events.LeaseReceived(lease=LEASE),
        events.SamplesLacked(lease=LEASE, asked=ASKED),
        events.SamplesReceived(),
        events.SamplesUnkept(reason="no room"),
        events.LeaseComputed(result=result_of(LEASE)),
        events.LeaseDiverged(lease=LEASE, piece=0, layer="0"),
        events.LeaseRaised(lease=LEASE, traceback=""),
        events.ServerAnswered(),
        events.RunFinished(finished=Finished(reason="")),
        events.ProtocolBroken(fault="a header of 3 bytes"),
        events.TimePassed(),
        events.Interrupted(),
    )
}


def drive_in(phase: WorkerPhase) -> Drive:
    """Return a worker that has come to a phase by the usual way."""
    drive = Drive()
    if phase is WorkerPhase.JOINING:
        drive.start()
    elif phase is WorkerPhase.PREPARING:
        drive.start()
        drive.happen(events.Welcomed(welcome=WELCOME))
    else:
        drive.enter()
    if phase is WorkerPhase.COMPUTING:
        drive.weights(3)
        drive.lease(LEASE)
        drive.happen(events.TimePassed())
    elif phase is WorkerPhase.ENDED:
        drive.happen(events.Interrupted())
    assert drive.state.phase is phase
    return drive


def test_every_phase_has_an_entry_for_every_event() -> None:
    assert set(TRANSITIONS) == set(product(WorkerPhase, get_args(events.Event)))
    assert set(EVENTS) == set(get_args(events.Event))


@pytest.mark.parametrize("phase", WorkerPhase)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_in_every_phase_obeys_the_table(phase: WorkerPhase, kind: type[events.Event]) -> None:
    drive, targets = drive_in(phase), TRANSITIONS[phase, kind]
    if targets is ILLEGAL:
        with pytest.raises(ProtocolError, match=f"{kind.__name__} while {phase.value}"):
            drive.happen(EVENTS[kind])
        return
    effects = drive.happen(EVENTS[kind])
    if targets:
        assert drive.state.phase in targets
    else:
        assert (effects, drive.state.phase) == ([], phase)


def test_nothing_happens_after_the_end() -> None:
    assert not any(TRANSITIONS[WorkerPhase.ENDED, kind] for kind in EVENTS if kind is not events.Started)
    assert drive_in(WorkerPhase.ENDED).state.deadline() is None


def test_it_joins_prepares_and_is_ready() -> None:
    drive = Drive()
    assert drive.start() == [Send(message=JOIN)]
    effects = drive.happen(events.Welcomed(welcome=WELCOME))
    assert said(effects) == ["joined run blue as worker 2"]
    assert effects[-1] == Prepare(welcome=WELCOME)
    assert drive.state.deadline() is None
    assert sent(drive.happen(events.Prepared())) == [Ready()]


def test_it_asks_again_until_there_is_a_server_and_says_so() -> None:
    drive = Drive()
    drive.start()
    assert drive.pass_time(ASK_S / 2 - 0.1) == []
    effects = drive.pass_time(ASK_S / 2 + 0.1)
    assert sent(effects) == [JOIN]
    (word,) = said(effects)
    assert word.startswith("waiting for a server at tcp://h:1 (")
    # Less and less often: what finds no server waits, and all arrives at once.
    assert len(sent(drive.pass_time(3600.0))) <= 10 + 2 * 3600 / CALL_MOST_S
    assert sent(drive.pass_time(CALL_MOST_S)) == [JOIN]


@pytest.mark.parametrize("timeout_s", [0.5, 7.0, 60.0])
def test_it_does_not_wait_longer_than_it_may(timeout_s: float) -> None:
    drive = Drive(timeout_s)
    drive.start()
    assert not exits(drive.pass_time(timeout_s - 0.1))
    (end,) = exits(drive.pass_time(0.1))
    assert end.code == 1
    assert end.reason == f"no server answered at tcp://h:1 within {timeout_s:g} s: is it running there?"


def test_it_waits_for_ever_where_nothing_else_is_said() -> None:
    drive = Drive()
    drive.start()
    assert not exits(drive.pass_time(24 * 3600.0))


def test_one_that_is_turned_away_says_why_and_ends() -> None:
    drive = Drive()
    drive.start()
    (end,) = exits(drive.happen(events.JoinRefused(refused=Refused(reason="other numerics"))))
    assert (end.code, end.reason) == (2, "the server refused this worker: other numerics")


def test_one_that_cannot_prepare_leaves_with_the_reason() -> None:
    drive = drive_in(WorkerPhase.PREPARING)
    effects = drive.happen(events.PreparationFailed(reason="no data"))
    assert sent(effects) == [Leave(reason="no data")]
    assert exits(effects) == [Exit(code=2, reason="no data")]


def test_a_server_that_breaks_the_protocol_is_left_with_a_word() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    effects = drive.happen(events.ProtocolBroken(fault="weights of 3 values"))
    assert sent(effects) == [Leave(reason="the server broke the protocol: weights of 3 values")]
    assert [end.code for end in exits(effects)] == [1]


def test_leases_are_computed_in_their_order_each_answered() -> None:
    drive = Drive()
    drive.enter()
    assert drive.weights(3) == []
    assert drive.lease(lease_of(3, 0, 2)) == drive.lease(lease_of(3, 4, 5)) == []
    for lease in (lease_of(3, 0, 2), lease_of(3, 4, 5)):
        assert drive.state.deadline() == drive.now
        assert drive.happen(events.TimePassed()) == [ComputeLease(lease=lease)]
        assert drive.state.deadline() is None
        result = result_of(lease)
        assert drive.happen(events.LeaseComputed(result=result)) == [SendResult(result=result)]
    due = drive.state.deadline()
    assert due is not None
    assert ASK_S / 2 <= due - drive.now <= ASK_S


def test_leases_of_older_weights_are_dropped() -> None:
    drive = Drive()
    drive.enter()
    drive.weights(3)
    drive.lease(lease_of(3))
    drive.weights(4)
    drive.lease(lease_of(3, 1, 2))
    drive.lease(lease_of(4))
    assert list(drive.state.leases) == [lease_of(4)]


def test_leases_of_an_evaluation_that_is_over_are_dropped() -> None:
    drive = Drive()
    drive.enter()
    drive.weights(3)
    drive.lease(lease_of(3, work="evaluate"))
    drive.lease(lease_of(3, work="train"))
    assert list(drive.state.leases) == [lease_of(3, work="train")]


def test_without_weights_nothing_is_computed() -> None:
    drive = Drive()
    drive.enter()
    drive.lease(lease_of(0))
    deadline = drive.state.deadline()
    assert deadline is not None
    assert deadline > drive.now
    # The weights may come over other connections, and later than a lease.
    drive.weights(0)
    assert drive.state.deadline() == drive.now


def test_a_lease_that_is_quicker_than_its_weights_waits_for_them() -> None:
    drive = Drive()
    drive.enter()
    drive.weights(3)
    drive.lease(lease_of(3))
    drive.lease(lease_of(4))
    assert list(drive.state.leases) == [lease_of(4)]
    drive.weights(4)
    assert list(drive.state.leases) == [lease_of(4)]
    drive.lease(lease_of(3))
    assert list(drive.state.leases) == [lease_of(4)]


def test_leases_without_an_end_do_not_fill_the_memory() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    for number in range(3 * MOST_LEASES):
        drive.happen(events.LeaseReceived(lease=msgspec.structs.replace(lease_of(7), number=number)))
    assert len(drive.state.leases) == MOST_LEASES
    assert drive.state.leases[-1].number == 3 * MOST_LEASES - 1


def test_what_a_server_says_is_a_line() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    (standby,) = drive.happen(events.ToldToStandBy(standby=Standby(reason="wait\nerror: forged")))
    assert standby == Report(text="wait\\nerror: forged")


def test_divergence_and_errors_are_told_with_their_place() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    assert sent(drive.happen(events.LeaseDiverged(lease=LEASE, piece=7, layer="2 (Linear)"))) == [
        Diverged(work="train", step=3, micro_batch=7, layer="2 (Linear)")
    ]
    drive = drive_in(WorkerPhase.COMPUTING)
    spoilt = events.LeaseDiverged(lease=LEASE, piece=7, layer="0.weight", quantity="gradient")
    assert sent(drive.happen(spoilt)) == [
        Diverged(work="train", step=3, micro_batch=7, layer="0.weight", quantity="gradient")
    ]
    drive = drive_in(WorkerPhase.COMPUTING)
    assert sent(drive.happen(events.LeaseRaised(lease=LEASE, traceback="Traceback"))) == [
        ComputeFailed(work="train", step=3, lo=0, hi=1, traceback="Traceback")
    ]
    assert drive.state.phase is WorkerPhase.WAITING


def test_texts_are_short_enough_for_the_server() -> None:
    (diverged,) = sent(
        drive_in(WorkerPhase.COMPUTING).happen(events.LeaseDiverged(lease=LEASE, piece=0, layer="x." * 999))
    )
    (failed,) = sent(drive_in(WorkerPhase.COMPUTING).happen(events.LeaseRaised(lease=LEASE, traceback="x" * 99_999)))
    assert isinstance(diverged, Diverged)
    assert isinstance(failed, ComputeFailed)
    assert len(diverged.layer) <= NAME_LIMIT
    assert len(failed.traceback) <= TEXT_LIMIT


def test_without_work_it_asks_whether_the_server_is_there() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    assert set(map(type, sent(drive.pass_time(2 * ASK_S)))) == {Ping}
    drive.happen(events.ServerAnswered())
    assert sent(drive.pass_time(ASK_S / 2 - 0.1)) == []


def test_when_the_server_asks_all_others_hear_again_who_this_is() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.lease(lease_of(3))
    assert drive.happen(events.ServerAnswered()) == [Greet()]


def test_a_server_that_does_not_answer_is_asked_less_often_and_a_person_is_told() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    effects = drive.pass_time(300.0)
    assert 300.0 / ASK_MOST_S <= len(sent(effects)) <= 2 + 2 * 300.0 / ASK_MOST_S
    words = said(effects)
    assert len(words) == 5  # after 10, 20, 40, 80 and 160 seconds
    assert words[0].startswith("the server at tcp://h:1 has been silent for 1")
    assert words[0].endswith(" s: trying for 600 s")
    drive.happen(events.ServerAnswered())
    assert said(drive.pass_time(SILENT_S - 0.1)) == []


def test_workers_do_not_all_ask_at_the_same_time() -> None:
    dues = set()
    for number in range(50):
        drive = Drive(incarnation=f"life {number}")
        drive.enter()
        dues.add(drive.state.deadline())
    assert len(dues) == 50


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(None, 600.0), (30.0, 30.0), (3.0, 3.0)])
def test_a_server_that_is_silent_for_too_long_counts_as_gone(timeout_s: float | None, limit_s: float) -> None:
    drive = Drive(timeout_s)
    drive.enter()
    assert not exits(drive.pass_time(limit_s - 0.1))
    (end,) = exits(drive.pass_time(2 * ASK_MOST_S))
    assert end.code == 1
    assert end.reason.startswith("the server at tcp://h:1 has been silent for ")


def test_one_that_was_stopped_for_an_hour_asks_before_it_gives_up() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.now += 3600.0
    assert sent(drive.happen(events.TimePassed())) == [Ping()]
    drive.happen(events.ServerAnswered())
    assert not exits(drive.pass_time(60.0))


def test_one_that_the_server_let_go_joins_anew_and_forgets_the_run() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    drive.lease(lease_of(3))
    effects = drive.happen(events.Evicted(fenced=Eviction(reason="silent for 9 s")))
    assert said(effects) == ["joins anew: silent for 9 s"]
    (join,) = sent(effects)
    assert isinstance(join, Join)
    assert join.incarnation == f"{JOIN.incarnation}.1"
    # What still comes of the life before is nothing to this one.
    assert drive.happen(events.Evicted(fenced=Eviction(reason="again"))) == []
    assert drive.weights(3) == drive.lease(lease_of(3)) == []
    drive.happen(events.Welcomed(welcome=WELCOME))
    drive.happen(events.Prepared())
    assert not [effect for effect in drive.pass_time(1.0) if isinstance(effect, ComputeLease)]
    (join,) = sent(drive.happen(events.Evicted(fenced=Eviction(reason="again"))))
    assert isinstance(join, Join)
    assert join.incarnation == f"{JOIN.incarnation}.2"


def test_one_that_was_let_go_asks_for_its_run_and_of_another_one_for_a_place_like_anybody() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    (join,) = sent(drive.happen(events.Evicted(fenced=Eviction(reason="a restart"))))
    assert isinstance(join, Join)
    assert join.run == WELCOME.run
    other = events.JoinRefused(refused=Refused(reason="this is run 'green'", kind=RefusalKind.OTHER_RUN))
    (join,) = sent(drive.happen(other))
    assert isinstance(join, Join)
    assert (join.run, join.incarnation) == ("", f"{JOIN.incarnation}.2")
    # Said twice, it is the word of the life before.
    assert drive.happen(other) == []
    drive.happen(events.Welcomed(welcome=WELCOME))
    drive.happen(events.Prepared())
    assert drive.happen(other) == []
    assert drive.state.phase is WorkerPhase.WAITING


def test_one_that_hears_what_is_in_the_way_says_it_and_ends_where_it_stays() -> None:
    drive = Drive()
    drive.start()
    drive.now = drive.state.deadline() or 0.0
    told = said(drive.happen(events.TimePassed(obstacle="nothing listens there")))
    assert told[0].endswith("s): nothing listens there")
    (end,) = exits(drive.happen(events.TimePassed(obstacle="it demands a key", is_hopeless=True)))
    assert (end.code, end.reason) == (2, "it demands a key")


def test_one_that_was_let_go_asks_often_and_not_for_ever() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.happen(events.Evicted(fenced=Eviction(reason="a restart")))
    effects = drive.pass_time(599.0)
    assert len(sent(effects)) >= 599.0 / ASK_MOST_S
    assert not exits(effects)
    (end,) = exits(drive.pass_time(1.0))
    assert end.reason == "no server answered at tcp://h:1 within 600 s: is it running there?"


def test_a_server_that_answers_never_counts_as_gone() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    for _ in range(50):
        assert not exits(drive.pass_time(50.0))
        drive.happen(events.ServerAnswered())


def test_a_long_computation_is_no_silence_of_the_server() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    drive.now += 1000.0
    drive.happen(events.LeaseComputed(result=result_of(LEASE)))
    assert not exits(drive.pass_time(ASK_S))


def test_one_that_stands_by_says_why_and_goes_on_asking() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    assert said(drive.happen(events.ToldToStandBy(standby=Standby(reason="enough")))) == ["enough"]
    assert sent(drive.pass_time(ASK_S))[0] == Ping()


@pytest.mark.parametrize(("reason", "code", "text"), [("", 0, ""), ("diverged", 1, "the run failed: diverged")])
@pytest.mark.parametrize("phase", [WorkerPhase.JOINING, WorkerPhase.WAITING])
def test_the_end_of_the_run_is_the_workers(phase: WorkerPhase, reason: str, code: int, text: str) -> None:
    drive = drive_in(phase)
    assert drive.happen(events.RunFinished(finished=Finished(reason=reason))) == [Exit(code=code, reason=text)]


@pytest.mark.parametrize("phase", [phase for phase in WorkerPhase if phase is not WorkerPhase.ENDED])
def test_an_interrupt_in_any_phase_is_told_and_ends_it(phase: WorkerPhase) -> None:
    effects = drive_in(phase).happen(events.Interrupted())
    assert sent(effects) == [Leave(reason="interrupted")]
    assert exits(effects) == [Exit(code=130, reason="interrupted")]


def lacking() -> Drive:
    """Return a worker that has asked for samples of its first lease."""
    drive = drive_in(WorkerPhase.COMPUTING)
    assert drive.happen(events.SamplesLacked(lease=LEASE, asked=ASKED)) == [Send(message=ASKED)]
    return drive


def test_a_lease_whose_samples_are_lacking_is_computed_once_they_are_here() -> None:
    drive = lacking()
    assert drive.state.deadline() != drive.now
    assert drive.happen(events.SamplesReceived()) == []
    assert drive.happen(events.TimePassed()) == [ComputeLease(lease=LEASE)]


def test_samples_that_do_not_come_are_asked_for_again() -> None:
    drive = lacking()
    assert [effect for effect in drive.pass_time(ASK_S * 2) if effect == Send(message=ASKED)]
    # An answer to something else says nothing of them.
    drive.happen(events.ServerAnswered())
    assert [effect for effect in drive.pass_time(ASK_S * 2) if effect == Send(message=ASKED)]


def test_to_lack_samples_is_no_sign_of_a_server() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    heard = drive.state.heard
    drive.now += 5.0
    drive.happen(events.SamplesLacked(lease=LEASE, asked=ASKED))
    assert drive.state.heard == heard


def test_a_lease_of_the_next_step_ends_the_wait_for_samples() -> None:
    drive = lacking()
    drive.weights(4)
    drive.lease(lease_of(4))
    assert drive.happen(events.TimePassed()) == [ComputeLease(lease=lease_of(4))]


def test_samples_that_cannot_be_kept_end_the_worker() -> None:
    drive = lacking()
    *_, last = drive.happen(events.SamplesUnkept(reason="no room"))
    assert last == Exit(code=1, reason="no room")

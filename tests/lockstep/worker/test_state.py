"""What a worker does in a run: it computes what is leased on the weights at hand; how it joins is the client's part."""

from itertools import product
from typing import get_args

import msgspec
import pytest

from lockstep.common.errors import FailureKind, ProtocolError, RefusalKind
from lockstep.common.protocol.messages import (
    ComputeFailed,
    Diverged,
    Dropped,
    Eviction,
    Finished,
    Lease,
    Leave,
    Ping,
    Ready,
    Refused,
    Samples,
    SamplesRequest,
    Spare,
    Withdrawal,
    Work,
)
from lockstep.common.statemachine.client import FIRST_RETRY_S, Exit, SendToServer
from lockstep.common.statemachine.machine import Interrupted, Report, Started, TimePassed
from lockstep.worker import state as events
from lockstep.worker.state import (
    MOST_LEASES,
    TRANSITIONS,
    WorkerPhase,
)
from tests.lockstep.common.statemachine.clients import PREPARED, WELCOME, exits, reports, sent
from tests.lockstep.common.statemachine.laws import check_obedience
from tests.lockstep.worker.states import (
    LEASE,
    MULTI_STEP,
    Drive,
    drive_in,
    lease_of,
    result_of,
)

REQUEST = SamplesRequest(part="train", places=b"\7\0\0\0")

#: The answer to a multi-step lease.
ANSWER = Dropped(number=MULTI_STEP.number)

#: The other answers to a lease.
NO_RESULTS = (
    Diverged(number=LEASE.number, micro_batch=0, layer="0.weight", quantity="gradient"),
    ComputeFailed(number=LEASE.number, traceback="Traceback"),
)

#: One event of each kind.
EVENTS: dict[type[events.WorkEvent], events.WorkEvent] = {
    type(event): event
    for event in (
        Spare(reason="enough"),
        events.WeightsReceived(step=3),
        LEASE,
        Withdrawal(number=MULTI_STEP.number),
        events.LeaseStopped(lease=LEASE, computed=1),
        events.MemoryLost(reason="gone"),
        events.InboxEmptied(),
        result_of(LEASE),
        *NO_RESULTS,
        events.SamplesMissing(lease=LEASE, request=REQUEST),
        Samples(part="train", places=b""),
        events.SamplesNotStored(reason="no room"),
        MULTI_STEP,
        ANSWER,
        Ping(),
    )
}


def test_every_phase_has_an_entry_for_every_event() -> None:
    assert set(TRANSITIONS) == set(product(WorkerPhase, get_args(events.WorkEvent)))
    assert set(EVENTS) == set(get_args(events.WorkEvent))


@pytest.mark.parametrize("phase", WorkerPhase)
def test_every_event_obeys_the_table(phase: WorkerPhase) -> None:
    check_obedience(lambda: drive_in(phase).state, TRANSITIONS, EVENTS)


def test_while_it_computes_nothing_but_an_interrupt_reaches_it() -> None:
    with pytest.raises(ProtocolError, match="TimePassed while computing"):
        drive_in(WorkerPhase.COMPUTING).dispatch(TimePassed())
    drive = drive_in(WorkerPhase.COMPUTING)
    assert drive.state.deadline() is None
    assert sent(drive.dispatch(Interrupted())) == [Leave(reason="interrupted")]
    assert drive.state.phase is WorkerPhase.OUTSIDE


# Several steps


def withdraw_steps(drive: Drive, number: int = MULTI_STEP.number) -> list[events.Effect]:
    return drive.dispatch(Withdrawal(number=number))


def test_a_multi_step_lease_is_begun_once_and_answered_once() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    assert drive.dispatch(MULTI_STEP) == [MULTI_STEP]
    assert (drive.state.deadline(), drive.state.is_busy()) == (None, True)
    assert sent(drive.dispatch(ANSWER)) == [ANSWER]
    assert (drive.state.phase, drive.state.steps, drive.state.is_busy()) == (WorkerPhase.WAITING, None, False)


def test_a_multi_step_lease_that_is_withdrawn_is_stopped_and_then_answered() -> None:
    drive = drive_in(WorkerPhase.MULTI_STEP)
    assert withdraw_steps(drive) == [Withdrawal(number=MULTI_STEP.number)]
    assert drive.state.phase is WorkerPhase.MULTI_STEP
    assert sent(drive.dispatch(ANSWER)) == [ANSWER]


@pytest.mark.parametrize("phase", [WorkerPhase.WAITING, WorkerPhase.MULTI_STEP])
def test_another_multi_step_lease_than_the_one_at_hand_is_not_withdrawn(phase: WorkerPhase) -> None:
    drive = drive_in(phase)
    assert sent(withdraw_steps(drive, MULTI_STEP.number - 1)) == [Dropped(number=MULTI_STEP.number - 1)]
    assert drive.state.phase is phase


def test_a_withdrawal_after_the_last_step_is_answered_as_that_of_any_lease_that_has_ended() -> None:
    drive = drive_in(WorkerPhase.MULTI_STEP)
    drive.dispatch(ANSWER)
    assert sent(withdraw_steps(drive)) == [ANSWER]
    assert drive.dispatch(ANSWER) == []


def test_leases_that_wait_are_over_once_the_worker_makes_steps_by_itself() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    drive.lease(LEASE)
    drive.dispatch(MULTI_STEP)
    assert not drive.state.leases
    drive.dispatch(ANSWER)
    assert not drive.state.has_work()


def test_one_that_is_evicted_while_it_makes_steps_answers_nothing() -> None:
    drive = drive_in(WorkerPhase.MULTI_STEP)
    drive.dispatch(Eviction(reason="silent for 9 s"))
    assert (drive.state.phase, drive.state.steps) == (WorkerPhase.OUTSIDE, None)
    assert drive.dispatch(ANSWER) == []


def test_one_that_cannot_follow_the_weights_into_other_memory_joins_again() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    before = drive.state.client.join()
    effects = drive.dispatch(events.MemoryLost(reason="no file"))
    join = drive.state.client.join()
    assert join.incarnation != before.incarnation
    assert sent(effects) == [Leave(reason="no file"), join]
    assert reports(effects) == ["rejoining: no file"]


def test_one_that_is_refused_says_that_a_worker_was() -> None:
    refused = Refused(reason="the run is full", kind=RefusalKind.FULL)
    expected = Exit(code=2, reason="the server refused this worker: the run is full", kind=FailureKind.REFUSED)
    assert drive_in(WorkerPhase.OUTSIDE).dispatch(refused) == [expected]


@pytest.mark.parametrize("nonce", ["", "0" * 32])
def test_it_shares_memory_if_it_has_read_what_the_server_wrote(nonce: str) -> None:
    drive = Drive()
    drive.dispatch(Started())
    drive.dispatch(WELCOME)
    drive.dispatch(Ready(nonce=nonce, rank=0, part=""))
    assert drive.state.shares == bool(nonce)


def test_leases_are_computed_in_their_order_each_answered() -> None:
    drive = Drive()
    drive.enter()
    assert drive.weights(3) == []
    assert drive.lease(lease_of(3, 0, 2)) == drive.lease(lease_of(3, 4, 5)) == []
    for lease in (lease_of(3, 0, 2), lease_of(3, 4, 5)):
        assert drive.state.has_work()
        assert drive.empty_inbox() == [lease]
        assert drive.state.deadline() is None
        result = result_of(lease)
        assert drive.dispatch(result) == [SendToServer(message=result)]
    due = drive.state.deadline()
    assert due is not None
    assert FIRST_RETRY_S / 2 <= due - drive.now <= FIRST_RETRY_S


def test_leases_of_older_weights_are_dropped() -> None:
    drive = Drive()
    drive.enter()
    drive.weights(3)
    drive.lease(lease_of(3))
    drive.weights(4)
    assert not drive.state.leases
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
    assert not drive.state.has_work()
    assert drive.empty_inbox() == []
    # The weights may come over other connections, and later than a lease.
    drive.weights(0)
    assert drive.state.has_work()


def test_a_lease_that_is_quicker_than_its_weights_waits_for_them() -> None:
    drive = Drive()
    drive.enter()
    drive.weights(3)
    drive.lease(lease_of(3))
    drive.lease(lease_of(4))
    assert list(drive.state.leases) == [lease_of(4)]
    assert not drive.state.has_work()
    drive.weights(4)
    assert list(drive.state.leases) == [lease_of(4)]
    assert drive.state.has_work()
    drive.lease(lease_of(3))
    assert list(drive.state.leases) == [lease_of(4)]


def test_leases_without_an_end_do_not_fill_the_memory() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    for number in range(3 * MOST_LEASES):
        drive.dispatch(msgspec.structs.replace(lease_of(7), number=number))
    assert len(drive.state.leases) == MOST_LEASES
    assert drive.state.leases[-1].number == 3 * MOST_LEASES - 1


def test_what_a_server_says_is_a_line() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    (spare,) = drive.dispatch(Spare(reason="wait\nerror: forged"))
    assert spare == Report(text="wait\\nerror: forged")


@pytest.mark.parametrize(
    "answer",
    NO_RESULTS,
)
def test_divergence_and_errors_are_told_without_sums(answer: Diverged | ComputeFailed) -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    assert sent(drive.dispatch(answer)) == [answer]
    assert drive.state.phase is WorkerPhase.WAITING


def test_without_work_it_asks_whether_the_server_is_there() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    assert set(map(type, sent(drive.pass_time(2 * FIRST_RETRY_S)))) == {Ping}
    drive.dispatch(Ping())
    assert sent(drive.pass_time(FIRST_RETRY_S / 2 - 0.1)) == []


def test_when_the_server_asks_all_others_hear_again_who_this_is() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.lease(lease_of(3))
    assert drive.dispatch(Ping()) == [Ping()]


def test_an_evicted_worker_rejoins_and_forgets_the_run() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    drive.lease(lease_of(3))
    assert reports(drive.dispatch(Eviction(reason="silent for 9 s"))) == ["rejoining: silent for 9 s"]
    assert drive.state.phase is WorkerPhase.OUTSIDE
    # What still comes from before is ignored.
    assert drive.weights(3) == drive.lease(lease_of(3)) == drive.empty_inbox() == []
    drive.dispatch(WELCOME)
    drive.dispatch(PREPARED)
    assert drive.empty_inbox() == []
    drive.lease(lease_of(3))
    assert not drive.state.has_work()


def test_the_end_of_the_run_is_the_end_of_its_work() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    drive.lease(lease_of(3))
    assert drive.dispatch(Finished(reason="")) == [Exit(code=0, reason="")]
    assert drive.empty_inbox() == []
    assert drive.state.deadline() is None


def test_a_long_computation_is_no_silence_of_the_server() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    drive.now += 1000.0
    drive.dispatch(result_of(LEASE))
    assert not exits(drive.pass_time(FIRST_RETRY_S))


def test_one_that_stands_by_says_why_and_goes_on_asking() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    assert reports(drive.dispatch(Spare(reason="enough"))) == ["enough"]
    assert sent(drive.pass_time(FIRST_RETRY_S))[0] == Ping()


def missing() -> Drive:
    """Return a worker that has asked for samples of its first lease."""
    drive = drive_in(WorkerPhase.COMPUTING)
    assert drive.dispatch(events.SamplesMissing(lease=LEASE, request=REQUEST)) == [SendToServer(message=REQUEST)]
    return drive


def test_a_lease_whose_samples_are_lacking_is_computed_once_they_are_here() -> None:
    drive = missing()
    assert not drive.state.has_work()
    assert drive.dispatch(Samples(part="train", places=b"")) == []
    assert drive.empty_inbox() == [LEASE]


def test_samples_that_do_not_come_are_asked_for_again() -> None:
    drive = missing()
    assert [effect for effect in drive.pass_time(FIRST_RETRY_S * 2) if effect == SendToServer(message=REQUEST)]
    # An answer to something else says nothing of them.
    drive.dispatch(Ping())
    assert [effect for effect in drive.pass_time(FIRST_RETRY_S * 2) if effect == SendToServer(message=REQUEST)]


@pytest.mark.parametrize(
    ("phase", "event"),
    [
        (WorkerPhase.COMPUTING, events.SamplesMissing(lease=LEASE, request=REQUEST)),
        (WorkerPhase.WAITING, events.InboxEmptied()),
    ],
)
def test_what_happens_here_is_no_sign_of_a_server(phase: WorkerPhase, event: events.Event) -> None:
    drive = drive_in(phase)
    heard = drive.state.client.heard
    drive.now += 5.0
    drive.dispatch(event)
    assert drive.state.client.heard == heard


def test_a_lease_of_the_next_step_ends_the_wait_for_samples() -> None:
    drive = missing()
    drive.weights(4)
    drive.lease(lease_of(4))
    assert drive.empty_inbox() == [lease_of(4)]


def test_samples_that_cannot_be_kept_end_the_worker() -> None:
    drive = missing()
    *_, last = drive.dispatch(events.SamplesNotStored(reason="no room"))
    assert last == Exit(code=1, reason="no room", kind=FailureKind.PREPARATION)


def test_of_what_is_lacking_the_first_is_computed_first() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    drive.dispatch(result_of(LEASE))
    drive.lease(lease_of(3, 0, 1))
    drive.lease(lease_of(3, 1, 2))
    drive.empty_inbox()
    assert not drive.state.has_work()  # it computes already
    drive.dispatch(events.SamplesMissing(lease=LEASE, request=REQUEST))
    assert list(drive.state.leases) == [LEASE, lease_of(3, 1, 2)]


def test_samples_are_asked_for_again_some_time_after_they_were_asked_for() -> None:
    drive = drive_in(WorkerPhase.COMPUTING)
    drive.now += 5000.0
    drive.dispatch(events.SamplesMissing(lease=LEASE, request=REQUEST))
    assert (drive.state.deadline() or 0.0) > drive.now


def test_one_that_waits_for_weights_asks_for_no_samples() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.lease(lease_of(0))
    assert set(sent(drive.pass_time(2 * FIRST_RETRY_S))) == {Ping()}


def sharing() -> Drive:
    """Return a worker that computes in the server's memory, and waits."""
    drive = Drive()
    drive.dispatch(Started())
    drive.dispatch(WELCOME)
    drive.dispatch(Ready(nonce="0" * 32, rank=0, part=""))
    return drive


def test_where_memory_is_shared_a_lease_says_that_its_weights_are_there() -> None:
    drive = sharing()
    for step in (3, 4):
        drive.lease(lease_of(step))
        assert drive.empty_inbox() == [lease_of(step)]
        drive.dispatch(result_of(lease_of(step)))


# A worker that joins again, late: nothing of before is left.


def evicted_late(drive: Drive) -> Drive:
    """Let the server restart after more than an hour of a run: it knows this worker no more."""
    for _ in range(50):
        drive.now += 100.0
        drive.dispatch(Ping())
    drive.dispatch(Eviction(reason="a restart"))
    return drive


def rejoined(drive: Drive) -> Drive:
    evicted_late(drive)
    drive.dispatch(WELCOME)
    drive.dispatch(PREPARED)
    return drive


@pytest.mark.parametrize("step", [2, 3, 4])
def test_one_that_rejoins_computes_with_new_weights_alone_whatever_their_step(step: int) -> None:
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    rejoined(drive)
    assert drive.lease(lease_of(step)) == drive.empty_inbox() == []
    drive.weights(step)
    assert drive.empty_inbox() == [lease_of(step)]


def test_one_that_rejoins_does_not_wait_for_samples_of_before() -> None:
    drive = rejoined(missing())
    assert REQUEST not in sent(drive.pass_time(2 * FIRST_RETRY_S))
    drive.weights(3)
    assert drive.empty_inbox() == []
    drive.lease(lease_of(3, 1, 2))
    assert drive.empty_inbox() == [lease_of(3, 1, 2)]


def test_one_that_rejoins_shares_memory_only_if_it_does_so_now() -> None:
    drive = rejoined(sharing())
    assert not drive.state.shares
    drive.lease(lease_of(3))
    assert not drive.state.has_work()


def test_one_that_rejoins_late_waits_for_a_server_as_long_as_any() -> None:
    drive = evicted_late(drive_in(WorkerPhase.WAITING))
    assert not exits(drive.pass_time(599.0))
    assert exits(drive.pass_time(1.0))


# Leases that are withdrawn


def numbered(number: int, *, step: int = 3, work: Work = "train") -> Lease:
    return Lease(work=work, step=step, lo=number, hi=number + 2, number=number)


def withdrawal_of(lease: Lease) -> Withdrawal:
    return Withdrawal(number=lease.number)


def withdraw(drive: Drive, lease: Lease, *, computed: int = 0) -> None:
    """Withdraw a lease; the worker is to answer at once, and once."""
    effects = drive.dispatch(withdrawal_of(lease))
    dropped = Dropped(number=lease.number, computed=computed)
    assert effects == [SendToServer(message=dropped)]


def holding(*numbers: int) -> Drive:
    """Return a worker that has the weights of step 3, and leases of it."""
    drive = drive_in(WorkerPhase.WAITING)
    drive.weights(3)
    for number in numbers:
        drive.lease(numbered(number))
    return drive


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_withdrawn_lease_that_waits_is_not_computed_and_the_others_are(number: int) -> None:
    drive = holding(1, 2, 3)
    withdraw(drive, numbered(number))
    assert [lease.number for lease in drive.state.leases] == [one for one in (1, 2, 3) if one != number]


def test_a_withdrawal_of_what_it_does_not_hold_is_answered_and_changes_nothing() -> None:
    drive = holding(1, 2)
    withdraw(drive, numbered(4))
    assert list(drive.state.leases) == [numbered(1), numbered(2)]


def test_a_lease_that_was_answered_is_dropped_with_nothing_computed_in_vain() -> None:
    drive = holding(1)
    drive.empty_inbox()
    drive.dispatch(result_of(numbered(1)))
    withdraw(drive, numbered(1))


def test_one_that_was_stopped_answers_how_much_it_had_computed_when_it_reads_the_withdrawal() -> None:
    drive = holding(1, 2)
    assert drive.empty_inbox() == [numbered(1)]
    assert drive.dispatch(events.LeaseStopped(lease=numbered(1), computed=1)) == []
    assert drive.state.phase is WorkerPhase.WAITING
    # What it had been sent before comes first.
    withdraw(drive, numbered(2))
    withdraw(drive, numbered(1), computed=1)
    assert not drive.state.has_work()


def test_what_was_computed_of_one_lease_is_not_told_of_another() -> None:
    drive = holding(1)
    drive.empty_inbox()
    drive.dispatch(events.LeaseStopped(lease=numbered(1), computed=1))
    withdraw(drive, numbered(2))


def test_one_that_was_stopped_goes_on_with_the_next_lease() -> None:
    drive = holding(1, 2)
    drive.empty_inbox()
    drive.dispatch(events.LeaseStopped(lease=numbered(1), computed=1))
    withdraw(drive, numbered(1), computed=1)
    assert drive.empty_inbox() == [numbered(2)]


def test_a_withdrawn_lease_does_not_wait_for_its_samples() -> None:
    drive = missing()
    drive.lease(numbered(7))
    withdraw(drive, LEASE)
    assert drive.state.requested is None
    assert drive.empty_inbox() == [numbered(7)]


def test_the_first_lease_still_waits_for_its_samples_if_another_is_withdrawn() -> None:
    drive = missing()
    drive.lease(numbered(7))
    withdraw(drive, numbered(7))
    assert drive.state.requested == REQUEST
    assert list(drive.state.leases) == [LEASE]
    assert not drive.state.has_work()


def test_leases_without_an_end_do_not_fill_the_memory_after_a_withdrawal_either() -> None:
    drive = drive_in(WorkerPhase.WAITING)
    withdraw(drive, numbered(1))
    for number in range(2 * MOST_LEASES):
        drive.lease(numbered(number))
    assert len(drive.state.leases) == MOST_LEASES


def test_a_withdrawal_is_a_sign_of_the_server() -> None:
    drive = holding(1)
    drive.now += 5.0
    withdraw(drive, numbered(1))
    assert drive.state.client.heard == drive.now

"""How a process joins a run and leaves it: it asks, prepares, waits for a silent server, and knows when to go."""

from itertools import product
from typing import get_args

import msgspec
import pytest

from lockstep.common.errors import Diagnosis, FailureKind, RefusalKind, Stage
from lockstep.common.protocol.messages import (
    Eviction,
    Finished,
    Join,
    Leave,
    Ping,
    Refused,
    Spare,
)
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady
from lockstep.common.statemachine.client import (
    FIRST_REPORT_S,
    FIRST_RETRY_S,
    MOST_JOIN_RETRY_S,
    MOST_RETRY_S,
    TRANSITIONS,
    Client,
    ClientConfig,
    ClientEvent,
    ClientPhase,
    Exit,
    PreparationFailed,
    ProtocolBroken,
    SendToServer,
)
from lockstep.common.statemachine.machine import Interrupted, Started, TimePassed
from tests.lockstep.common.statemachine.clients import (
    JOIN,
    PREPARED,
    SHARD_WELCOME,
    WELCOME,
    ClientDrive,
    client_in,
    exits,
    reports,
    sent,
)
from tests.lockstep.common.statemachine.laws import check_obedience, reachable

#: One event of each kind.
EVENTS: dict[type[ClientEvent], ClientEvent] = {
    type(event): event
    for event in (
        Started(),
        WELCOME,
        SHARD_WELCOME,
        Refused(reason="no"),
        Eviction(reason="silent for 9 s"),
        PREPARED,
        ShardReady(index=1, part=""),
        PreparationFailed(reason="no data"),
        Spare(reason="all 2 servers are there"),
        Finished(reason=""),
        ProtocolBroken(fault="a header of 3 bytes"),
        Diagnosis("nothing listens there", Stage.PORT),
        TimePassed(),
        Interrupted(),
    )
}


def test_every_phase_has_an_entry_for_every_event() -> None:
    assert set(TRANSITIONS) == set(product(ClientPhase, get_args(ClientEvent)))
    assert set(EVENTS) == set(get_args(ClientEvent))


@pytest.mark.parametrize("phase", ClientPhase)
def test_every_event_obeys_the_table(phase: ClientPhase) -> None:
    check_obedience(lambda: client_in(phase).client, TRANSITIONS, EVENTS)


def test_every_phase_can_be_reached_and_nothing_leads_away_from_the_end() -> None:
    assert reachable(TRANSITIONS, ClientPhase.JOINING) == set(ClientPhase)
    assert not any(TRANSITIONS[ClientPhase.ENDED, kind] for kind in EVENTS)
    assert client_in(ClientPhase.ENDED).client.deadline() is None


def test_it_joins_prepares_and_is_ready() -> None:
    drive = ClientDrive()
    assert drive.start() == [SendToServer(message=JOIN)]
    effects = drive.dispatch(WELCOME)
    assert reports(effects) == ["joined run blue as worker 2"]
    assert effects[-1] == WELCOME
    assert drive.client.deadline() is None
    assert sent(drive.dispatch(PREPARED)) == [PREPARED]


def test_it_asks_again_until_there_is_a_server_and_reports_it() -> None:
    drive = ClientDrive()
    drive.start()
    assert drive.pass_time(FIRST_RETRY_S / 2 - 0.1) == []
    effects = drive.pass_time(FIRST_RETRY_S / 2 + 0.1)
    assert sent(effects) == [JOIN]
    (report,) = reports(effects)
    assert report.startswith("waiting for a server at tcp://h:1 (")
    # Less and less often: joins that find no server are queued, and all arrive at once.
    assert len(sent(drive.pass_time(3600.0))) <= 10 + 2 * 3600 / MOST_JOIN_RETRY_S
    assert JOIN in sent(drive.pass_time(MOST_JOIN_RETRY_S))


@pytest.mark.parametrize("timeout_s", [0.5, 7.0, 60.0])
def test_it_does_not_wait_longer_than_it_may(timeout_s: float) -> None:
    drive = ClientDrive(timeout_s)
    drive.start()
    assert not exits(drive.pass_time(timeout_s - 0.1))
    (end,) = exits(drive.pass_time(0.1))
    assert (end.code, end.kind) == (1, FailureKind.UNREACHABLE)
    assert end.reason == f"no server answered at tcp://h:1 within {timeout_s:g} s: is it running there?"


def test_without_a_timeout_it_waits_for_ever() -> None:
    drive = ClientDrive()
    drive.start()
    assert not exits(drive.pass_time(24 * 3600.0))


def test_a_refused_process_ends_with_the_reason() -> None:
    drive = ClientDrive()
    drive.start()
    (end,) = exits(drive.dispatch(Refused(reason="other numerics", kind=RefusalKind.NUMERICS)))
    assert end == Exit(code=2, reason="the server refused this worker: other numerics", kind=FailureKind.REFUSED)


def test_a_process_that_cannot_prepare_leaves_with_the_reason() -> None:
    drive = client_in(ClientPhase.PREPARING)
    effects = drive.dispatch(PreparationFailed(reason="no data"))
    assert sent(effects) == [Leave(reason="no data")]
    assert exits(effects) == [Exit(code=2, reason="no data", kind=FailureKind.PREPARATION)]


def test_a_server_that_breaks_the_protocol_is_left_with_the_reason() -> None:
    drive = client_in(ClientPhase.JOINED)
    effects = drive.dispatch(ProtocolBroken(fault="weights of 3 values"))
    assert sent(effects) == [Leave(reason="the server broke the protocol: weights of 3 values")]
    assert [(end.code, end.kind) for end in exits(effects)] == [(1, FailureKind.PROTOCOL)]


def test_a_silent_server_is_asked_whether_it_is_there() -> None:
    drive = client_in(ClientPhase.JOINED)
    assert set(map(type, sent(drive.pass_time(2 * FIRST_RETRY_S)))) == {Ping}
    drive.client.on_message(drive.now)
    assert sent(drive.pass_time(FIRST_RETRY_S / 2 - 0.1)) == []


def test_a_server_that_does_not_answer_is_asked_less_often_and_this_is_reported() -> None:
    drive = client_in(ClientPhase.JOINED)
    effects = drive.pass_time(300.0)
    assert 300.0 / MOST_RETRY_S <= len(sent(effects)) <= 2 + 2 * 300.0 / MOST_RETRY_S
    found = reports(effects)
    assert len(found) == 5  # after 10, 20, 40, 80 and 160 seconds
    assert found[0].startswith("the server at tcp://h:1 has been silent for 1")
    assert found[0].endswith(" s: trying for 600 s")
    drive.client.on_message(drive.now)
    assert reports(drive.pass_time(FIRST_REPORT_S - 0.1)) == []


def test_processes_do_not_all_ask_at_the_same_time() -> None:
    dues = set()
    for number in range(50):
        drive = ClientDrive(incarnation=f"life {number}")
        drive.enter()
        dues.add(drive.client.deadline())
    assert len(dues) == 50


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(None, 600.0), (30.0, 30.0), (3.0, 3.0)])
def test_a_server_that_is_silent_for_too_long_counts_as_gone(timeout_s: float | None, limit_s: float) -> None:
    drive = ClientDrive(timeout_s)
    drive.enter()
    assert not exits(drive.pass_time(limit_s - 0.1))
    (end,) = exits(drive.pass_time(2 * MOST_RETRY_S))
    assert (end.code, end.kind) == (1, FailureKind.UNREACHABLE)
    assert end.reason.startswith("the server at tcp://h:1 has been silent for ")


def test_a_process_that_was_stopped_for_an_hour_asks_before_it_gives_up() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.now += 3600.0
    assert sent(drive.dispatch(TimePassed())) == [Ping()]
    drive.client.on_message(drive.now)
    assert not exits(drive.pass_time(60.0))


def test_an_evicted_process_joins_its_run_again_and_otherwise_another_as_a_new_one() -> None:
    drive = client_in(ClientPhase.JOINED)
    effects = drive.dispatch(Eviction(reason="a restart"))
    assert reports(effects) == ["rejoining: a restart"]
    (join,) = sent(effects)
    assert isinstance(join, Join)
    assert (join.run, join.incarnation) == (WELCOME.run, f"{JOIN.incarnation}.1")
    # What still comes from before is ignored.
    assert drive.dispatch(Eviction(reason="again")) == []
    other = Refused(reason="this is run 'green'", kind=RefusalKind.OTHER_RUN)
    (join,) = sent(drive.dispatch(other))
    assert isinstance(join, Join)
    assert (join.run, join.incarnation) == ("", f"{JOIN.incarnation}.2")
    # A second one answers the join before.
    assert drive.dispatch(other) == []
    drive.dispatch(WELCOME)
    drive.dispatch(PREPARED)
    assert drive.dispatch(other) == []
    assert drive.client.phase is ClientPhase.JOINED


@pytest.mark.parametrize("joined_s", [0.0, 5000.0])
def test_a_process_that_rejoins_asks_often_and_not_for_ever(joined_s: float) -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.now += joined_s
    drive.dispatch(Eviction(reason="a restart"))
    effects = drive.pass_time(599.0)
    assert len(sent(effects)) >= 599.0 / MOST_RETRY_S
    assert not exits(effects)
    (end,) = exits(drive.pass_time(1.0))
    assert end.reason == "no server answered at tcp://h:1 within 600 s: is it running there?"


def test_an_obstacle_is_reported_and_ends_the_process_if_it_is_final() -> None:
    drive = ClientDrive()
    drive.start()
    drive.now = drive.client.deadline() or 0.0
    assert drive.dispatch(Diagnosis("nothing listens there", Stage.PORT)) == []
    (report,) = reports(drive.dispatch(TimePassed()))
    assert report.endswith("s): nothing listens there")
    (report,) = reports(drive.dispatch(TimePassed()))
    assert report.endswith(" s)")
    (end,) = exits(drive.dispatch(Diagnosis("it requires a key", Stage.KEY, is_final=True)))
    assert (end.code, end.reason) == (2, "it requires a key")


def test_a_server_that_answers_never_counts_as_gone() -> None:
    drive = client_in(ClientPhase.JOINED)
    for _ in range(50):
        assert not exits(drive.pass_time(50.0))
        drive.client.on_message(drive.now)


@pytest.mark.parametrize(
    ("finished", "end"),
    [
        (Finished(reason=""), Exit(code=0, reason="")),
        (
            Finished(reason="a loss", kind=FailureKind.DIVERGED),
            Exit(code=1, reason="the run failed: a loss", kind=FailureKind.DIVERGED),
        ),
    ],
)
@pytest.mark.parametrize("phase", [ClientPhase.JOINING, ClientPhase.JOINED])
def test_the_end_of_the_run_is_the_end_of_the_process(phase: ClientPhase, finished: Finished, end: Exit) -> None:
    assert client_in(phase).dispatch(finished) == [end]


@pytest.mark.parametrize("phase", [phase for phase in ClientPhase if phase is not ClientPhase.ENDED])
def test_an_interrupt_in_any_phase_is_reported_to_the_server_and_ends_it(phase: ClientPhase) -> None:
    effects = client_in(phase).dispatch(Interrupted())
    assert sent(effects) == [Leave(reason="interrupted")]
    assert exits(effects) == [Exit(code=130, reason="interrupted", kind=FailureKind.INTERRUPTED)]


def test_a_server_that_fell_silent_again_is_asked_and_reported_as_soon_as_at_first() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.pass_time(300.0)
    drive.client.on_message(drive.now)
    assert (drive.client.deadline() or 0.0) <= drive.now + FIRST_RETRY_S
    assert len(reports(drive.pass_time(FIRST_REPORT_S + MOST_RETRY_S))) == 1


def test_a_process_that_rejoins_late_asks_again_as_soon_as_at_first() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.pass_time(300.0)
    drive.dispatch(Eviction(reason="a restart"))
    assert drive.now < (drive.client.deadline() or 0.0) <= drive.now + FIRST_RETRY_S


def test_an_obstacle_is_no_sign_of_a_server() -> None:
    drive = ClientDrive()
    drive.start()
    due, drive.now = drive.client.deadline(), drive.now + 0.5
    drive.dispatch(Diagnosis("nothing listens there", Stage.PORT))
    assert drive.client.deadline() == due


def test_a_process_that_was_stopped_asks_twice_before_it_gives_up() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.now += 3600.0
    assert sent(drive.dispatch(TimePassed())) == [Ping()]
    assert sent(drive.dispatch(TimePassed())) == [Ping()]
    assert exits(drive.dispatch(TimePassed()))


def test_an_evicted_process_asks_for_the_run_that_it_was_in_last() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.dispatch(Eviction(reason="a restart"))
    drive.dispatch(msgspec.structs.replace(WELCOME, run="green"))
    drive.dispatch(PREPARED)
    (join,) = sent(drive.dispatch(Eviction(reason="another")))
    assert isinstance(join, Join)
    assert (join.run, join.incarnation) == ("green", f"{JOIN.incarnation}.2")


def test_a_shard_that_rejoins_is_a_new_incarnation_too() -> None:
    join = ShardJoin(protocol=1, incarnation="a", host="h", pid=1, fingerprint=JOIN.fingerprint, address="tcp://h:2")
    config = ClientConfig(address="tcp://h:1", join=join, silence_s=600.0)
    client = Client(config, role="shard")
    for event in (Started(), WELCOME, PREPARED):
        client.handle(event, 100.0)
    (again,) = sent(client.handle(Eviction(reason="a restart"), 5000.0))
    assert again == msgspec.structs.replace(join, incarnation="a.1")


def test_a_shard_without_a_slice_is_told_why_it_waits_once() -> None:
    drive = ClientDrive()
    drive.start()
    spare = Spare(reason="all 2 servers are there")
    assert reports(drive.dispatch(spare)) == ["all 2 servers are there"]
    drive.pass_time(60.0)
    assert drive.dispatch(spare) == []
    assert drive.client.phase is ClientPhase.JOINING


def test_a_server_that_was_restarted_is_asked_within_two_seconds() -> None:
    drive = client_in(ClientPhase.JOINED)
    drive.pass_time(300.0)
    asked = sum(isinstance(message, Ping) for message in sent(drive.pass_time(MOST_RETRY_S)))
    assert asked >= 1
    assert MOST_RETRY_S <= 2.0

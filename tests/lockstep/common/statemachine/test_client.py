"""How a process joins a run and leaves it: it asks, prepares, waits for a silent server, and knows when to go."""

from itertools import product
from typing import get_args

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.errors import Diagnosis, FailureKind, RefusalKind, Stage
from lockstep.common.protocol.messages import (
    NO_TERM,
    Eviction,
    Finished,
    HandedOver,
    Join,
    Leave,
    NotLeading,
    Ping,
    Refused,
    StandbyAddress,
    StandbysChanged,
    Term,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady
from lockstep.common.statemachine.client import (
    FIRST_REPORT_S,
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
    Redial,
    SendToServer,
)
from lockstep.common.statemachine.leader_search import FIRST_RETRY_S
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

STANDBY = StandbyAddress(address="tcp://h:9")

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
        ShardReady(index=1, term=NO_TERM),
        PreparationFailed(reason="no data"),
        StandbysChanged(standbys=(STANDBY,)),
        HandedOver(standby=STANDBY),
        NotLeading(state="silent", reason="1 of the 3 of the last step say so"),
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
    assert sent(drive.pass_time(MOST_JOIN_RETRY_S)) == [JOIN]


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


def test_what_is_wrong_at_a_standby_does_not_end_a_process_that_may_come_back_to_the_server() -> None:
    final = Diagnosis("it does not admit the key", Stage.KEY, is_final=True)
    drive = ClientDrive()
    drive.client.search.named = (StandbyAddress(address="tcp://h:2"),)
    drive.start()
    effects = drive.dispatch(NotLeading(state="following", reason="no", leader=StandbyAddress(address="tcp://h:2")))
    assert Redial(server=StandbyAddress(address="tcp://h:2")) in effects
    assert drive.dispatch(final) == []
    (report,) = reports(drive.dispatch(TimePassed()))
    assert report.endswith("s): it does not admit the key")
    while drive.client.search.server.address != "tcp://h:1":
        drive.pass_time(1.0)
    assert exits(drive.dispatch(final))


def test_the_key_of_a_standby_is_tried_once_the_server_there_has_another_key() -> None:
    other = Diagnosis("its key is another", Stage.KEY, is_final=True, has_other_key=True)
    keyed = [StandbyAddress(address="tcp://h:1", public=public) for public in ("a", "b")]
    for keys in ([], keyed):
        drive = ClientDrive()
        drive.client.search.keyed = tuple(keys)
        drive.start()
        # As long as nothing else is known, a server that comes late is asked with its own key.
        assert not [effect for effect in drive.pass_time(60.0) if isinstance(effect, Redial)]
        effects = drive.dispatch(other)
        if not keys:
            (end,) = exits(effects)
            assert (end.code, end.reason) == (2, "its key is another")
    assert Redial(server=keyed[0]) in effects
    assert Redial(server=keyed[1]) in drive.pass_time(6.0)
    drive.dispatch(WELCOME)
    # It is the right one, and no other is tried if the server is silent.
    assert drive.client.search.servers() == [keyed[1]]


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


TERM = Term(run="r", number=2, server="s")


def with_standby(*others: StandbyAddress) -> ClientDrive:
    """Return a client that was welcomed in a term, and knows of a standby, or several."""
    drive = ClientDrive()
    drive.start()
    drive.dispatch(msgspec.structs.replace(WELCOME, term=TERM, standbys=(STANDBY, *others), options=RunOptions()))
    drive.dispatch(PREPARED)
    return drive


def pass_time(drive: ClientDrive) -> list[object]:
    """Let the next deadline pass."""
    due = drive.client.deadline()
    assert due is not None
    drive.now = max(drive.now, due)
    return drive.dispatch(TimePassed())


def redials(effects: list[object]) -> list[StandbyAddress]:
    return [effect.server for effect in effects if isinstance(effect, Redial)]


def test_a_silent_server_is_left_for_a_standby_after_the_time_that_the_job_names() -> None:
    drive, began, effects = with_standby(), 100.0, list[object]()
    while not redials(effects):
        effects = pass_time(drive)
    assert redials(effects) == [STANDBY]
    assert 5.0 <= drive.now - began <= 6.0
    (asked,) = sent(effects)
    assert isinstance(asked, Join)
    assert (asked.term, asked.last_rank, asked.run) == (TERM, WELCOME.rank, WELCOME.run)


def test_a_standby_whose_key_is_not_known_is_tried_with_each_until_a_server_has_named_it() -> None:
    first, own, shared = (StandbyAddress(address=one) for one in ("tcp://h:1", "tcp://h:9", "tcp://h:9"))
    own = msgspec.structs.replace(own, public="k" * 40)
    drive = ClientDrive()
    drive.client.search.given = (first, own, shared)
    drive.start()
    drive.dispatch(Diagnosis("nothing listens at tcp://h:1", Stage.PORT))
    found: list[StandbyAddress] = []
    while len(found) < 4:
        effects = pass_time(drive)
        if redials(effects):
            found += redials(effects)
            # What was found out of the first address says nothing of this one.
            assert drive.client.obstacle == ""
    assert found == [own, shared, first, own]
    drive.dispatch(msgspec.structs.replace(WELCOME, term=TERM, standbys=(own,)))
    drive.dispatch(PREPARED)
    drive.dispatch(Eviction(reason="a restart"))
    found.clear()
    while len(found) < 3:
        found += redials(pass_time(drive))
    assert found == [first, own, first]


def test_a_server_that_answers_is_not_left() -> None:
    drive = with_standby()
    for _ in range(50):
        assert redials(pass_time(drive)) == []
        drive.client.on_message(drive.now)
    assert drive.client.phase is ClientPhase.JOINED


def test_a_process_that_was_stopped_for_an_hour_asks_before_it_leaves() -> None:
    drive = with_standby()
    drive.now += 3600.0
    effects = drive.dispatch(TimePassed())
    assert (redials(effects), [type(message) for message in sent(effects)]) == ([], [Ping])
    drive.client.on_message(drive.now)
    assert redials(pass_time(drive)) == []


def at_standby() -> ClientDrive:
    drive, effects = with_standby(), list[object]()
    while not redials(effects):
        effects = pass_time(drive)
    return drive


def test_it_waits_at_a_standby_that_misses_the_server_too() -> None:
    drive = at_standby()
    began, effects = drive.now, list[object]()
    while not redials(effects):
        drive.dispatch(NotLeading(state="silent", reason="1 of the 3 of the last step say so"))
        effects = pass_time(drive)
    # Then it looks whether another one leads the run.
    assert 30.0 <= drive.now - began <= 31.0


def test_it_waits_at_a_server_that_waits_for_its_shards_as_long_as_that_answers() -> None:
    drive, effects = at_standby(), list[object]()
    for _ in range(50):
        drive.dispatch(NotLeading(state="opening", reason="the server waits for its shards"))
        assert redials(pass_time(drive)) == []
    began = drive.now
    while not redials(effects):
        effects = pass_time(drive)
    assert drive.now - began <= 6.0


@pytest.mark.parametrize("answer", [None, NotLeading(state="following", reason="it hears tcp://h:1")])
def test_it_goes_back_if_nobody_or_only_it_misses_the_server(answer: NotLeading | None) -> None:
    drive, effects, began = at_standby(), list[object](), 0.0
    began = drive.now
    while not redials(effects):
        if answer is not None:
            drive.dispatch(answer)
        effects = pass_time(drive)
    assert redials(effects) == [StandbyAddress(address="tcp://h:1")]
    assert drive.now - began <= 6.0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_asks_each_server_in_turn_and_none_is_left_out(count: int) -> None:
    """As one that was cut off for some seconds from a server that leads the run all the time."""
    first, standbys = StandbyAddress(address="tcp://h:1"), [STANDBY]
    standbys += [StandbyAddress(address=f"tcp://h:{number}", public="key") for number in (20, 21)][: count - 1]
    drive, asked = with_standby(*standbys[1:]), list[StandbyAddress]()
    while len(asked) < 3 * (count + 1):
        asked += redials(pass_time(drive))
        if asked:
            drive.dispatch(NotLeading(state="following", reason="it hears tcp://h:1"))
    assert asked == [*standbys, first] * 3


def test_a_welcome_of_an_old_term_is_refused_in_one_line() -> None:
    drive = at_standby()
    old = Term(run="r", number=1, server="z")
    effects = drive.dispatch(msgspec.structs.replace(WELCOME, term=old))
    assert reports(effects) == ["asking tcp://h:1: tcp://h:9 welcomes in term 1, and term 2 has begun"]
    assert (drive.client.phase, drive.client.search.term) == (ClientPhase.JOINING, TERM)


def test_a_server_that_refuses_since_it_led_once_is_left() -> None:
    drive = at_standby()
    assert redials(drive.dispatch(Refused(reason="term 3 has begun", kind=RefusalKind.OLD_TERM)))
    assert drive.client.phase is ClientPhase.JOINING


def test_a_run_that_was_handed_over_is_joined_where_it_is() -> None:
    drive = with_standby()
    assert redials(drive.dispatch(HandedOver(standby=STANDBY))) == [STANDBY]


def test_it_gives_up_where_nobody_leads_the_run_in_time() -> None:
    drive = at_standby()
    while drive.client.phase is ClientPhase.JOINING:
        pass_time(drive)
    assert 600.0 <= drive.now - 100.0 <= 620.0


def test_it_goes_where_a_standby_hears_the_leader_unless_it_has_just_come_from_there() -> None:
    leader, old = StandbyAddress(address="tcp://h:7", public="key"), StandbyAddress(address="tcp://h:1")
    drive = at_standby()
    answer = NotLeading(state="following", reason="it hears tcp://h:1", leader=old)
    assert redials(drive.dispatch(answer)) == []
    effects = drive.dispatch(replace(answer, reason="it hears tcp://h:7", leader=leader))
    assert redials(effects) == [leader]
    assert reports(effects) == ["asking tcp://h:7: tcp://h:9: it hears tcp://h:7"]
    # That one is silent, and the search continues.
    asked: list[StandbyAddress] = []
    while len(asked) < 2:
        asked += redials(pass_time(drive))
    assert asked == [old, STANDBY]

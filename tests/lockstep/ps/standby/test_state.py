"""When a standby leads the run: more than half of the last step's workers say so, or a person, or its server."""

from itertools import product
from typing import get_args

import pytest

from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Join,
    Leave,
    NotLeading,
    Ping,
    Refused,
    StandbyAddress,
    StatusRequest,
    Term,
)
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    FilePart,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFile,
    RunFiles,
)
from lockstep.common.statemachine.client import Exit, ObstacleFound, ProtocolBroken, Redial, SendToServer, Started
from lockstep.common.statemachine.machine import ILLEGAL, Interrupted, PeerLeft, Received, Report, Send, TimePassed
from lockstep.ps.standby.mirror import CompleteFile, StorePart
from lockstep.ps.standby.state import (
    TRANSITIONS,
    FileCompleted,
    PartReceived,
    PartStored,
    StandbyConfig,
    StandbyEffect,
    StandbyEvent,
    StandbyPhase,
    StandbyState,
    StoringFailed,
    TakeOver,
)

SERVER, OWN, OTHER = (StandbyAddress(address=f"tcp://h:{port}") for port in (1, 2, 3))
TERM, NEXT = (Term(run="r", number=number, server="s") for number in (4, 5))
DIGEST = "0123456789abcdef" * 4
FILE = RunFile(name="receipt.json", size=4, version=DIGEST)


def files(*electors: int, term: Term = TERM, **more: object) -> RunFiles:
    values = {"state": "running", "heir": "", "files": [], "standbys": (), **more}
    return RunFiles(term=term, run="r", step=3, steps=9, kept={}, electors=[*electors], takeover_s=5.0, **values)  # type: ignore[arg-type]


def part(term: Term = TERM) -> FilePart:
    return FilePart(name=FILE.name, version=FILE.version, start=0, size=4, digest=DIGEST, term=term)


def join(rank: int | None, term: Term = TERM) -> Join:
    return Join(
        protocol=PROTOCOL_VERSION,
        incarnation=f"w{rank}",
        host="h",
        pid=1,
        fingerprint=fingerprint(),
        run="r",
        term=term,
        last_rank=rank,
    )


def standby(*electors: int, now: float = 0.0) -> StandbyState:
    """Return a standby that has all of a run, whose last step was computed by these."""
    state = StandbyState(StandbyConfig(server=SERVER, own=OWN, host="h", pid=1))
    state.handle(Started(), now)
    state.handle(files(*electors), now)
    return state


def claims(state: StandbyState, now: float, *joins: Join) -> list[StandbyEffect]:
    effects = [state.handle(Received(peer=bytes([number]), message=each), now) for number, each in enumerate(joins, 1)]
    state.validate()
    return effects[-1]


def takeovers(effects: list[StandbyEffect]) -> list[TakeOver]:
    return [effect for effect in effects if isinstance(effect, TakeOver)]


def answers(effects: list[StandbyEffect]) -> list[str]:
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message.state for message in sent if isinstance(message, NotLeading)]


MESSAGES = (
    join(0),
    ShardJoin(protocol=1, incarnation="s", host="h", pid=1, fingerprint=fingerprint(), address="tcp://h:8"),
    MirrorRequest(protocol=1, host="h", pid=2, address="tcp://h:3"),
    LeaderRequest(),
    Promote(),
    Drain(),
    StatusRequest(),
    Ping(),
    Leave(reason=""),
)
EVENTS: list[StandbyEvent] = [
    Started(),
    files(0),
    PartReceived(part=part(), is_intact=True),
    NotLeading(state="silent", reason="no"),
    LeaderNotice(term=NEXT, address=OTHER.address),
    Refused(reason="no"),
    ProtocolBroken(fault="a header of 3 bytes"),
    ObstacleFound(obstacle="nothing listens there", is_final=False),
    ObstacleFound(obstacle="it does not admit the key", is_final=True),
    PeerLeft(peer=b"1", reason="gone"),
    TimePassed(),
    Interrupted(),
    StoringFailed(reason="no space"),
    *(Received(peer=b"1", message=message) for message in MESSAGES),
]


def test_the_table_has_an_entry_for_every_event() -> None:
    kinds = {*get_args(StandbyEvent), *map(type, MESSAGES)} - {Received}
    assert set(TRANSITIONS) == set(product(StandbyPhase, kinds))
    assert ILLEGAL not in TRANSITIONS.values()


@pytest.mark.parametrize("phase", StandbyPhase)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_in_every_phase_obeys_the_table(phase: StandbyPhase, event: StandbyEvent) -> None:
    state = standby(0, 1, 2)
    state.phase = phase
    state.handle(event, 1.0)


@pytest.mark.parametrize(("electors", "needed"), [((0,), 1), ((0, 1), 2), ((0, 1, 2), 2), ((0, 1, 2, 3), 3)])
def test_more_than_half_of_the_last_step_decide(electors: tuple[int, ...], needed: int) -> None:
    state = standby(*electors)
    if needed > 1:
        effects = claims(state, 10.0, *map(join, electors[: needed - 1]))
        assert takeovers(effects) == []
        assert answers(effects) == ["silent"]
    effects = claims(state, 10.0, *map(join, electors[:needed]))
    (takeover,) = takeovers(effects)
    assert takeover.least == 5
    # All that wait hear of it.
    assert answers(effects) == ["taking over"] * needed


def test_others_do_not_decide() -> None:
    state, old = standby(0, 1, 2), Term(run="r", number=3, server="s")
    strange = Term(run="other", number=9, server="s")
    assert takeovers(claims(state, 10.0, join(0), join(7), join(None), join(1, old), join(2, strange))) == []


def test_one_worker_that_asks_twice_counts_once() -> None:
    assert takeovers(claims(standby(0, 1, 2), 10.0, join(0), join(0), join(0))) == []


def test_a_worker_that_went_back_does_not_count() -> None:
    state = standby(0, 1, 2)
    claims(state, 10.0, join(0))
    state.handle(PeerLeft(peer=b"\1", reason="gone"), 11.0)
    assert takeovers(state.handle(Received(peer=b"x", message=join(1)), 12.0)) == []


def test_what_was_said_long_ago_does_not_count() -> None:
    state = standby(0, 1, 2)
    claims(state, 10.0, join(0))
    assert takeovers(state.handle(Received(peer=b"x", message=join(1)), 40.0)) == []


def test_workers_of_a_later_term_decide_too_and_the_new_term_is_above_theirs() -> None:
    (takeover,) = takeovers(claims(standby(0, 1, 2), 10.0, join(0, NEXT), join(1, NEXT)))
    assert takeover.least == 6


def test_a_run_of_which_nothing_was_computed_goes_on_if_the_standby_misses_the_server_too() -> None:
    state = standby()
    assert takeovers(claims(state, 1.0, join(0))) == []
    assert len(takeovers(claims(state, 6.0, join(0)))) == 1


def test_a_worker_that_alone_misses_the_server_is_told_so() -> None:
    assert answers(claims(standby(0, 1, 2), 1.0, join(0))) == ["following"]


def test_nothing_is_led_from_half_a_mirror() -> None:
    state = StandbyState(StandbyConfig(server=SERVER, own=OWN, host="h", pid=1))
    state.handle(Started(), 0.0)
    state.handle(files(0, files=[FILE]), 0.0)
    assert takeovers(claims(state, 10.0, join(0))) == []
    (refused,) = state.handle(Received(peer=b"x", message=Promote()), 10.0)
    assert isinstance(refused, Send)
    assert refused.message == CommandOutcome(is_accepted=False, text="it has not mirrored the run yet: try again")
    assert state.handle(PartReceived(part=part(), is_intact=True), 10.0) == [StorePart(part=part())]
    assert state.handle(PartStored(part=part()), 10.0) == [CompleteFile(file=FILE)]
    state.handle(FileCompleted(file=FILE), 10.0)
    assert len(takeovers(state.handle(Received(peer=b"x", message=Promote()), 10.0))) == 1


def test_a_damaged_part_is_asked_for_again_and_reported_once() -> None:
    state = StandbyState(StandbyConfig(server=SERVER, own=OWN, host="h", pid=1))
    state.handle(files(0, files=[FILE]), 0.0)
    first = state.handle(PartReceived(part=part(), is_intact=False), 0.0)
    assert [type(effect).__name__ for effect in first] == ["Report", "AskFor"]
    second = state.handle(PartReceived(part=part(), is_intact=False), 0.0)
    assert [type(effect).__name__ for effect in second] == ["AskFor"]


def test_a_full_disk_is_reported_once_and_tried_again() -> None:
    state = standby(0)
    (report,) = state.handle(StoringFailed(reason="cannot write to 'm': No space left on device"), 1.0)
    assert isinstance(report, Report)
    assert report.text.startswith("warning: cannot write to 'm': No space left on device: the run does not need it")
    assert state.handle(StoringFailed(reason="cannot write to 'm': No space left on device"), 2.0) == []
    assert any(isinstance(effect, SendToServer) for effect in state.handle(TimePassed(), 4.0))


def test_what_prevents_a_connection_is_reported_once_and_ends_it_if_waiting_is_of_no_use() -> None:
    state = StandbyState(StandbyConfig(server=SERVER, own=OWN, host="h", pid=1))
    state.handle(Started(), 0.0)
    nothing = ObstacleFound(obstacle="nothing listens there", is_final=False)
    (report,) = state.handle(nothing, 2.0)
    assert report == Report(text="waiting for a server at tcp://h:1: nothing listens there")
    assert state.handle(nothing, 4.0) == []
    _, ended = state.handle(ObstacleFound(obstacle="it does not admit the key", is_final=True), 6.0)
    assert isinstance(ended, Exit)
    assert (ended.code, ended.reason) == (2, "it does not admit the key")


def test_a_server_that_led_once_is_not_mirrored_and_is_told_so() -> None:
    state = standby(0)
    state.handle(files(0, standbys=(OWN, OTHER)), 0.0)
    effects = state.handle(files(0, term=Term(run="r", number=3, server="z"), standbys=(OWN, OTHER)), 1.0)
    report, notice, redial = effects
    assert isinstance(report, Report)
    assert "leads in term 3, and term 4 has begun: it is not mirrored" in report.text
    assert notice == SendToServer(message=LeaderNotice(term=TERM, address=""))
    assert redial == Redial(server=OTHER)
    assert state.mirror.term == TERM


def test_a_silent_server_is_left_for_another_standby_that_may_lead_by_now() -> None:
    state = standby(0)
    state.handle(files(0, standbys=(OWN, OTHER)), 0.0)
    now, redials = 0.0, list[Redial]()
    while not redials:
        due = state.deadline()
        assert due is not None
        now = max(now, due)
        redials = [effect for effect in state.handle(TimePassed(), now) if isinstance(effect, Redial)]
    assert redials == [Redial(server=OTHER)]
    assert 5.0 <= now <= 6.0


def test_a_run_that_is_handed_over_is_led_once_all_of_it_is_here() -> None:
    state = standby(0)
    handed = files(0, files=[FILE], state="handed over", heir=OWN.address)
    assert takeovers(state.handle(handed, 1.0)) == []
    state.handle(PartReceived(part=part(), is_intact=True), 1.0)
    state.handle(PartStored(part=part()), 1.0)
    effects = state.handle(FileCompleted(file=FILE), 1.0)
    assert len(takeovers(effects)) == 1
    # Before: the server sends its workers here then.
    (leave,) = (effect for effect in effects if isinstance(effect, SendToServer))
    assert isinstance(leave.message, Leave)
    assert effects.index(leave) < effects.index(takeovers(effects)[0])


def test_a_standby_ends_with_its_run() -> None:
    state = standby(0)
    ends = [effect for effect in state.handle(files(0, state="over"), 1.0) if isinstance(effect, Exit)]
    assert ends == [Exit(code=0, reason="")]

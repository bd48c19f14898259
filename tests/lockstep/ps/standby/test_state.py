"""When a standby leads the run: more than half of the last step's workers say so, or a person, or its server."""

import copy
import hashlib
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from lockstep.common.errors import Diagnosis, FailureKind, Stage
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    NO_TERM,
    PROTOCOL_VERSION,
    Eviction,
    Join,
    Leave,
    Message,
    NotLeading,
    Ping,
    Refused,
    StandbyAddress,
    Status,
    StatusRequest,
    Term,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.protocol.standby_messages import (
    CommandOutcome,
    Drain,
    FilePart,
    FilePartRequest,
    LeaderNotice,
    LeaderRequest,
    MirrorRequest,
    Promote,
    RunFile,
    RunFiles,
)
from lockstep.common.statemachine.client import Exit, ProtocolBroken, Redial, SendToServer
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.statemachine.machine import (
    ILLEGAL,
    Interrupted,
    PeerLeft,
    Received,
    Report,
    Send,
    Started,
    TimePassed,
)
from lockstep.ps.standby.mirror import Mirror
from lockstep.ps.standby.state import (
    CLAIM_S,
    FOLLOWS,
    POLL_S,
    REPORT_S,
    RETRY_S,
    TRANSITIONS,
    PartReceived,
    StandbyEffect,
    StandbyEvent,
    StandbyPhase,
    StandbyState,
    TakeOver,
)
from lockstep.ps.standby.terms import LedTerm, TermHistory, write_terms

SERVER, OTHER = (StandbyAddress(address=f"tcp://h:{port}") for port in (1, 3))
OWN = StandbyAddress(address="tcp://h:2", public="key")
REQUEST = MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address=OWN.address, public=OWN.public)
TERM, NEXT = (Term(run="r", number=number, server="s") for number in (4, 5))
DATA = b"text"
DIGEST = hashlib.sha256(DATA).hexdigest()
FILE = RunFile(name="receipt.json", size=4, digest=DIGEST)
LATER = RunFile(name="terms.json", size=4, digest=hashlib.sha256(b"more").hexdigest())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the mirrors of a test be in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(*electors: int, term: Term = TERM, **more: object) -> RunFiles:
    values = {"checkpoint": 0, "state": "running", "successor": "", "files": [], "standbys": (), "step": 3}
    values |= {"steps": 9, "options": RunOptions(), **more}
    return RunFiles(term=term, run="r", electors=[*electors], **values)  # type: ignore[arg-type]


def part(file: RunFile = FILE, *, start: int = 0, size: int = 4) -> FilePart:
    return FilePart(name=file.name, digest=file.digest, start=start, size=size)


def comes(state: StandbyState, now: float) -> list[StandbyEffect]:
    """Let the file come that was asked for; return what follows."""
    return state.handle(PartReceived(part=part(), data=DATA), now)


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
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), held=files(*electors)))
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
    MirrorRequest(protocol=1, host="h", address="tcp://h:3"),
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
    PartReceived(part=part(), data=DATA),
    NotLeading(state="silent", reason="no"),
    LeaderNotice(term=NEXT, address=OTHER.address),
    Refused(reason="no"),
    ProtocolBroken(fault="a header of 3 bytes"),
    Diagnosis("nothing listens there", Stage.PORT),
    Diagnosis("it does not admit the key", Stage.KEY, is_final=True),
    PeerLeft(peer=b"1", reason="gone"),
    TimePassed(),
    Interrupted(),
    *(Received(peer=b"1", message=message) for message in MESSAGES),
]


def test_the_table_has_an_entry_for_every_event() -> None:
    kinds = {*get_args(StandbyEvent), *map(type, MESSAGES)} - {Received}
    assert set(TRANSITIONS) == set(product(StandbyPhase, kinds))
    assert ILLEGAL not in TRANSITIONS.values()


@pytest.mark.parametrize("phase", StandbyPhase)
def test_every_event_obeys_the_table(phase: StandbyPhase) -> None:
    for event in EVENTS:
        state = standby(0, 1, 2)
        state.phase = phase
        assert isinstance(state.handle(event, 1.0), list)


@pytest.mark.parametrize(("electors", "needed"), [((0,), 1), ((0, 1), 2), ((0, 1, 2), 2), ((0, 1, 2, 3), 3)])
def test_more_than_half_of_the_last_step_decide(electors: tuple[int, ...], needed: int) -> None:
    state = standby(*electors)
    if needed > 1:
        effects = claims(state, 10.0, *map(join, electors[: needed - 1]))
        assert takeovers(effects) == []
        assert answers(effects) == ["silent"]
    effects = claims(state, 10.0, *map(join, electors[:needed]))
    (takeover,) = takeovers(effects)
    assert takeover.number == 5
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
    assert takeover.number == 6


def test_a_run_of_which_nothing_was_computed_goes_on_if_the_standby_misses_the_server_too() -> None:
    state = standby()
    assert takeovers(claims(state, 1.0, join(0))) == []
    # It was stopped itself, and has not listened: the server has a moment to answer.
    assert takeovers(claims(state, 16.0, join(0))) == []
    for now in (16.0, 18.0):
        state.handle(TimePassed(), now)
    assert len(takeovers(claims(state, 18.0, join(0)))) == 1


def follows(state: StandbyState, now: float, address: str = SERVER.address, *, step: int = 0) -> list[StandbyEffect]:
    """Let the process at an address ask as a standby, while the server has been asked twice without an answer."""
    state.unanswered = 2
    request = MirrorRequest(protocol=1, host="h", address=address, step=step)
    return state.handle(Received(peer=b"1", message=request), now)


def led_by(number: int, address: str) -> None:
    """Let the files that are here be those of a term."""
    write_terms(Path(), TermHistory(run="r", terms=[LedTerm(number=number, server="s", step=0, address=address)]))


def test_a_standby_leads_if_the_last_leader_is_a_standby_now_and_all_workers_are_gone() -> None:
    led_by(TERM.number, SERVER.address)
    state = standby(0, 1, 2)
    # It may have been left for a while, by a leader of which this standby has not heard yet.
    assert answers(follows(state, 14.0)) == ["silent"]
    effects = follows(state, 15.0)
    (takeover,) = takeovers(effects)
    assert takeover == TakeOver(number=5, reason="tcp://h:1 led it last, and is a standby now")
    assert answers(effects) == ["taking over"]
    assert takeovers(follows(state, 16.0)) == []


@pytest.mark.parametrize(
    ("number", "leader", "step"),
    [
        (TERM.number, OTHER.address, 0),
        # The mirror is of an earlier term, and the leader of the last one may live.
        (TERM.number - 1, SERVER.address, 0),
        (TERM.number, SERVER.address, 1),
    ],
)
def test_any_other_standby_changes_nothing(number: int, leader: str, step: int) -> None:
    led_by(number, leader)
    assert answers(follows(standby(0), 100.0, step=step)) == ["silent"]


def test_a_server_that_makes_steps_is_not_gone_however_many_workers_miss_it() -> None:
    state = standby(0, 1, 2)
    assert takeovers(claims(state, 10.0, join(0))) == []
    state.handle(files(0, 1, 2, step=6), 10.5)
    assert takeovers(state.handle(Received(peer=b"x", message=join(1)), 11.0)) == []
    # It stands still, and answers all the same: it may have lost its workers.
    state.handle(files(0, 1, 2, step=6), 11.5)
    assert len(takeovers(state.handle(Received(peer=b"y", message=join(2)), 12.0))) == 1


def test_a_worker_that_alone_misses_the_server_is_told_so() -> None:
    assert answers(claims(standby(0, 1, 2), 1.0, join(0))) == ["following"]


def test_nothing_is_led_from_half_a_mirror() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    state.handle(Started(), 0.0)
    state.handle(files(0, files=[FILE]), 0.0)
    assert takeovers(claims(state, 10.0, join(0))) == []
    (refused,) = state.handle(Received(peer=b"x", message=Promote()), 10.0)
    assert isinstance(refused, Send)
    assert refused.message == CommandOutcome(is_accepted=False, text="it has not mirrored the run yet: try again")
    comes(state, 10.0)
    assert len(takeovers(state.handle(Received(peer=b"x", message=Promote()), 10.0))) == 1


def test_a_damaged_file_is_reported_once_and_comes_again() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    for reports in (1, 0):
        state.handle(files(0, files=[FILE]), 0.0)
        found = state.handle(PartReceived(part=part(), data=b"Text"), 0.0)
        assert [type(effect).__name__ for effect in found] == ["Report"] * reports
    # The next round gets it.
    assert state.deadline() == POLL_S
    state.handle(files(0, files=[FILE]), 1.0)
    comes(state, 1.0)
    assert state.mirror.held is not None


def test_a_full_disk_is_reported_once_and_tried_again() -> None:
    def full(descriptor: int, data: bytes, place: int) -> int:
        raise OSError(28, "the disk is full")

    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), full))
    for now, reports in ((1.0, 1), (4.0, 0)):
        state.handle(files(0, files=[FILE]), now)
        found = comes(state, now + 0.5)
        warning = (
            "warning: cannot write to '.': the disk is full: the run does not need it, and the mirror is tried again"
        )
        assert found == [Report(text=warning)] * reports
        assert state.deadline() == now + 0.5 + RETRY_S
        assert state.handle(TimePassed(), now + 0.5 + RETRY_S) == [request(is_whole=False)]


def test_a_part_that_the_server_cannot_read_is_asked_for_again_later() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    state.handle(files(0, files=[FILE]), 0.0)
    # It answers with the same set.
    assert state.handle(files(0, files=[FILE]), 0.1) == []
    assert state.handle(TimePassed(), RETRY_S) == [asks(FILE)]


def test_a_server_that_shows_less_than_is_here_takes_nothing_and_is_followed() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), held=files(0, checkpoint=6)))
    report = Report(text="warning: tcp://h:1: its checkpoint is of step 3: that of step 6 stays")
    assert report in state.handle(files(0, 1, checkpoint=3, files=[FILE], term=NEXT), 1.0)
    assert (state.mirror.step, state.mirror.is_whole, state.term) == (6, True, NEXT)
    # It decides by what the server has said last.
    assert takeovers(claims(state, 10.0, join(0, NEXT))) == []
    assert len(takeovers(claims(state, 10.0, join(0, NEXT), join(1, NEXT)))) == 1


def test_a_server_with_another_run_is_not_followed() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), held=files(0, checkpoint=6)))
    (report,) = state.handle(files(0, files=[FILE], term=Term(run="other", number=9, server="z")), 1.0)
    assert isinstance(report, Report)
    assert "tcp://h:1 is not mirrored: it is another run" in report.text
    assert (state.term, state.heard) == (TERM, 0.0)


def test_a_run_of_which_not_all_is_here_says_nothing_about_the_term_of_the_one_that_is() -> None:
    other = Term(run="other", number=1, server="z")
    state = standby(0)
    state.handle(files(files=[FILE], term=other), 1.0)
    assert takeovers(state.handle(Received(peer=b"x", message=Promote()), 2.0))[0].number == 5
    # Once all of it is here, it is led.
    state = standby(0)
    state.handle(files(files=[FILE], term=other), 1.0)
    comes(state, 1.5)
    assert takeovers(state.handle(Received(peer=b"x", message=Promote()), 2.0))[0].number == 2


def test_another_key_of_the_server_is_tried_before_it_ends() -> None:
    keyed = [StandbyAddress(address=SERVER.address, public=public) for public in ("a", "b")]
    state = StandbyState(LeaderSearch((SERVER,), OWN.address, keyed=tuple(keyed)), REQUEST, Mirror(Path()))
    state.handle(Started(), 0.0)
    wrong = Diagnosis("its key is another", Stage.KEY, is_final=True, has_other_key=True)
    assert state.handle(wrong, 1.0) == [Redial(server=keyed[0]), request(NO_TERM, is_whole=False)]
    assert state.handle(wrong, 2.0)[0] == Redial(server=keyed[1])
    # Once none is left, it ends; and at once if a key is right, and its own is not admitted.
    ends = [
        copy.deepcopy(state).handle(obstacle, 3.0)[-1]
        for obstacle in (wrong, Diagnosis("it does not admit the key", Stage.KEY, is_final=True))
    ]
    assert ends == [
        Exit(code=2, reason=reason, kind=FailureKind.UNREACHABLE)
        for reason in ("its key is another", "it does not admit the key")
    ]
    # With the right key it is heard, and no other is tried any more.
    state.handle(files(0, files=[FILE]), 3.0)
    assert state.search.servers() == [keyed[1]]


def test_what_prevents_a_connection_is_reported_once_and_ends_it_if_waiting_is_of_no_use() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    state.handle(Started(), 0.0)
    nothing = Diagnosis("nothing listens there", Stage.PORT)
    (report,) = state.handle(nothing, 2.0)
    assert report == Report(text="waiting for a server at tcp://h:1: nothing listens there")
    assert state.handle(nothing, 4.0) == []
    _, ended = state.handle(Diagnosis("it does not admit the key", Stage.KEY, is_final=True), 6.0)
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
    assert state.term == TERM


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
    handed = files(0, files=[FILE], state="handed over", successor=OWN.address)
    assert takeovers(state.handle(handed, 1.0)) == []
    reason = "tcp://h:1 has handed the run over"
    assert comes(state, 1.0) == [
        # First: the server sends its workers here then.
        SendToServer(message=Leave(reason="it has all of the run, and leads it from now on")),
        Report(text=f"takes over, from step 0: {reason}"),
        TakeOver(number=5, reason=reason),
    ]


def test_a_standby_ends_with_its_run() -> None:
    state = standby(0)
    ends = [effect for effect in state.handle(files(0, state="over"), 1.0) if isinstance(effect, Exit)]
    assert ends == [Exit(code=0, reason="")]


# What it does, to the last word

UNCHANGED = Report(text="has all that there is, and no checkpoint yet; the run is at step 3 of 9")
MIRRORS = Report(text="mirrors run r of tcp://h:1, in term 4")


def request(term: Term = TERM, *, step: int = 0, is_whole: bool = True) -> SendToServer:
    message = msgspec.structs.replace(REQUEST, term=term, step=step, is_whole=is_whole)
    return SendToServer(message=message)


def asks(file: RunFile, start: int = 0) -> SendToServer:
    return SendToServer(message=FilePartRequest(name=file.name, digest=file.digest, start=start))


def test_it_asks_its_server_until_that_answers() -> None:
    state, first = (
        StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path())),
        request(NO_TERM, is_whole=False),
    )
    assert state.handle(Started(), 1.0) == [first]
    assert state.deadline() == 1.0 + RETRY_S
    assert state.handle(TimePassed(), 2.9) == []
    assert state.handle(TimePassed(), 3.0) == [first]
    assert state.handle(files(0, files=[FILE]), 4.0) == [MIRRORS, asks(FILE)]
    assert comes(state, 4.0) == [UNCHANGED]
    assert state.deadline() == 4.0 + POLL_S
    assert state.handle(TimePassed(), 4.5) == [request()]
    assert state.handle(files(0, files=[FILE]), 4.6) == []
    assert state.deadline() == 4.6 + POLL_S


def test_a_file_of_several_parts_is_asked_for_one_part_after_the_other() -> None:
    state = standby(0)
    long = RunFile(name="data.npz", size=6, digest=hashlib.sha256(b"textit").hexdigest())
    assert state.handle(files(0, files=[long]), 1.0) == [asks(long)]
    assert state.deadline() == 1.0 + RETRY_S
    # An answer to what was asked twice changes nothing.
    last = PartReceived(part=part(long, start=4, size=2), data=b"it")
    assert state.handle(last, 1.5) == []
    assert state.heard == 1.0
    assert state.handle(PartReceived(part=part(long), data=DATA), 2.0) == [asks(long, 4)]
    assert (state.heard, state.deadline()) == (2.0, 2.0 + RETRY_S)
    assert state.handle(TimePassed(), 3.9) == []
    assert state.handle(TimePassed(), 4.0) == [asks(long, 4)]
    assert state.deadline() == 4.0 + RETRY_S
    state.handle(last, 5.0)
    assert (state.mirror.is_whole, state.deadline()) == (True, 5.0 + POLL_S)


def test_it_reports_now_and_then_how_far_it_is() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    three, six = (files(0, files=[FILE, *more], checkpoint=step) for step, more in ((3, []), (6, [LATER])))
    assert state.handle(three, 0.0) == [MIRRORS, asks(FILE)]
    has = Report(text="has the checkpoint of step 3; the run is at step 3 of 9")
    assert comes(state, 1.0) == [has]
    assert state.handle(TimePassed(), 1.5) == [request(step=3)]
    state.handle(six, 2.0)
    assert state.handle(PartReceived(part=part(LATER), data=b"more"), 2.0) == []
    assert state.mirror.step == 6
    assert state.handle(six, 1.0 + REPORT_S - 0.1) == []
    has = Report(text="has the checkpoint of step 6; the run is at step 3 of 9")
    assert state.handle(six, 1.0 + REPORT_S) == [has]
    assert state.handle(six, 1.0 + 3 * REPORT_S) == []


def test_what_was_mirrored_before_it_was_started_again_counts() -> None:
    state = StandbyState(
        LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), held=files(0, standbys=(OTHER,), checkpoint=3))
    )
    assert (state.mirror.step, state.takeover_s) == (3, 5.0)
    assert state.handle(Started(), 10.0) == [request(step=3)]
    # Its server is gone, and another one may lead the run by now.
    assert state.deadline() == 10.0 + RETRY_S
    state.handle(TimePassed(), 12.0)
    state.handle(TimePassed(), 14.0)
    assert state.deadline() == 15.0
    gone = Report(text="tcp://h:1 has been silent for 5 s")
    assert state.handle(TimePassed(), 15.0) == [gone, Redial(server=OTHER), request(step=3)]
    # That one has as long.
    state.handle(TimePassed(), 17.0)
    state.handle(TimePassed(), 19.0)
    assert state.handle(TimePassed(), 20.0)[0] == Redial(server=SERVER)


def test_a_silent_server_is_reported_once_and_again_when_it_is_there() -> None:
    state, silent = standby(0), Report(text="tcp://h:1 has been silent for 6 s")
    assert state.handle(TimePassed(), 4.9) == [request()]
    assert state.handle(TimePassed(), 6.0) == [silent]
    assert state.handle(TimePassed(), 6.9) == [request()]
    assert (state.handle(files(0), 7.0)) == [Report(text="tcp://h:1 is there again")]
    assert state.handle(files(0), 7.5) == []


def test_a_server_that_never_answered_is_missed_after_the_usual_time() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    state.handle(Started(), 1.0)
    assert state.takeover_s == RunOptions().takeover_seconds
    silent = Report(text=f"tcp://h:1 has been silent for {RunOptions().takeover_seconds:.0f} s")
    assert silent not in state.handle(TimePassed(), 0.9 + RunOptions().takeover_seconds)
    assert silent in state.handle(TimePassed(), 1.0 + RunOptions().takeover_seconds)


def ends(state: StandbyState, event: StandbyEvent) -> tuple[int, str, FailureKind | None]:
    leave, ended = state.handle(event, 1.0)
    assert isinstance(ended, Exit)
    assert leave == SendToServer(message=Leave(reason=ended.reason))
    assert (state.phase, state.deadline()) == (StandbyPhase.ENDED, None)
    return ended.code, ended.reason, ended.kind


def test_it_ends_if_it_is_refused_or_interrupted_or_the_protocol_is_broken() -> None:
    refused = (2, "the server refused this standby: other\\nkey", FailureKind.REFUSED)
    assert ends(standby(0), Refused(reason="other\nkey")) == refused
    broken = (1, "the server broke the protocol: a header of 3 bytes", FailureKind.PROTOCOL)
    assert ends(standby(0), ProtocolBroken(fault="a header of 3 bytes")) == broken
    assert ends(standby(0), Interrupted()) == (130, "interrupted", FailureKind.INTERRUPTED)
    final = Diagnosis("it does not admit the key", Stage.KEY, is_final=True)
    assert ends(standby(0), final) == (2, "it does not admit the key", FailureKind.UNREACHABLE)


ANSWERS = [
    (LeaderRequest(), LeaderNotice(term=TERM, address=SERVER.address, step=3)),
    (
        Drain(),
        CommandOutcome(is_accepted=False, text="this is a standby: drain the server, at tcp://h:1", leader=SERVER),
    ),
    (Ping(), Eviction(reason=FOLLOWS)),
    (
        StatusRequest(),
        Status(run="r", phase="standby of tcp://h:1", step=3, steps=9, term=4, is_standby=True, leader=SERVER),
    ),
    (MESSAGES[1], NotLeading(state="following", reason="it is a standby, and hears tcp://h:1", leader=SERVER)),
    (MESSAGES[2], NotLeading(state="following", reason="it is a standby, and hears tcp://h:1", leader=SERVER)),
    (join(None), NotLeading(state="following", reason="it is a standby, and hears tcp://h:1", leader=SERVER)),
]


@pytest.mark.parametrize(("message", "answer"), ANSWERS, ids=lambda one: type(one).__name__)
def test_who_asks_is_answered(message: Message, answer: Message) -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path(), held=files(0, checkpoint=3)))
    state.handle(files(0, checkpoint=3), 0.0)
    assert state.handle(Received(peer=b"x", message=message), 4.9) == [Send(peer=b"x", message=answer)]


def test_a_standby_that_knows_nothing_of_a_run_says_so() -> None:
    state = StandbyState(LeaderSearch((SERVER,), OWN.address), REQUEST, Mirror(Path()))
    (status,) = state.handle(Received(peer=b"x", message=StatusRequest()), 1.0)
    assert isinstance(status, Send)
    assert isinstance(status.message, Status)
    assert (status.message.run, status.message.steps, status.message.term) == ("", 0, 0)
    answer = Send(peer=b"x", message=NotLeading(state="following", reason="it has not mirrored the run yet"))
    assert state.handle(Received(peer=b"x", message=join(None)), 1.0) == [answer]
    report, refused = state.handle(Received(peer=b"x", message=join(0, NO_TERM)), 1.0)
    assert report == Report(text="worker 0 (host h, pid 1) misses the server: 0 of the 0 of the last step say so")
    assert refused == answer


def test_each_worker_that_misses_the_server_is_reported_once() -> None:
    state = standby(0, 1, 2)
    silent = NotLeading(state="silent", reason="it misses tcp://h:1 too: 1 of the 3 of the last step say so")
    missed = Received(peer=b"1", message=join(0))
    assert state.handle(missed, 5.0) == [
        Report(text="worker 0 (host h, pid 1) misses the server: 1 of the 3 of the last step say so"),
        Send(peer=b"1", message=silent),
    ]
    assert state.handle(missed, 6.0) == [Send(peer=b"1", message=silent)]
    reason = "tcp://h:1 is gone: 2 of the 3 of the last step say so"
    taking_over = NotLeading(state="taking over", reason="it takes over")
    assert state.handle(Received(peer=b"2", message=join(2)), 6.0 + CLAIM_S - 0.1) == [
        Report(text=f"takes over, from step 0: {reason}"),
        TakeOver(number=5, reason=reason),
        Send(peer=b"1", message=taking_over),
        Send(peer=b"2", message=taking_over),
    ]
    assert state.deadline() is None
    late = Received(peer=b"3", message=join(1))
    assert state.handle(late, 30.0) == [Send(peer=b"3", message=taking_over)]
    assert state.handle(Received(peer=b"3", message=LeaderRequest()), 30.0) == [
        Send(peer=b"3", message=LeaderNotice(term=TERM, address=SERVER.address))
    ]


def test_a_claim_counts_for_so_long() -> None:
    state = standby(0, 1, 2)
    claims(state, 6.0, join(0))
    assert takeovers(state.handle(Received(peer=b"2", message=join(2)), 6.0 + CLAIM_S)) == []


def test_what_was_said_of_an_earlier_term_does_not_count() -> None:
    state = standby(0, 1, 2)
    claims(state, 6.0, join(0))
    state.handle(files(0, 1, 2, term=NEXT), 7.0)
    assert takeovers(state.handle(Received(peer=b"2", message=join(2, NEXT)), 8.0)) == []
    state.handle(files(0, 1, 2, term=NEXT), 9.0)
    assert len(takeovers(state.handle(Received(peer=b"1", message=join(0, NEXT)), 10.0))) == 1


def test_a_run_of_which_nothing_was_computed_says_why_it_goes_on_here() -> None:
    reason = "tcp://h:1 is gone, and no worker had computed anything"
    # A starved server may have begun by now: nothing is lost by giving it more time.
    for now, decided in ((14.9, []), (15.0, [TakeOver(number=5, reason=reason)])):
        state = standby()
        for asked in (2.0, 4.0):
            state.handle(TimePassed(), asked)
        assert takeovers(claims(state, now, join(0))) == decided


def test_a_person_is_answered_before_it_leads_the_run() -> None:
    assert standby(0).handle(Received(peer=b"x", message=Promote()), 1.0) == [
        Send(peer=b"x", message=CommandOutcome(is_accepted=True, text="it leads the run from now on, from step 0")),
        Report(text="takes over, from step 0: it was told to lead"),
        TakeOver(number=5, reason="it was told to lead"),
    ]


def test_a_run_that_is_handed_over_to_another_standby_is_mirrored_from_there() -> None:
    for successor, expected in (
        (OTHER, [Redial(server=OTHER)]),
        (SERVER, []),
        (StandbyAddress(address="tcp://h:9"), []),
    ):
        state = standby(0)
        handed = files(0, state="handed over", successor=successor.address, standbys=(OWN, OTHER, SERVER))
        assert (state.handle(handed, 1.0)) == expected
        assert state.deadline() == 1.0 + POLL_S
    state = standby(0)
    state.handle(files(0, state="handed over", successor=OTHER.address, standbys=(OWN, OTHER)), 4.0)
    # That one has its time before another is asked.
    assert (state.search.server, state.search.arrived) == (OTHER, 4.0)


def test_a_standby_that_is_asked_by_another_names_it_and_the_next_is_asked() -> None:
    state = standby(0)
    state.handle(files(0, standbys=(OWN, OTHER)), 1.0)
    assert state.handle(NotLeading(state="silent", reason="no"), 2.0) == [Redial(server=OTHER)]
    assert state.deadline() == 2.0 + POLL_S
    # After the last one the first.
    assert state.handle(NotLeading(state="silent", reason="no"), 2.1) == [Redial(server=SERVER)]
    third = StandbyAddress(address="tcp://h:4")
    state.handle(files(0, standbys=(OWN, OTHER, third)), 3.0)
    # None is left out, as the first one, where the server may have been started again.
    for server in (OTHER, third, SERVER, OTHER):
        assert state.handle(NotLeading(state="silent", reason="no"), 4.0) == [Redial(server=server)]


def test_a_server_that_led_once_is_left_at_once() -> None:
    state, old = standby(0), Term(run="r", number=3, server="z")
    state.handle(files(0, standbys=(OWN, OTHER)), 0.0)
    state.handle(files(0, term=old), 1.0)
    assert (state.deadline(), state.offer) == (1.0 + POLL_S, files(0, standbys=(OWN, OTHER)))

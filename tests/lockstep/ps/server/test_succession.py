"""Whom a server's run goes on at, and until when a server that is over waits for those that mirror it."""

from pathlib import Path

import msgspec
import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import PROTOCOL_VERSION, HandedOver, StandbyAddress
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest, MirrorRequest
from lockstep.common.runtime.notice import Notice
from lockstep.common.transport.in_memory import MemoryNetwork
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.server.succession import ANSWER_S, END_S, HAND_OVER_S, INTERRUPTED_S, NOTICE_S, Succession
from lockstep.ps.standby.source import MirrorSource
from tests.simulation.cluster import Simulation
from tests.simulation.small import job_of

#: When a run ends.
NOW = 7.0

STANDBY, OTHER = b"one", b"two"


def request_of(peer: bytes, *, is_whole: bool = False) -> MirrorRequest:
    address = f"memory://{peer.decode()}"
    return MirrorRequest(protocol=PROTOCOL_VERSION, host="h", pid=1, address=address, is_whole=is_whole)


def mirrored() -> Succession:
    """Return the succession of a server that two standbys mirror: the first of them has all of the run."""
    succession = Simulation(job_of()).server.succession
    for peer, is_whole in ((STANDBY, True), (OTHER, False)):
        succession.registry.on_request(peer, request_of(peer, is_whole=is_whole), 0.0)
    return succession


@pytest.mark.parametrize(
    ("kind", "waits_s"),
    [
        (None, END_S),
        (FailureKind.DIVERGED, END_S),
        (FailureKind.HANDED_OVER, HAND_OVER_S),
        (FailureKind.INTERRUPTED, INTERRUPTED_S),
        # The run goes on elsewhere, or is begun again here: nobody is to get its end.
        (FailureKind.SUPERSEDED, 0.0),
    ],
)
def test_standbys_have_time_to_get_the_end_of_a_run(kind: FailureKind | None, waits_s: float) -> None:
    succession = mirrored()
    succession.end(Finish(kind=kind), NOW)
    assert succession.is_over(NOW + waits_s)
    assert not succession.is_over(NOW + waits_s - 0.1)


def test_a_person_sees_at_once_that_the_folder_lacks_files_and_sees_it_once(tmp_path: Path) -> None:
    succession, said = mirrored(), list[str]()
    succession.say, succession.source = said.append, MirrorSource(tmp_path)
    for _ in range(2):
        succession.on_message(STANDBY, request_of(STANDBY), [])
    assert [(type(line), str(tmp_path) in line) for line in said] == [(Notice, True)]


def test_a_run_is_handed_over_once_its_heir_has_said_that_it_has_all_of_it() -> None:
    succession = mirrored()
    succession.hand_over()
    succession.end(Finish(kind=FailureKind.HANDED_OVER), NOW)
    assert (succession.handed_over(), succession.was_in_vain()) == (None, True)
    # Another one that has all of it, or an successor that is gone without a word, takes nothing over.
    assert succession.on_left(OTHER, "", is_done=True) == []
    assert (succession.handed_over(), succession.is_over(NOW)) == (None, False)
    assert succession.on_left(STANDBY, "", is_done=True) == []
    assert succession.handed_over() == HandedOver(standby=StandbyAddress(address="memory://one"))
    assert (succession.was_in_vain(), succession.is_over(NOW)) == (False, True)


def test_a_run_whose_heir_is_gone_without_a_word_was_handed_over_in_vain() -> None:
    succession = mirrored()
    succession.hand_over()
    succession.end(Finish(kind=FailureKind.HANDED_OVER), NOW)
    succession.on_left(STANDBY, "it has ended")
    assert (succession.handed_over(), succession.was_in_vain()) == (None, True)
    # The other one may still come for what there is.
    assert not succession.is_over(NOW)
    succession.on_left(OTHER, "it has ended")
    assert succession.is_over(NOW)


def test_the_server_before_is_told_until_it_says_the_same() -> None:
    succession, network = Simulation(job_of()).server.succession, MemoryNetwork(0)
    before = network.server("memory://old")
    succession.reach(lambda address, public="": network.client(address), network.client("memory://old"))
    own = LeaderNotice(term=succession.term, address=succession.address)
    lower, higher = (msgspec.structs.replace(own.term, number=own.term.number + by) for by in (-1, 1))
    told, answers = list[LeaderNotice](), [None, lower, own.term]
    for turn, answer in enumerate(answers):
        assert succession.on_time(turn * NOTICE_S) == []
        # Not again before it has had time to answer.
        assert succession.on_time((turn + 0.9) * NOTICE_S) == []
        asked, found = before.receive(0.0), before.receive(0.0)
        assert asked is not None
        assert isinstance(decode(asked[1], LeaderRequest)[0], LeaderRequest)
        assert found is not None
        assert before.receive(0.0) is None
        peer, frames = found
        message, _ = decode(frames, LeaderNotice)
        assert isinstance(message, LeaderNotice)
        told.append(message)
        if answer is not None:
            before.send(peer, encode(LeaderNotice(term=answer, address="")))
    assert told == [own, own, own]
    assert succession.on_time(len(answers) * NOTICE_S) == []
    assert (succession.rivals, before.receive(0.0)) == ([], None)
    # Whoever leads the run in a higher term leads it.
    succession.reach(lambda address, public="": network.client(address), network.client("memory://old"))
    succession.on_time(10 * NOTICE_S)
    found = before.receive(0.0)
    assert found is not None
    before.send(found[0], encode(LeaderNotice(term=higher, address="memory://old")))
    # It is known as soon as it is there, and not only when the next notice is due.
    assert succession.on_time(10 * NOTICE_S + 0.9 * ANSWER_S) == []
    (event,) = succession.on_time(10 * NOTICE_S + ANSWER_S)
    assert isinstance(event, events.Superseded)


def test_a_standby_that_follows_another_server_says_where_that_is() -> None:
    succession, network = Simulation(job_of()).server.succession, MemoryNetwork(0)
    standby, old = network.server("memory://one"), network.server("memory://old")
    succession.history = msgspec.structs.replace(succession.history, standbys=[StandbyAddress(address="memory://one")])
    succession.reach(lambda address, public="": network.client(address), None)
    succession.on_time(0.0)
    asked = standby.receive(0.0)
    assert asked is not None
    assert isinstance(decode(asked[1], LeaderRequest)[0], LeaderRequest)
    # It has led nothing, and reads no notice.
    assert standby.receive(0.0) is None
    lower = msgspec.structs.replace(succession.term, number=succession.term.number - 1)
    standby.send(asked[0], encode(LeaderNotice(term=lower, address="memory://old")))
    succession.on_time(NOTICE_S)
    succession.on_time(2 * NOTICE_S)
    _, notice = old.receive(0.0), old.receive(0.0)
    assert notice is not None
    assert decode(notice[1], LeaderNotice)[0] == LeaderNotice(term=succession.term, address=succession.address)

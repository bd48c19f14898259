"""Servers of other terms are told that this one leads the run, and are asked whether one of them does by now."""

from typing import Any

import pytest

from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest
from lockstep.common.statemachine.leader_inquiry import LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.ps.server.succession import ANSWER_S, HOLD_S, NOTICE_S, Rivals, gives_way
from tests.lockstep.common.statemachine.answering import AnsweringPort

OWN, OLD, STANDBY = "tcp://h:1", StandbyAddress(address="tcp://h:2"), StandbyAddress(address="tcp://h:3")
LOWER, TERM, HIGHER = (Term(run="r", number=number, server="s") for number in (1, 2, 3))
REQUEST, NOTICE = LeaderRequest(), LeaderNotice(term=TERM, address=OWN)


def term_of(run: str, number: int = 2) -> Term:
    return Term(run=run, number=number, server="s")


def rivals_of(**ports: AnsweringPort) -> Rivals:
    """Return the rivals at ports named `old` and `standby`, of which the first is known."""
    by_address = {OLD.address: ports.get("old"), STANDBY.address: ports.get("standby")}
    search = LeaderSearch((OLD,) if "old" in ports else (), OWN, term=TERM)
    return Rivals(LeaderInquiry(search, lambda address, public="": by_address[address] or AnsweringPort([])))


def test_the_server_before_is_told_until_it_knows_the_term() -> None:
    old = AnsweringPort([])
    rivals = rivals_of(old=old)
    for turn, answer in enumerate((None, LOWER, TERM)):
        assert rivals.on_time(turn * NOTICE_S, NOTICE) is None
        assert old.sent == [REQUEST, NOTICE]
        old.sent.clear()
        # Not again before it has had time to answer.
        assert rivals.on_time((turn + 0.9) * NOTICE_S, NOTICE) is None
        assert old.sent == []
        old.answers = [] if answer is None else [LeaderNotice(term=answer, address="")]
    assert rivals.on_time(3 * NOTICE_S, NOTICE) is None
    assert (old.sent, old.is_closed, rivals.deadline()) == ([], True, None)


def test_a_higher_term_is_known_as_soon_as_the_answer_is_there() -> None:
    old = AnsweringPort([])
    rivals = rivals_of(old=old)
    assert rivals.on_time(10.0, NOTICE) is None
    old.answers = [LeaderNotice(term=HIGHER, address=OLD.address)]
    assert rivals.on_time(10.0 + 0.9 * ANSWER_S, NOTICE) is None
    assert rivals.on_time(10.0 + ANSWER_S, NOTICE) == HIGHER


def test_a_server_that_a_standby_follows_is_told_too() -> None:
    old, standby = AnsweringPort([LeaderNotice(term=LOWER, address=STANDBY.address)]), AnsweringPort([])
    rivals = rivals_of(old=old, standby=standby)
    for now in (0.0, ANSWER_S, NOTICE_S):
        assert rivals.on_time(now, NOTICE) is None
    assert standby.sent == [REQUEST, NOTICE]


def test_a_server_that_was_stopped_for_a_while_does_nothing_until_its_standbys_have_answered() -> None:
    standby = AnsweringPort([])
    rivals = rivals_of(standby=standby)
    assert [rivals.holds(now, 1.0, [STANDBY]) for now in (0.0, 0.9, 1.8)] == [False] * 3
    assert rivals.holds(3.0, 1.0, [STANDBY])
    assert standby.sent == [REQUEST]
    assert rivals.holds(3.1, 1.0, [STANDBY])
    standby.answers = [LeaderNotice(term=TERM, address=OWN)]
    assert rivals.inquiry.hear() is None
    assert not rivals.holds(3.2, 1.0, [STANDBY])
    # A standby that is gone is not waited for longer.
    assert rivals.holds(9.0, 1.0, [STANDBY])
    assert not rivals.holds(9.0 + HOLD_S, 1.0, [STANDBY])
    # Without standbys, no other server can lead the run.
    assert not rivals.holds(20.0, 1.0, [])


@pytest.mark.parametrize(
    ("mine", "steps", "notice", "expected"),
    [
        (term_of("a"), 0, {}, True),
        # The other one of the two, both of which hear of each other.
        (term_of("c"), 0, {}, False),
        (term_of("b"), 0, {}, False),
        (term_of("a"), 1, {}, False),
        (term_of("a"), 0, {"step": 1}, False),
        (term_of("a"), 0, {"is_leader": False}, False),
        # The first server of a run, whose folder was deleted.
        (term_of("a", 1), 0, {}, True),
        (term_of("c", 1), 0, {}, True),
        (term_of("b", 1), 0, {}, False),
        (term_of("a"), 0, {"term": term_of("b", 1)}, False),
    ],
)
def test_of_two_servers_that_lead_two_runs_without_a_step_one_gives_way(
    mine: Term, steps: int, notice: dict[str, Any], expected: bool
) -> None:
    given: dict[str, Any] = {"term": term_of("b"), "address": OLD.address, "is_leader": True} | notice
    assert gives_way(mine, steps, LeaderNotice(**given)) is expected

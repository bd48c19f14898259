"""All servers that may lead a run are asked at once, and those that do not answer are waited for so long."""

import pytest

from lockstep.common.errors import AddressError
from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.leader_inquiry import INQUIRY_S, LOOK_S, LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.port import ClientPort
from tests.lockstep.common.statemachine.answering import AnsweringPort

TERM = Term(run="a", number=3, server="a")


def notice(number: int, address: str = "") -> LeaderNotice:
    return LeaderNotice(term=Term(run="a", number=number, server="a"), address=address)


def find(clock: ManualClock, *ports: AnsweringPort) -> tuple[str, int] | None:
    """Ask servers, of which each answers at one of these ports, for a higher term."""
    by_name = {str(number): port for number, port in enumerate(ports)}

    def dial(address: str, public: str = "") -> ClientPort:
        if address not in by_name:
            raise AddressError("nothing is there")
        return by_name[address]

    given = tuple(StandbyAddress(address=name) for name in (*by_name, "nowhere"))
    inquiry = LeaderInquiry(LeaderSearch(given, term=TERM), dial)
    found = inquiry.find(LeaderRequest(), clock, lambda answer: answer.term.is_above(TERM))
    for port in ports:
        assert (port.sent, port.is_closed) == ([LeaderRequest()], True)
    return None if found is None else (found[0].address, found[1].term.number)


def test_without_another_server_nothing_is_waited_for() -> None:
    assert find(ManualClock(7.0)) is None


def test_servers_that_have_all_answered_are_not_waited_for() -> None:
    clock = ManualClock(7.0)
    assert find(clock, AnsweringPort([notice(3)], clock), AnsweringPort([None, notice(2)], clock)) is None
    assert clock.now() <= 7.0 + 4 * LOOK_S


def test_a_server_that_is_silent_is_waited_for_so_long() -> None:
    clock = ManualClock(7.0)
    assert find(clock, AnsweringPort([], clock), AnsweringPort([notice(3)], clock)) is None
    assert clock.now() == pytest.approx(7.0 + INQUIRY_S, abs=2 * LOOK_S)


def test_the_first_higher_term_is_found_whichever_server_names_it() -> None:
    clock = ManualClock(7.0)
    assert find(clock, AnsweringPort([], clock), AnsweringPort([None, notice(3), notice(4)], clock)) == ("1", 4)

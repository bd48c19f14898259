"""All servers that may lead a run are asked at once, and those that do not answer are waited for so long."""

import pytest

from lockstep.common.errors import AddressError
from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.statemachine.leader_inquiry import INQUIRY_S, LOOK_S, LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.in_memory import MemoryNetwork, Timeline
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
    found = inquiry.find(clock, lambda answer: answer.term.is_above(TERM))
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


#: So many servers that another order hardly ever equals theirs by chance.
MANY = tuple(StandbyAddress(address=f"memory://{number}") for number in range(16))


def test_of_many_servers_the_first_that_was_given_is_found() -> None:
    clock = ManualClock(7.0)
    inquiry = LeaderInquiry(LeaderSearch(MANY), lambda address, public="": AnsweringPort([notice(3)], clock))
    found = inquiry.find(clock, lambda answer: answer.term == TERM)
    assert found == (MANY[0], notice(3))


def test_connections_are_closed_in_the_order_in_which_they_were_opened() -> None:
    """The order of a set differs from process to process, and a simulated run would not replay."""
    lines = list[str]()

    class Noting(Timeline):
        def record(self, who: str, what: str) -> None:
            lines.append(what)

    network = MemoryNetwork(0, timeline=Noting())
    for server in MANY:
        network.server(server.address)
    inquiry = LeaderInquiry(LeaderSearch(MANY), lambda address, public="": network.client(address))
    inquiry.ask(MANY)
    lines.clear()
    inquiry.close()
    assert lines == [f"loses its connection to {server.address}" for server in MANY]

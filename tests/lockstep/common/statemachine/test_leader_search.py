"""The servers that may lead a run, the order in which they are asked, and the answers that settle the search."""

from lockstep.common.protocol.messages import NotLeading, StandbyAddress, Term
from lockstep.common.protocol.standby_messages import LeaderNotice
from lockstep.common.statemachine.leader_search import LeaderSearch

HERE, THERE = StandbyAddress(address="tcp://h:1"), StandbyAddress(address="tcp://h:2")
TERM = Term(run="r", number=2, server="s")


def servers(given: StandbyAddress, named: StandbyAddress | tuple[StandbyAddress, ...], last: StandbyAddress) -> object:
    search = LeaderSearch((given,), named=named if isinstance(named, tuple) else (named,))
    search.turn_to(last, 0.0)
    return search.servers()


def test_the_newest_of_what_is_known_of_a_server_counts() -> None:
    with_key = StandbyAddress(address=HERE.address, public="key")
    assert servers(HERE, THERE, HERE) == [HERE, THERE]
    assert servers(HERE, THERE, with_key) == [with_key, THERE]
    assert servers(HERE, (THERE, with_key), HERE) == [with_key, THERE]
    # One that is no standby any more is asked last.
    other = StandbyAddress(address="tcp://h:3")
    assert servers(HERE, THERE, other) == [HERE, THERE, other]


def test_a_leader_that_was_left_is_asked_again_after_the_others() -> None:
    search = LeaderSearch((HERE,), named=(THERE,))
    search.turn_to(THERE, 0.0)
    # It leads the run, and has no standby.
    search.on_leader(1.0)
    search.named = ()
    for server in (HERE, THERE, HERE):
        assert search.following() == server
        search.turn_to(server, 2.0)
    assert search.has_choice()


def test_a_process_does_not_ask_itself() -> None:
    search = LeaderSearch((HERE,), own=THERE.address, named=(THERE,))
    assert search.servers() == [HERE]
    assert search.on_not_leading(NotLeading(state="following", reason="", leader=THERE)) is None
    assert LeaderSearch((), own=THERE.address).servers() == []


def test_a_leader_that_is_named_is_asked_with_the_key_that_is_known_of_it() -> None:
    with_key = StandbyAddress(address="tcp://h:3", public="key")
    search = LeaderSearch((HERE,), named=(THERE, with_key))
    answer = NotLeading(state="following", reason="", leader=StandbyAddress(address="tcp://h:3"))
    assert search.on_not_leading(answer) == with_key


def test_a_server_is_settled_once_it_knows_the_term_and_one_that_it_names_is_asked_too() -> None:
    search = LeaderSearch((HERE, THERE), own="tcp://h:9", term=TERM)
    lower, higher = (Term(run="r", number=number, server="s") for number in (1, 3))
    assert not search.on_notice(HERE, LeaderNotice(term=lower, address="tcp://h:3"))
    other = StandbyAddress(address="tcp://h:3")
    assert (search.unanswered(), search.unsettled()) == ([THERE, other], [HERE, THERE, other])
    assert not search.on_notice(HERE, LeaderNotice(term=TERM, address="tcp://h:9"))
    assert search.unsettled() == [THERE, other]
    assert search.on_notice(THERE, LeaderNotice(term=higher, address=THERE.address))

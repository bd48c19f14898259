"""Terms: of two servers of a run one is always the higher."""

import errno
import os
import re
from itertools import permutations, product
from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import NO_TERM, STANDBYS_LIMIT, StandbyAddress, Term
from lockstep.ps.standby.terms import (
    MOST_TERMS,
    PLACES,
    SHARE,
    TERMS,
    LedTerm,
    TermHistory,
    next_number,
    read_terms,
    write_terms,
)


def test_of_two_terms_of_a_run_one_is_the_higher_and_those_of_other_runs_are_not_compared() -> None:
    terms = [
        Term(run="r", number=number, resumed=resumed, server=server)
        for number in (1, 2)
        for resumed in (0, 1)
        for server in ("a", "b")
    ]
    for one, other in permutations(terms, 2):
        assert one.is_above(other) is not other.is_above(one)
    # However often a server resumes its run, it does not outbid one that has taken it over.
    assert terms[-1].is_above(Term(run="r", number=1, resumed=9, server="z"))
    assert not terms[0].is_above(terms[0])
    assert not Term(run="other", number=9, server="z").is_above(terms[0])
    assert not terms[0].is_above(NO_TERM)


def test_a_server_that_resumes_its_run_stays_in_its_term_and_one_that_takes_it_over_begins_another() -> None:
    history = TermHistory().begin("a", number=None, step=0)
    assert history.last == Term(run="a", number=1, server="a")
    history = history.begin("b", number=None, step=3)
    assert history.last == Term(run="a", number=1, resumed=1, server="b")
    history = history.begin("c", number=7, step=3)
    assert history.last == Term(run="a", number=7, server="c")
    assert history.begin("d", number=None, step=3).last == Term(run="a", number=7, resumed=1, server="d")


def test_no_two_servers_take_the_same_number() -> None:
    history = TermHistory().begin("a", number=None, step=0, address="tcp://a:1")
    for address in ("tcp://b:1", "tcp://c:1", "tcp://b:1"):
        history = history.with_place(address)
    assert history.places == {"tcp://a:1": 1, "tcp://b:1": 2, "tcp://c:1": 3}
    assert history.begin("b", number=2, step=0, address="tcp://x:1").places == history.places
    taken = {place: next_number(place, 0) for place in history.places.values()}
    assert taken == {1: 1, 2: 2, 3: 3}
    for place, seen in product(taken, (*range(9), *range(PLACES - 2, PLACES + 9), 3 * PLACES)):
        number = next_number(place, seen)
        assert seen < number <= seen + PLACES
        assert number % PLACES == place


def led_by(*addresses: str) -> list[TermHistory]:
    """Return the histories of servers that have led a run, each a standby of the one before."""
    histories = [TermHistory().begin("0", number=None, step=0, address=addresses[0])]
    for address in addresses[1:]:
        histories[-1] = history = histories[-1].with_place(address)
        number = next_number(history.places[address], history.last.number)
        histories.append(history.begin(address, number=number, step=0, address=address))
    return histories


def test_servers_that_lead_at_the_same_time_give_different_places_to_new_standbys() -> None:
    """The first one was cut off, and its standbys lead, one after the other: each has standbys that came to it."""
    given, histories = list[int](), led_by("a", "b", "c")
    for number, history in enumerate(histories):
        for standby in range(STANDBYS_LIMIT):
            history = history.with_place(f"{number}-{standby}")
        given += [place for address, place in history.places.items() if "-" in address]
    assert len(set(given)) == 3 * STANDBYS_LIMIT
    assert not set(given) & set(histories[-1].places.values())
    assert max(given) < PLACES


def test_a_leader_that_has_given_all_of_its_places_gives_the_lowest_that_is_not_taken() -> None:
    history = led_by("a", "b")[-1]
    for number in range(SHARE + 2):
        history = history.with_place(f"{number}")
    places = [*history.places.values()]
    assert places == [1, 2, *range(2 * SHARE, 3 * SHARE), 3, 4]


def test_a_term_begins_with_its_server() -> None:
    standbys = [StandbyAddress(address="tcp://b:1")]
    first = LedTerm(number=1, server="a", step=0, address="tcp://a:1")
    history = TermHistory(standbys=standbys).begin("a", number=None, step=0, address="tcp://a:1")
    assert history == TermHistory(run="a", terms=[first], standbys=standbys, places={"tcp://a:1": 1})
    second = LedTerm(number=2, server="b", step=3, address="tcp://b:1")
    assert history.begin("b", number=2, step=3, address="tcp://b:1").terms == [first, second]


def test_the_last_terms_are_remembered() -> None:
    terms = [LedTerm(number=number, server="a", step=0) for number in range(MOST_TERMS)]
    history = TermHistory(run="r", terms=terms).begin("b", number=MOST_TERMS, step=0)
    assert (len(history.terms), history.terms[0].number, history.last.number) == (MOST_TERMS, 1, MOST_TERMS)


def test_terms_are_kept_in_the_folder(tmp_path: Path) -> None:
    assert read_terms(tmp_path) == TermHistory()
    history = TermHistory().begin("a", number=None, step=0)
    write_terms(tmp_path, history)
    assert read_terms(tmp_path) == history
    path = tmp_path / TERMS
    text = path.read_text()
    assert (text.startswith('{\n  "run"'), text.endswith("}\n")) == (True, True)
    path.write_text("{")
    with pytest.raises(FileFormatError, match=r"is not the history of a run's servers: .*: remove it") as error:
        read_terms(tmp_path)
    assert str(path) in str(error.value)
    path.unlink()
    path.mkdir()
    expected = f"cannot read {str(path)!r}: {os.strerror(errno.EISDIR)}: expected the terms of a run"
    with pytest.raises(FileFormatError, match=re.escape(expected)):
        read_terms(tmp_path)


def test_the_last_leader_at_another_address_is_known_in_a_run_with_standbys() -> None:
    here, there = StandbyAddress(address="tcp://b:1", public="k"), StandbyAddress(address="tcp://a:1")
    history = TermHistory(standbys=[here])
    for name, address in (("a", there.address), ("b", here.address), ("c", here.address)):
        history = history.begin(name, number=None, step=0, address=address)
    assert history.earlier_leader(here.address) == there
    assert history.earlier_leader(there.address) == here
    assert TermHistory(terms=history.terms).earlier_leader(here.address) is None
    # Nobody knows where a server was that gave no address.
    history = history.begin("d", number=None, step=0)
    assert history.earlier_leader(there.address) == here
    history = TermHistory(standbys=[here]).begin("a", number=None, step=0)
    assert history.earlier_leader("tcp://c:1") is None


def test_the_servers_that_may_lead_a_run_are_its_standbys_and_earlier_leaders_and_those_that_a_person_names() -> None:
    one, two, three = (f"tcp://{name}:5555" for name in ("one", "two", "three"))
    two_with_key = StandbyAddress(address=two, public="k" * 40)
    history = TermHistory(standbys=[two_with_key])
    for number, address in enumerate((one, two)):
        history = history.begin(f"{number}", number=number + 1, step=0, address=address)
    named = (StandbyAddress(address=two), StandbyAddress(address=three))
    # The key is that of the folder, which a person does not name.
    assert history.other_servers(one, named) == (two_with_key, StandbyAddress(address=three))
    assert history.other_servers(two) == (StandbyAddress(address=one),)
    assert TermHistory().other_servers(one) == ()

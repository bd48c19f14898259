"""Terms: of two servers of a run one is always the higher."""

import errno
import os
import re
from itertools import permutations
from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress, Term
from lockstep.ps.standby.terms import (
    MOST_TERMS,
    TERMS,
    LedTerm,
    TermHistory,
    read_terms,
    write_terms,
)


def test_of_two_terms_of_a_run_one_is_the_higher_and_those_of_other_runs_are_not_compared() -> None:
    terms = [
        Term(run="r", number=number, server=server, resumed=resumed)
        for number in (1, 2)
        for server in ("a", "b")
        for resumed in (0, 1)
    ]
    for one, other in permutations(terms, 2):
        assert one.is_above(other) is (terms.index(one) > terms.index(other))
    # However often a server resumes its run, it does not outbid one that has taken it over.
    assert terms[-1].is_above(Term(run="r", number=2, server="a", resumed=9))
    assert not terms[0].is_above(terms[0])
    assert not Term(run="other", number=9, server="z").is_above(terms[0])
    assert not terms[0].is_above(NO_TERM)


def test_a_server_that_resumes_its_run_stays_in_its_term_and_one_that_takes_it_over_begins_another() -> None:
    history = TermHistory().begin("a", number=None, step=0)
    assert history.last == Term(run="a", number=1, server="a")
    history = history.begin("b", number=None, step=3)
    assert history.last == Term(run="a", number=1, resumed=1, server="a")
    history = history.begin("c", number=7, step=3)
    assert history.last == Term(run="a", number=7, server="c")
    assert history.begin("d", number=None, step=3).last == Term(run="a", number=7, resumed=1, server="c")


def test_a_standby_that_was_killed_while_it_took_over_begins_a_term_of_its_own() -> None:
    standbys = [StandbyAddress(address="tcp://b:1")]
    history = TermHistory(standbys=standbys).begin("a", number=None, step=0, address="tcp://a:1")
    taken = history.begin("b", number=None, step=0, address="tcp://b:1")
    assert taken.last == Term(run="a", number=2, server="b")
    assert taken.begin("c", number=None, step=0, address="tcp://b:1").last == Term(
        run="a", number=2, resumed=1, server="b"
    )
    # A server that is somewhere else by now is no standby.
    assert history.begin("c", number=None, step=0, address="tcp://c:1").last.number == 1


def test_a_term_begins_with_its_server() -> None:
    standbys = [StandbyAddress(address="tcp://b:1")]
    first = LedTerm(number=1, server="a", step=0, address="tcp://a:1")
    history = TermHistory(standbys=standbys).begin("a", number=None, step=0, address="tcp://a:1")
    assert history == TermHistory(run="a", terms=[first], standbys=standbys)
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

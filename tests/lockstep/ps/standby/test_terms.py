"""Terms: of two servers of a run one is always the higher, and a mirror learns what of its lines is still the same."""

import errno
import os
import re
from itertools import permutations
from pathlib import Path

import pytest

from lockstep.common.errors import FileFormatError
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress, Term
from lockstep.ps.standby.terms import MOST_TERMS, TERMS, LedTerm, TermHistory, read_terms, write_terms


def test_of_two_terms_of_a_run_one_is_the_higher_and_those_of_other_runs_are_not_compared() -> None:
    terms = [Term(run="r", number=number, server=server) for number in (1, 2) for server in ("a", "b")]
    for one, other in permutations(terms, 2):
        assert one.is_above(other) is not other.is_above(one)
    assert not terms[0].is_above(terms[0])
    assert not Term(run="other", number=9, server="z").is_above(terms[0])
    assert not terms[0].is_above(NO_TERM)


def test_each_server_takes_a_higher_term_than_all_before() -> None:
    history = TermHistory().begin("a", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
    assert history.last == Term(run="a", number=1, server="a")
    history = history.begin("b", least=1, step=3, metrics_bytes=30, ledger_bytes=40)
    assert history.last == Term(run="a", number=2, server="b")
    assert history.begin("c", least=7, step=3, metrics_bytes=30, ledger_bytes=40).last.number == 7


def test_a_term_begins_with_what_its_server_kept() -> None:
    standbys = [StandbyAddress(address="tcp://b:1")]
    first = LedTerm(number=1, server="a", step=0, metrics_bytes=1, ledger_bytes=2)
    history = TermHistory(standbys=standbys).begin("a", least=1, step=0, metrics_bytes=1, ledger_bytes=2)
    assert history == TermHistory(run="a", terms=[first], standbys=standbys)
    again = history.begin("b", least=1, step=3, metrics_bytes=30, ledger_bytes=40, address="tcp://b:1")
    second = LedTerm(number=2, server="b", step=3, metrics_bytes=30, ledger_bytes=40, address="tcp://b:1")
    assert again == TermHistory(run="a", terms=[first, second], standbys=standbys)


def test_the_last_terms_are_remembered() -> None:
    terms = [
        LedTerm(number=number, server="a", step=0, metrics_bytes=0, ledger_bytes=0) for number in range(MOST_TERMS)
    ]
    history = TermHistory(run="r", terms=terms).begin("b", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
    assert (len(history.terms), history.terms[0].number, history.last.number) == (MOST_TERMS, 1, MOST_TERMS)


def test_what_a_mirror_may_keep_is_what_no_server_since_has_cut() -> None:
    history = TermHistory().begin("a", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
    first = history.last
    history = history.begin("b", least=1, step=3, metrics_bytes=30, ledger_bytes=40)
    second = history.last
    history = history.begin("c", least=1, step=5, metrics_bytes=50, ledger_bytes=60)
    assert history.kept(first) == {"metrics.jsonl": 30, "ledger.jsonl": 40}
    assert history.kept(second) == {"metrics.jsonl": 50, "ledger.jsonl": 60}
    assert min(history.kept(history.last).values()) > 10**15
    assert set(history.kept(Term(run="a", number=2, server="x")).values()) == {0}
    assert set(history.kept(Term(run="x", number=1, server="a")).values()) == {0}
    assert history.kept(NO_TERM) == {"metrics.jsonl": 0, "ledger.jsonl": 0}


def test_terms_are_kept_in_the_folder(tmp_path: Path) -> None:
    assert read_terms(tmp_path) == TermHistory()
    history = TermHistory().begin("a", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
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
        history = history.begin(name, least=1, step=0, metrics_bytes=0, ledger_bytes=0, address=address)
    assert history.earlier_leader(here.address) == there
    assert history.earlier_leader(there.address) == here
    assert TermHistory(terms=history.terms).earlier_leader(here.address) is None
    # Nobody knows where a server was that gave no address.
    history = history.begin("d", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
    assert history.earlier_leader(there.address) == here
    history = TermHistory(standbys=[here]).begin("a", least=1, step=0, metrics_bytes=0, ledger_bytes=0)
    assert history.earlier_leader("tcp://c:1") is None

"""The bar itself holds: it finds what is too slow, too large, or not ours, in as many cases as are promised."""

import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.bar import BATCH, CASE_BYTES, CASE_S, CASES, IN_ALL, bear, bounded, examine, measured, timed
from tests.fuzz.mutation import damaged
from tests.fuzz.tape import Tape
from tests.fuzz.test_files import FORMATS


def test_there_are_as_many_cases_as_are_promised() -> None:
    assert all(sum(numbers) >= least for numbers, least in zip(zip(*CASES.values(), strict=True), IN_ALL, strict=True))
    rooms = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert sorted([*re.findall(r'^@amounts\("(.+)"\)$', rooms, re.MULTILINE), *FORMATS]) == sorted(CASES)


def test_so_many_cases_are_looked_at_and_the_same_ones_each_time() -> None:
    runs: list[list[bytes]] = [[], []]
    for seen in runs:
        examine(4 * BATCH, lambda tape: tape.raw(12), seen.append)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 4 * BATCH
    assert len(set(runs[0])) > 2 * BATCH


def test_an_error_that_is_not_expected_is_told_with_its_case() -> None:
    def check(number: int) -> None:
        if number == 7:
            raise KeyError(number)

    with pytest.raises(KeyError) as caught:
        examine(2000, lambda tape: tape.below(50), check)
    assert any("the case of Tape(" in note and note.endswith(": 7") for note in caught.value.__notes__)


def spin(tape: Tape) -> None:
    """Take too long with one tape of many, and only once with each."""
    if tape.below(100) == 3 and not tape.below(1):
        end = time.process_time() + 1.2 * CASE_S
        while time.process_time() < end:
            pass


def test_what_takes_too_long_is_found_although_it_does_so_once() -> None:
    with pytest.raises(AssertionError, match="a case took"):
        examine(300, lambda tape: tape, spin)


def test_what_takes_too_long_only_now_and_then_is_the_machines_fault() -> None:
    turns = iter(range(1, 1000))
    timed(lambda: lambda: spin(Tape(bytes([3 if next(turns) % 3 else 4]))))


def test_what_takes_too_much_memory_is_found() -> None:
    with bounded(64 * 2**20), pytest.raises(MemoryError):
        np.empty(2**30, np.uint8)
    with bounded(64 * 2**20):
        np.empty(2**20, np.uint8)


def test_what_takes_more_memory_than_a_case_may_is_found() -> None:
    def take(number: int) -> None:
        assert np.empty((2 if number == 7 else 1) * 2**20, np.uint8).size

    with pytest.raises(AssertionError, match=f"a case took .* bytes: expected {CASE_BYTES:,}"):
        examine(4000, lambda tape: tape.below(50), take)
    with pytest.raises(AssertionError, match="bytes: expected"):
        bear(lambda: np.empty(2**21, np.uint8))
    bear(lambda: np.empty(2**20, np.uint8))
    # Only now and then, it is another thread's.
    turns = iter([2**21, 2**20])
    measured(lambda: partial(np.empty, next(turns), np.uint8))


def test_damage_is_damage_most_of_the_time() -> None:
    whole = bytes(range(100))
    seen: list[bytes] = []
    examine(2000, lambda tape: damaged(tape, whole), seen.append)
    assert sum(contents != whole for contents in seen) > 1500
    assert {len(contents) for contents in seen} >= {99, 100, 101}


def test_a_tape_that_is_used_up_is_the_simplest() -> None:
    tape = Tape(b"\x03")
    assert (tape.below(5), tape.below(5), tape.raw(2), tape.choose("ab")) == (3, 0, b"\0\0", "a")

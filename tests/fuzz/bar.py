"""What each case is held to: the project's typed errors only, no more memory than allowed, no more than 50 ms."""

import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.tape import Tape

C = TypeVar("C")

#: Cases that are drawn at once, and bytes of each.
BATCH, TAPE_BYTES = 25, 48

#: Seconds of this process's own time that a case may take, and how often one that took longer is tried again.
CASE_S, TRIES = 0.05, 20

#: Bytes that the process may grow by, in all of a batch: what any case asks for at once is below that.
ROOM_BYTES = 128 * 2**20

#: Bytes that a case may take at its height, beside what was there before. It is measured of one in so many, since that
#: takes four times as long.
CASE_BYTES, MEASURED = 2 * 2**20, 6

#: The same for what is made by hand of files of the greatest length that is read at all, a MiB.
FILE_BYTES = 16 * 2**20

#: Cases of each kind: in the suite, and with `scripts/test --all`.
CASES = {
    "headers, damaged": (10_000, 380_000),
    "headers, made up": (7_000, 280_000),
    "frames": (2_000, 40_000),
    "results": (500, 30_000),
    "server": (250, 12_000),
    "worker": (600, 30_000),
    "shard": (600, 30_000),
    "safetensors": (2_500, 90_000),
    "checkpoints": (750, 30_000),
    "idx": (1_500, 60_000),
    "npz": (1_250, 50_000),
    "dataset folders": (500, 20_000),
    "job files": (500, 40_000),
    "descriptions": (750, 40_000),
    "shared folders": (500, 20_000),
    "ledgers": (750, 30_000),
    "run folders": (500, 20_000),
}

#: Of all kinds together, at least.
IN_ALL = (30_000, 1_000_000)


@dataclass
class Book:
    """How many cases this process has looked at: the end of a run tells how many it were in all."""

    cases: int = 0


BOOK = Book()


def amounts(kind: str) -> pytest.MarkDecorator:
    """Return the mark that gives a test its number of cases, and the larger one if slow tests run."""
    some, many = CASES[kind]
    return pytest.mark.parametrize("cases", [some, pytest.param(many, marks=pytest.mark.slow)])


def examine(cases: int, make: Callable[[Tape], C], check: Callable[[C], None]) -> None:
    """Let `check` look at so many cases, which `make` makes of tapes, within the bounds; the same ones each time.

    It raises where something is wrong with what is tested. Hypothesis draws the tapes, in the small runs and in the
    large ones, and does no more than that: what fails is told with its own tape, which is short, so that nothing is
    gained by shrinking it; one that takes long would take very long to shrink, and one of a process that has heard much
    before could not be had again.
    """
    late: list[bytes] = []
    wrong: list[BaseException] = []

    def look(tape: bytes) -> None:
        case = make(Tape(tape))
        BOOK.cases += 1
        is_measured = BOOK.cases % MEASURED == 0
        try:
            took = (
                measured(lambda: partial(check, make(Tape(tape)))) if is_measured else seconds_of(partial(check, case))
            )
            if took > CASE_S:
                late.append(tape)
        except BaseException as error:
            error.add_note(f"the case of Tape({tape!r}): {case!r}"[:5000])
            raise

    @settings(
        max_examples=-(-cases // BATCH),
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(min_size=BATCH * TAPE_BYTES, max_size=BATCH * TAPE_BYTES))
    def run(drawn: bytes) -> None:
        tapes = [] if wrong else [drawn[at : at + TAPE_BYTES] for at in range(0, len(drawn), TAPE_BYTES)]
        try:
            with bounded(ROOM_BYTES):
                for tape in tapes:
                    look(tape)
        except BaseException as error:  # noqa: BLE001  # raised below, where Hypothesis does not try it once more
            wrong.append(error)

    run()
    for error in wrong:
        raise error
    for tape in late:
        timed(lambda tape=tape: partial(check, make(Tape(tape))))  # type: ignore[misc]


def seconds_of(case: Callable[[], object]) -> float:
    """Return the processor's time that a case takes."""
    began = time.process_time()
    case()
    return time.process_time() - began


def measured(fresh: Callable[[], Callable[[], object]], most_bytes: int = CASE_BYTES) -> float:
    """Demand that a case takes no more memory than it may; return the processor's time, that of measuring included.

    `fresh` makes it anew. It is tried again before it fails: memory counts that another thread of the process, which an
    earlier test has left, takes meanwhile.
    """
    for _ in range(TRIES):
        case = fresh()
        tracemalloc.start()
        try:
            took = seconds_of(case)
            _, height = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # NumPy counts what it was refused as well: of more than there was room for nothing was taken.
        if not most_bytes < height <= ROOM_BYTES:
            return took
    raise AssertionError(f"a case took {height:,} bytes: expected {most_bytes:,}")


def timed(fresh: Callable[[], Callable[[], object]]) -> None:
    """Demand that a case takes no longer than it may; `fresh` makes it anew, since a used one may have little to do.

    It is tried again before it fails, since the clock of a virtual machine counts the time as ours in which others
    have the processor: a case that takes too long by itself does so each time.
    """
    took: list[float] = []
    while not took or min(took) > CASE_S:
        if len(took) == TRIES:
            told = f"{1000 * min(took):.0f} ms at least, {TRIES} times"
            raise AssertionError(f"a case took {told}: expected {1000 * CASE_S:.0f}")
        took.append(seconds_of(fresh()))


def bear(case: Callable[[], object], most_bytes: int = CASE_BYTES) -> None:
    """Demand of a case made by hand, which may be looked at again, that it keeps within time and memory."""
    timed(lambda: case)
    with bounded(ROOM_BYTES):
        measured(lambda: case, most_bytes)


@contextmanager
def bounded(room_bytes: int) -> Iterator[None]:
    """Let the process grow by so many bytes, and no more: a MemoryError otherwise, which is no typed error of ours.

    Its address space is what is bounded, so that an array counts which is never written to.
    """
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

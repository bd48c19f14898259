"""What each case is held to: the project's typed errors only, no more memory than allowed, no more than 50 ms."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

#: Seconds of this process's own time that a case may take. What the rest of the machine does is not in it, but for
#: what it does to the caches: a case that took longer has two more tries.
CASE_S, TRIES = 0.05, 3

#: Bytes that the process may grow by, in all of a batch.
ROOM_BYTES = 256 * 2**20

#: Cases of each kind in the suite, together 100,000 and more; `scripts/test --all` takes ten times as many.
CASES = {
    "headers, damaged": 24_000,
    "headers, made up": 16_000,
    "frames": 4_000,
    "coordinator": 8_000,
    "server": 4_000,
    "worker": 4_000,
    "shard": 4_000,
    "fleet": 4_000,
    "safetensors": 9_000,
    "checkpoints": 3_000,
    "idx": 6_000,
    "npz": 5_000,
    "job files": 4_000,
    "descriptions": 4_000,
    "shared folders": 2_000,
    "ledgers": 3_000,
    "run folders": 2_000,
    "texts": 3_000,
}


def amounts(kind: str) -> pytest.MarkDecorator:
    """Return the mark that gives a test its number of cases, and ten times as many where slow tests run."""
    some, many = CASES[kind], 10 * CASES[kind]
    return pytest.mark.parametrize("cases", [some, pytest.param(many, marks=pytest.mark.slow)])


def examine(cases: int, make: Callable[[Tape], C], check: Callable[[C], None]) -> None:
    """Let `check` look at so many cases, which `make` makes of tapes, within the bounds; the same ones each time.

    It raises where something is wrong with what is tested. What fails is told with its tape, which is short: nothing
    is gained by shrinking it, and to shrink a case that takes long takes very long.
    """

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
        with bounded(ROOM_BYTES):
            for at in range(0, len(drawn), TAPE_BYTES):
                tape = drawn[at : at + TAPE_BYTES]
                case = make(Tape(tape))
                try:
                    timed(partial(check, case))
                except BaseException as error:
                    error.add_note(f"the case of Tape({tape!r}): {case!r}"[:5000])
                    raise

    run()


def timed(case: Callable[[], None]) -> None:
    """Run a case, and fail where it takes too long each time."""
    took: list[float] = []
    for _ in range(TRIES):
        began = time.process_time()
        case()
        took.append(time.process_time() - began)
        if took[-1] <= CASE_S:
            return
    raise AssertionError(f"a case took {', '.join(f'{1000 * s:.0f}' for s in took)} ms: expected {1000 * CASE_S:.0f}")


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

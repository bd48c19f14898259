"""What a block of a test leaves open in this process: descriptors, and files that are mapped."""

import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lockstep.common.runtime.clock import SystemClock

#: Marks a test that looks at what is open.
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc, which lists what is open")


#: Seconds for which a thread of an earlier test may still end what it does, and seconds between two looks.
ENDING_S, LOOK_S = 10.0, 0.05


@contextmanager
def nothing_left_open(ending_s: float = ENDING_S) -> Iterator[None]:
    """Check that a block closes the descriptors that it opens, and lets go of what it maps.

    A mapping, with the descriptor that Python keeps for it, ends with the last array on it. All other descriptors are
    to be closed, and not to wait for the garbage collector. It looks at what was there before once in a process.
    """
    gc.collect()
    gc.freeze()
    before = _descriptors() + _mappings()
    yield
    opened = _opened(before, ending_s)
    assert not opened, f"still open: {dict(opened)}, with the threads {threading.enumerate()}"
    gc.collect()
    left = _descriptors() + _mappings() - before
    assert not left, f"still open or mapped: {dict(left)}"


def _opened(before: Counter[str], ending_s: float) -> Counter[str]:
    """Return the descriptors that were opened since then, and stay open.

    A thread of an earlier test may open some meanwhile: it closes them. The block's own would stay, because no garbage
    is collected here.
    """
    clock = SystemClock()
    end, is_enabled = clock.now() + ending_s, gc.isenabled()
    gc.disable()
    try:
        while True:
            mapped = _mappings()
            opened = Counter({target: count for target, count in _descriptors().items() if target not in mapped})
            if not opened - before or clock.now() > end:
                return opened - before
            threading.Event().wait(LOOK_S)
    finally:
        if is_enabled:
            gc.enable()


def _descriptors() -> Counter[str]:
    """Count the open descriptors by what they lead to."""
    found = Counter[str]()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{descriptor}")] += 1
        except FileNotFoundError:
            continue  # that of the listing itself
    return found


def _mappings() -> Counter[str]:
    """Count the shared mappings by their files."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    fields = [line.split(maxsplit=5) for line in lines]
    return Counter(path[0] for _, mode, _, _, _, *path in fields if mode.endswith("s") and path)

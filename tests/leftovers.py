"""What a block of a test leaves open in this process: descriptors, and files that are mapped."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Marks a test that looks at what is open.
LINUX_ONLY = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc, which lists what is open")


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Check that a block closes the descriptors that it opens, and lets go of what it maps.

    A mapping, with the descriptor that Python keeps for it, ends with the last array on it. All other descriptors are
    to be closed, and not to wait for the garbage collector.
    """
    gc.collect()
    before = _descriptors() + _mappings()
    yield
    mapped = _mappings()
    opened = Counter({target: count for target, count in _descriptors().items() if target not in mapped})
    assert not opened - before, f"still open: {dict(opened - before)}"
    gc.collect()
    left = _descriptors() + _mappings() - before
    assert not left, f"still open or mapped: {dict(left)}"


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

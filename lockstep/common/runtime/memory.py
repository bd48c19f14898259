"""Memory of this process: keeps what was freed for the next step, and counts the pages that had to be read.

Fresh pages from the system are the most expensive thing in NumPy training.
"""

import ctypes
import resource
import sys

#: glibc's `mallopt` options (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Bytes of the largest block from the heap, which reuses blocks: glibc's own limit on 64 bits.
LARGEST = 32 << 20

#: Bytes of free memory at the heap's top that are kept.
KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Let the allocator hand the arrays of one step to the next, for this process; return whether it accepted that.

    glibc gives blocks of 128 KiB and more back to the system as soon as they are freed, and their successors arrive
    page by page, zeroed. A step asks for the same sizes in the same order, so that what it freed fits: this is the
    arena that other frameworks write themselves. An array that is still referenced is simply not free.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))


def major_faults() -> int:
    """Return how many pages this process has had to wait for, since they had to be read from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt

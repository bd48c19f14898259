"""The only reader of the environment and of the machine's resources; must stay importable before NumPy."""

import ctypes
import gc
import math
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lockstep.common.errors import UsageError

#: Read once by the BLAS libraries that NumPy may be linked with, when they are loaded.
BLAS_THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "OMP_NUM_THREADS",
)

ONE_BLAS_THREAD = dict.fromkeys(BLAS_THREAD_VARIABLES, "1")

#: glibc's `mallopt` options (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8

#: Bytes of the largest block from the heap, which reuses blocks: glibc's own limit on 64 bits.
LARGEST_BLOCK = 32 << 20

#: Bytes of free memory at the heap's top that are kept.
KEPT_FREE = 1 << 30

#: Variables for the flags `--keys` and `--key`.
KEY_VARIABLES = ("LOCKSTEP_KEYS", "LOCKSTEP_KEY")

#: Names the target whose kernels a process loads, such as "avx2"; without it, the fastest that its processor supports.
KERNELS_VARIABLE = "LOCKSTEP_KERNELS"


def use_one_blas_thread() -> None:
    """Make every BLAS that is loaded from now on, here and in child processes, use one thread (rule R4).

    With native numerics, the bits of a matrix product change with the number of threads. Portable ones call no BLAS,
    but one rule for both is simplest: a process learns which of them it needs after NumPy is loaded. Call it before
    that, and only in a process that is ours. In a user's, `lent_process.computing` does the same to the loaded library
    for a while.
    """
    os.environ.update(ONE_BLAS_THREAD)


def has_one_blas_thread() -> bool:
    """Return whether the environment limits every BLAS to one thread, whichever of them is loaded."""
    return all(os.environ.get(name) == "1" for name in BLAS_THREAD_VARIABLES)


def cores() -> int:
    """Return the number of cores this process may use, which a container or `taskset` may have lowered.

    A quota that is not a whole number is rounded up: otherwise, a part of a core would be idle.
    """
    return max(1, math.ceil(min(len(core_numbers()), core_quota())))


def core_quota(groups: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> float:
    """Return how many cores the control groups of this process may use on average; infinity if they have no limit.

    `groups` lists them, of either version; `root` is where they are mounted.
    """
    quota = math.inf
    for _, controllers, path in (line.split(":", 2) for line in _lines(groups)):
        if not controllers:
            folder, names = root, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            folder, names = os.path.join(root, "cpu"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        # In a container, `root` may be its own group, and the path may be as the host has it.
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            files = [os.path.join(folder, *parts[:depth], name) for name in names]
            quota = min(quota, _quota_of([word for file in files for line in _lines(file) for word in line.split()]))
    return quota


def _quota_of(words: Sequence[str]) -> float:
    """Return the cores of a quota and a period; infinity unless the first is a number above 0."""
    match words:
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            return int(quota) / int(period)
        case _:
            return math.inf


def _lines(path: str) -> list[str]:
    """Return the lines of a file of the system, none if there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def core_numbers() -> list[int]:
    """Return which cores this process may use."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def machine_id(path: str = "/proc/sys/kernel/random/boot_id") -> str:
    """Return what tells this machine from others, the same in all of its containers; empty if the system has none."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def network_id() -> str:
    """Return what tells the network of this process from that of another container; empty if the system has one."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def give_way() -> None:
    """Let this process wait, when it has something to do again, until the one on its core has nothing to do.

    Otherwise a worker, as soon as it is sent its next lease, takes the core of the server, which then cannot send the
    others theirs for as long as it computes. Does nothing if the system does not support it.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def yield_core() -> None:
    """Let another process that waits for the core of this one have it; return at once if none waits."""
    os.sched_yield()


def keep_to_core(pid: int, number: int) -> None:
    """Keep a process, and threads that it starts later, on one of the cores that this process may use, modulo
    their number. Does nothing if the system does not support it or the process is gone.
    """
    if sys.platform == "linux":
        mine = sorted(os.sched_getaffinity(0))
        with suppress(ProcessLookupError):
            os.sched_setaffinity(pid, {mine[number % len(mine)]})


@contextmanager
def kept_to_core(number: int) -> Iterator[None]:
    """Keep this process, and threads that it starts within the context, on one core as `keep_to_core` does."""
    before = core_numbers()
    keep_to_core(0, number)
    try:
        yield
    finally:
        if sys.platform == "linux":
            os.sched_setaffinity(0, before)


def name_process(words: Sequence[str]) -> None:
    """Let lists of processes show these words as the command of this process, as far as the old command has room.

    Does nothing if the system does not support it.
    """
    with suppress(OSError, IndexError):
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        begin, end = int(fields[45]), int(fields[46])  # `arg_start` and `arg_end` of proc(5)
        if begin:
            text = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin - 1]
            ctypes.memset(begin, 0, end - begin)
            ctypes.memmove(begin, text, len(text))


def child_environment() -> Mapping[str, str]:
    """Return the environment for child processes: ours, with one BLAS thread (rule R4) and unbuffered output.

    Without the user's keys: a run on this machine needs none, and others get them by flags.
    """
    ours = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
    return {**ours, **ONE_BLAS_THREAD, "PYTHONUNBUFFERED": "1"}


def cache_home(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of caches, by the XDG Base Directory Specification."""
    given = environ.get("XDG_CACHE_HOME", "")
    # The specification demands that a relative path be ignored.
    return given if os.path.isabs(given) else os.path.expanduser("~/.cache")


def own_cache() -> str:
    """Return the folder of Lockstep's caches: of packed datasets, of samples from servers, and of unpacked runs."""
    return os.path.join(cache_home(), "lockstep")


def state_home(environ: Mapping[str, str] = os.environ) -> str:
    """Return the folder of the state that is kept, by the XDG Base Directory Specification."""
    given = environ.get("XDG_STATE_HOME", "")
    return given if os.path.isabs(given) else os.path.expanduser("~/.local/state")


def kernels_target(environ: Mapping[str, str] = os.environ) -> str:
    """Return the target whose kernels are to be loaded; empty if the processor decides."""
    return environ.get(KERNELS_VARIABLE, "")


def own_environment() -> Mapping[str, str]:
    """Return the environment of this process."""
    return os.environ


def keep_freed_memory() -> bool:
    """Let the allocator hand the arrays of one step to the next, for this process; return whether it accepted that.

    Fresh pages from the system are the most expensive thing in NumPy training.

    glibc gives blocks of 128 KiB and more back to the system as soon as they are freed, and their successors arrive
    page by page, zeroed. A step asks for the same sizes in the same order, so that what it freed fits: this is the
    arena that other frameworks write themselves. An array that is still referenced is simply not free.

    All threads share one arena, because glibc returns those of other threads to the system whatever the thresholds are:
    ZeroMQ's thread, which allocates the frames that come, would get fresh pages for each step of a large model.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    options = {M_MMAP_THRESHOLD: LARGEST_BLOCK, M_TRIM_THRESHOLD: KEPT_FREE, M_ARENA_MAX: 1}
    return all(mallopt(option, value) for option, value in options.items())


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let the garbage collector rest while modules are imported, none of which is garbage.

    It would look through all of them again and again, which takes a seventh of the time until a command begins.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def most_open_files() -> int:
    """Return how many files this process may have open at once."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


#: Files that a process of a run has open at most, and how many more for each process that it is connected to or starts:
#: `train` was found with 20 and 3, a server and a worker with fewer.
FILES, FILES_PER_PEER = 40, 3


def demand_open_files(peers: int = 0) -> None:
    """Raise `UsageError` if this process may not open as many files as it needs, with so many processes around it.

    Before any socket is opened, because ZeroMQ ends a process that lacks a file.
    """
    most, needed = most_open_files(), FILES + FILES_PER_PEER * peers
    if most < needed:
        raise UsageError(
            f"this process may open {most} files: expected at least {needed}; run `ulimit -n {max(1024, needed)}`"
        )


def demand_file_size(needed: int) -> None:
    """Raise `UsageError` if this process may not write as many bytes into a file as a checkpoint of its run has."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most != resource.RLIM_INFINITY and most < needed:
        raise UsageError(
            f"this process may write {most:,} bytes into a file: expected at least {needed:,}, for the weights of the "
            "run and its checkpoints; run `ulimit -f unlimited`"
        )


def major_faults() -> int:
    """Return how many pages this process has had to wait for, since they had to be read from a disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def processor_name(path: str = "/proc/cpuinfo") -> str:
    """Return what the processor is called; "unknown" if the system does not tell."""
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return "unknown"


def memory_bytes() -> int:
    """Return the size of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def busy_cores_s(path: str = "/proc/stat") -> float:
    """Return the seconds that all cores together have been busy since the machine started; 0 if it does not tell.

    Time that a virtual machine's host took away counts as busy.
    """
    try:
        with open(path, encoding="ascii") as file:
            user, nice, system, _idle, _waiting, *rest = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")

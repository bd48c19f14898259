"""Facts about this machine, and the allocator, which can be told to keep what is freed."""

import gc
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lockstep.cli.main import Commands
from lockstep.common.runtime.environment import (
    BLAS_THREAD_VARIABLES,
    cache_home,
    child_environment,
    collector_paused,
    core_numbers,
    core_quota,
    cores,
    keep_freed_memory,
    keep_to_core,
    machine_id,
    use_one_blas_thread,
)


def test_there_is_a_core_to_run_on() -> None:
    assert cores() >= 1


def test_each_core_that_may_be_used_is_named_once() -> None:
    numbers = core_numbers()
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= cores()


#: The groups of a process, the files of these -> the cores that it may use.
QUOTAS = {
    "no groups": ("", {}, math.inf),
    "no limit": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
    "half a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "the least of all above": (
        "0::/a/b/c\n",
        {"a/cpu.max": "300000 100000", "a/b/cpu.max": "150000 100000", "a/b/c/cpu.max": "max 100000"},
        1.5,
    ),
    "the first version": (
        "4:memory:/m\n2:cpu,cpuacct:/a/b\n0::/\n",
        {"cpu/a/b/cpu.cfs_quota_us": "250000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"},
        2.5,
    ),
    "no limit in the first version": (
        "1:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        math.inf,
    ),
    "a path of the host": (
        "1:cpu:/docker/1f\n",
        {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"},
        3.0,
    ),
    "another controller": ("2:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "1", "cpu/a/cpu.cfs_period_us": "1"}, math.inf),
    "a file of another kind": ("0::/\n", {"cpu.max": "0 0\n"}, math.inf),
}


@pytest.mark.parametrize(("groups", "files", "quota"), QUOTAS.values(), ids=QUOTAS)
def test_the_cores_of_a_control_group_are_those_of_its_quota(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float
) -> None:
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert core_quota(str(tmp_path / "groups"), str(tmp_path)) == quota


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process be kept to a core")
def test_the_cores_that_are_named_are_those_that_the_process_was_kept_to() -> None:
    program = "from lockstep.common.runtime.environment import core_numbers, keep_to_core; import os\n"
    program += "keep_to_core(os.getpid(), 1); print(core_numbers())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str([core_numbers()[1 % cores()]])


def test_a_machine_is_known_by_what_its_file_says(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("0b1c2d3e-4f50\n")
    assert machine_id(str(tmp_path / "boot_id")) == "0b1c2d3e-4f50"
    (tmp_path / "long").write_text("x" * 1000)
    assert machine_id(str(tmp_path / "long")) == "x" * 64
    assert machine_id(str(tmp_path / "none")) == ""
    assert machine_id() == machine_id()


def test_children_inherit_one_blas_thread_and_write_at_once() -> None:
    use_one_blas_thread()
    environment = child_environment()
    assert all(environment[name] == "1" for name in BLAS_THREAD_VARIABLES)
    assert environment["PYTHONUNBUFFERED"] == "1"


@pytest.mark.parametrize(("given", "expected"), [("/var/cache", "/var/cache"), ("here", "~/.cache"), ("", "~/.cache")])
def test_the_cache_is_where_the_specification_says(given: str, expected: str) -> None:
    assert cache_home({"XDG_CACHE_HOME": given}) == os.path.expanduser(expected)
    assert cache_home({}) == os.path.expanduser("~/.cache")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process be kept to a core")
def test_a_process_is_kept_to_one_core_counted_round() -> None:
    mine = sorted(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        for number in (0, 1, len(mine)):
            keep_to_core(process.pid, number)
            assert os.sched_getaffinity(process.pid) == {mine[number % len(mine)]}
        process.communicate(b"\n")
    keep_to_core(process.pid, 0)  # it is gone: there is nothing to be done or reported


@pytest.fixture
def collector_enabled() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.usefixtures("collector_enabled")
def test_the_garbage_collector_rests_for_a_block_and_is_then_as_before() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_it_collects_again_when_a_command_is_called() -> None:
    assert Commands()["worker"].name == "worker"
    assert gc.isenabled()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_freed_array_is_used_again() -> None:
    assert keep_freed_memory()
    first = np.empty(1 << 20, dtype=np.float32)
    first.fill(1.0)
    place = first.ctypes.data
    del first
    assert np.empty(1 << 20, dtype=np.float32).ctypes.data == place


#: Prints the page faults of a thread that fills 50,000 pages of 4 KiB, and does so again.
FILLING = """
import resource, threading
import numpy as np
from lockstep.common.runtime.environment import keep_freed_memory

def fill():
    for _ in range(2):
        arrays = [np.empty(1 << 18, dtype=np.float32) for _ in range(200)]
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for array in arrays:
            array.fill(1.0)
        print(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
        del arrays, array

assert keep_freed_memory()
thread = threading.Thread(target=fill)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_arrays_of_another_thread_are_used_again() -> None:
    # In a process of its own: threads take arenas that other threads have left.
    ran = subprocess.run([sys.executable, "-c", FILLING], capture_output=True, text=True, check=True)
    assert int(ran.stdout.split()[1]) < 100

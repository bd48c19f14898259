"""Findings about a machine from given facts, and the facts about this machine."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lockstep.checking.checkup.machine import (
    Gemm,
    MachineInfo,
    SharedMemory,
    facts_of,
    machine_findings,
    machine_lines,
    measured,
    measured_under,
)
from lockstep.common.numerics.choice import Kernels
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.runtime.blas import CORETYPE
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import child_environment

#: A machine without findings.
GOOD = MachineInfo(
    system="Linux",
    python="3.11",
    cores=2,
    fingerprint=msgspec.structs.replace(fingerprint(), threads=1),
    kernels=Kernels(target="avx2", digest="c0ffee"),
    gemm=Gemm(kernel="SkylakeX", gflops=200.0),
    coretype="",
    gemm_without=None,
    shared=SharedMemory(folder="/dev/shm", total_bytes=2**34, free_bytes=2**33),
    ports={"tcp://127.0.0.1": "", "ipc": ""},
)

SMALL = SharedMemory(folder="/dev/shm", total_bytes=64 * 2**20, free_bytes=60 * 2**20)
CHOSEN = {"coretype": "Haswell", "gemm": Gemm(kernel="Haswell", gflops=120.0), "gemm_without": GOOD.gemm}

FOUND: dict[str, tuple[dict[str, Any], str, str]] = {
    "threads": ({"fingerprint": msgspec.structs.replace(GOOD.fingerprint, threads=8)}, "threads", "uses 8 threads"),
    "kernel": (CHOSEN, "kernel", "OPENBLAS_CORETYPE=Haswell.*120 GFLOP/s with Haswell, 200 with SkylakeX"),
    "shared memory": ({"shared": SMALL}, "shared-memory", "/dev/shm has 60 MiB of 64 MiB left"),
    "port": ({"ports": {"ipc": "no such thing"}}, "port", "no server can listen at ipc: no such thing"),
}


@pytest.mark.parametrize(("change", "kind", "text"), FOUND.values(), ids=FOUND)
def test_what_is_in_the_way_is_named(change: dict[str, Any], kind: str, text: str) -> None:
    facts = msgspec.structs.replace(GOOD, **change)
    (finding,) = machine_findings(facts)
    assert finding.kind == kind
    assert re.search(text, str(finding)), finding
    lines = machine_lines(facts, [finding])
    assert all(len(line) <= 80 for line in lines[-4:])


@pytest.mark.parametrize(("free", "kinds"), [(64 * 2**20, []), (64 * 2**20 - 1, ["shared-memory"])])
def test_little_shared_memory_is_less_than_a_container_has(free: int, kinds: list[str]) -> None:
    shared = msgspec.structs.replace(GOOD.shared, free_bytes=free)
    found = machine_findings(msgspec.structs.replace(GOOD, shared=shared))
    assert [finding.kind for finding in found] == kinds


@pytest.mark.parametrize(("threads", "kinds"), [(0, []), (1, []), (2, ["threads"])])
def test_one_thread_is_right_and_an_unknown_number_no_finding(threads: int, kinds: list[str]) -> None:
    shown = msgspec.structs.replace(GOOD.fingerprint, threads=threads)
    found = machine_findings(msgspec.structs.replace(GOOD, fingerprint=shown))
    assert [finding.kind for finding in found] == kinds


def test_nothing_in_the_way_is_no_finding() -> None:
    assert machine_findings(GOOD) == []


def test_a_kernel_chosen_by_hand_that_is_the_processors_own_is_no_finding() -> None:
    assert machine_findings(msgspec.structs.replace(GOOD, coretype="SkylakeX", gemm_without=GOOD.gemm)) == []


def test_the_facts_of_this_machine() -> None:
    environment = {name: value for name, value in child_environment().items() if name != CORETYPE}
    facts = facts_of(environment)
    assert facts.cores >= 1
    assert facts.gemm.gflops > 0
    assert facts.gemm_without is None
    assert Path(facts.shared.folder).is_dir()
    assert facts.ports == {"tcp://127.0.0.1": "", "ipc": ""}
    lines = machine_lines(facts, [])
    assert len(lines) == 14
    assert lines[-1] == "no findings: nothing would hinder a run"


@pytest.mark.parametrize(
    ("kernels", "line"),
    [
        (GOOD.kernels, "avx2, self-test c0ffee: portable numerics, the same bits on every machine"),
        (Kernels(obstacle="no compiler"), "none, so jobs have native numerics: no compiler"),
    ],
)
def test_the_kernels_are_told_or_why_there_are_none(kernels: Kernels, line: str) -> None:
    facts = msgspec.structs.replace(GOOD, kernels=kernels)
    assert f"kernels        {line}" in machine_lines(facts, [])


def test_another_process_measures_the_kernel_that_it_was_told_to_use() -> None:
    here = measured(SystemClock())
    there = measured_under(child_environment())
    assert there.kernel == here.kernel
    assert there.gflops > 1

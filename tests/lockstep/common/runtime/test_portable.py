"""Machines and processes that do not have portable numerics are refused, each with what was found and what to do."""

import re

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.runtime.portable import check_features, check_held, demand_portable_machine


@pytest.mark.parametrize("architecture", ["aarch64", "arm64", "ppc64le"])
def test_another_architecture(architecture: str) -> None:
    with pytest.raises(NumericsError, match=f"'{architecture}'.*expected x86-64 with AVX2 and FMA; use another"):
        demand_portable_machine(architecture)


def test_an_old_processor() -> None:
    with pytest.raises(NumericsError, match=r"without AVX2 and FMA \(NumPy finds X86_V2\).*numerics = 'native'"):
        check_features([], ["X86_V2"])


def test_a_numpy_that_was_built_for_this_processor() -> None:
    with pytest.raises(NumericsError, match=r"built for X86_V4: expected its wheel"):
        check_features([], ["X86_V3", "X86_V4"])


@pytest.mark.parametrize(
    ("found", "baseline"), [(["X86_V3"], ["X86_V2"]), (["AVX2", "FMA3"], ["SSE2"]), ([], ["X86_V3"])]
)
def test_a_processor_that_has_what_is_needed(found: list[str], baseline: list[str]) -> None:
    check_features(found, baseline)


@pytest.mark.parametrize(
    ("kernel", "threads", "found", "text"),
    [
        ("SkylakeX", 1, ["X86_V3"], "runs kernel 'SkylakeX' on 1 threads: expected 'Haswell'"),
        ("Zen", 1, ["X86_V3"], "runs kernel 'Zen'"),
        ("unknown", 0, ["X86_V3"], "runs kernel 'unknown' on 0 threads"),
        ("Haswell", 2, ["X86_V3"], "on 2 threads"),
        ("Haswell", 1, ["X86_V3", "X86_V5", "X86_V4"], "and NumPy uses X86_V4, X86_V5: expected"),
    ],
)
def test_a_process_that_is_not_held(kernel: str, threads: int, found: list[str], text: str) -> None:
    with pytest.raises(NumericsError, match=re.escape(text)) as raised:
        check_held(kernel, threads, found)
    assert "\n" not in str(raised.value)


def test_a_process_that_is_held() -> None:
    check_held("Haswell", 1, ["AVX2", "FMA3", "X86_V3"])

"""What a process is held to is settled before NumPy is loaded, from NumPy's own table, and never left to chance."""

import subprocess
import sys

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.numerics import (
    CORETYPE,
    DISABLED,
    ENABLED,
    HASWELL,
    NUMERICS,
    environment_with,
    feature_table,
    has_needed,
    own_numerics,
    variables_that_hold,
)
from lockstep.common.runtime.portable import demand_portable_machine

#: What a process has that imports Lockstep.
SHOW = """
import lockstep
from lockstep.common.runtime.blas import blas_kernel
from lockstep.common.runtime.numerics import feature_table, own_numerics
print(own_numerics(), blas_kernel(), *feature_table()[0])
"""


def is_portable_here() -> bool:
    """Tell whether this machine can have portable numerics at all."""
    try:
        demand_portable_machine()
    except NumericsError:
        return False
    return True


needs_portable = pytest.mark.skipif(not is_portable_here(), reason="this machine cannot have portable numerics")


def shown_by(program: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=environment, capture_output=True, text=True, check=False
    )


def native() -> dict[str, str]:
    """Return an environment in which nothing is held."""
    return {name: value for name, value in child_environment().items() if name not in (NUMERICS, CORETYPE, DISABLED)}


def test_all_that_numpy_knows_is_off_but_what_a_haswell_has() -> None:
    found, others = feature_table()
    assert found, "NumPy's table is empty"
    held = environment_with("portable", {"HOME": "/root", ENABLED: "AVX512F"})
    assert set(held[DISABLED].split()) == {*found, *others} - HASWELL
    assert (held[NUMERICS], held[CORETYPE], held["HOME"]) == ("portable", "Haswell", "/root")
    assert ENABLED not in held  # NumPy is not imported if both are set


def test_a_native_process_keeps_a_kernel_that_its_user_has_chosen() -> None:
    assert own_numerics() == "native"
    assert environment_with("native", {CORETYPE: "Zen"}) == {CORETYPE: "Zen"}


def test_a_process_without_numpy_asks_another_for_the_table() -> None:
    program = "import sys; from lockstep.common.runtime.numerics import feature_table\n"
    program += "table = feature_table(); assert 'numpy' not in sys.modules; print(table)"
    assert shown_by(program, native()).stdout.strip() == str(feature_table())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], False),
        (["X86_V2"], False),
        (["AVX2"], False),
        (["AVX2", "FMA3"], True),
        (["X86_V3"], True),
        (["X86_V3", "X86_V9"], True),
    ],
)
def test_what_a_processor_needs(found: list[str], expected: bool) -> None:
    assert has_needed(found) is expected


@pytest.mark.parametrize(
    ("environ", "is_held"),
    [
        ({NUMERICS: "portable"}, False),
        # As if somebody had chosen the kernel, or switched features off, who knows nothing of portable numerics.
        ({NUMERICS: "portable", CORETYPE: "Haswell"}, False),
        ({NUMERICS: "portable", CORETYPE: "Haswell", DISABLED: ""}, False),
        ({NUMERICS: "portable", DISABLED: "AVX512F"}, False),
        ({NUMERICS: "portable", CORETYPE: "Zen", DISABLED: "AVX512F"}, False),
        ({NUMERICS: "portable", CORETYPE: "Haswell", DISABLED: "AVX512F"}, True),
        ({NUMERICS: "native"}, True),
        ({CORETYPE: "Haswell"}, True),
        ({}, True),
    ],
)
def test_only_a_portable_process_is_held_and_to_all_that_it_takes(environ: dict[str, str], is_held: bool) -> None:
    held = variables_that_hold(environ, lambda: (["X86_V3", "AVX512F"], ["X86_V9"]))
    complete = {NUMERICS: "portable", CORETYPE: "Haswell", DISABLED: "AVX512F X86_V9"}
    assert held == ({} if is_held else complete)


def test_a_processor_that_lacks_what_portable_numerics_need_is_held_to_nothing() -> None:
    assert variables_that_hold({NUMERICS: "portable"}, lambda: (["X86_V2"], ["X86_V3"])) == {}


@needs_portable
@pytest.mark.parametrize("is_told_all", [False, True])
def test_a_process_that_is_started_with_portable_numerics_has_them(is_told_all: bool) -> None:
    environment = environment_with("portable", native()) if is_told_all else {**native(), NUMERICS: "portable"}
    done = shown_by(SHOW, environment)
    assert done.stdout.split()[:2] == ["portable", "Haswell"], done.stderr
    assert set(done.stdout.split()[2:]) <= HASWELL


@needs_portable
def test_a_portable_process_starts_native_ones() -> None:
    program = "import os, json; from lockstep.common.runtime.numerics import environment_with\n"
    program += "print(json.dumps(environment_with('native', dict(os.environ))))"
    done = shown_by(program, environment_with("portable", native()))
    assert not {f'"{name}"' for name in (NUMERICS, CORETYPE, DISABLED) if f'"{name}"' in done.stdout}, done.stderr
    assert '"PATH"' in done.stdout


@needs_portable
def test_a_process_that_loaded_numpy_before_is_found_out() -> None:
    program = "import numpy, lockstep; from lockstep.common.protocol.fingerprint import fingerprint; fingerprint()"
    done = shown_by(program, {**native(), NUMERICS: "portable", CORETYPE: "Nehalem"})
    assert "NumericsError: this process should have portable numerics, but its BLAS runs kernel" in done.stderr


@needs_portable
def test_a_feature_that_was_left_on_is_found_out() -> None:
    newer = [name for name in feature_table()[0] if name not in HASWELL]
    if not newer:
        pytest.skip("this processor has nothing newer")
    held = environment_with("portable", native())
    left = {**held, DISABLED: " ".join(name for name in held[DISABLED].split() if name != newer[-1]) or "X86_V3"}
    done = shown_by(
        "import lockstep; from lockstep.common.protocol.fingerprint import fingerprint; fingerprint()", left
    )
    assert "NumericsError" in done.stderr
    assert newer[-1] in done.stderr

"""The kernels that this processor can run: finds their library, checks what it computes, and loads it.

A target is a set of processors that one library is compiled for, with its flags and sources.

As a program it prints the target and the digest of the self-test, or why there are no kernels.
"""

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lockstep.common.errors import NumericsError
from lockstep.common.runtime.environment import KERNELS_VARIABLE, kernels_target

#: The folders of the libraries, and of the sources that they are compiled from.
FOLDER = Path(__file__).parent
SOURCE = FOLDER / "source"

#: Flags for every target. The contract needs `-ffp-contract=off`: operations are fused only where the source says so.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-std=gnu11", "-fPIC", "-shared")

#: Libraries that are linked, named after the sources.
LINKED = ("-lm",)


@dataclass(frozen=True)
class Target:
    """Processors that one library is compiled for."""

    name: str
    #: Machines that have such processors, as `uname -m` prints them; empty if no run uses the library.
    machines: tuple[str, ...]
    flags: tuple[str, ...]
    #: The instructions that a processor must have.
    needs: str = "nothing"


AVX512 = Target(
    name="avx512",
    machines=("x86_64",),
    flags=(
        *("-DTARGET_AVX512", "-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma"),
        "-mprefer-vector-width=512",
    ),
    needs="AVX-512 (F, DQ, BW, VL)",
)
AVX2 = Target(name="avx2", machines=("x86_64",), flags=("-DTARGET_AVX2", "-mavx2", "-mfma"), needs="AVX2 and FMA")
NEON = Target(name="neon", machines=("aarch64", "arm64"), flags=("-DTARGET_NEON",))

#: C without vectors of a processor, which tests compare the others with.
PLAIN = Target(name="plain", machines=(), flags=())

#: A process uses the first that its processor supports.
TARGETS = (AVX512, AVX2, NEON, PLAIN)


def this_machine() -> str:
    """Return the kind of machine that this is."""
    return os.uname().machine


def targets_of(machine: str) -> list[Target]:
    """Return the targets of a kind of machine, the fastest first."""
    return [target for target in TARGETS if machine in target.machines]


def library_path(target: Target, folder: Path = FOLDER) -> Path:
    """Return the file of the library for a target."""
    return folder / f"lockstep_kernels_{target.name}.so"


def sources() -> list[Path]:
    """Return the files that a compiler is given; empty in an installed wheel, which has only libraries."""
    return sorted(SOURCE.glob("*.c"))


def sources_digest(target: Target) -> str:
    """Return a digest of what a library for the target is compiled from: sources and flags."""
    hashed = hashlib.sha256(repr((FLAGS, target.flags, LINKED)).encode())
    for path in (*sources(), *sorted(SOURCE.glob("*.h"))):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def is_current(target: Target, path: Path) -> bool:
    """Return whether a library has been compiled from the sources here; it contains their digest."""
    return path.exists() and sources_digest(target).encode() in path.read_bytes()


#: Types in C: a whole number, an address, a float, a digest.
N, A, F, DIGEST = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_uint64

Returned = type[ctypes.c_int64] | type[ctypes.c_uint64] | None
Taken = tuple[type[ctypes.c_int64] | type[ctypes.c_void_p] | type[ctypes.c_float], ...]

#: The digest of each part of the self-test; `ls_check_PART` computes it. They change with the contract only.
SELF_TEST = {
    "arithmetic": 0xC88848CE8F8F20ED,
    "products": 0x8B01414576467E9D,
    "sums": 0x1EB8C9D1F2E09220,
    "functions": 0xF52DA987A348096A,
    "convolutions": 0xF323DAB86A506C92,
}

#: The types that each function returns and takes. A test compares this with the sources.
#:
#: - `ls_run` carries out calls: the address of their rows, and how many they are (calls.c).
#: - `ls_show_running` takes the address of a float64, to which the thread's kernels write the time; or 0.
#: - `ls_product_scratch` returns the floats of scratch memory for products: (count, rows of a left operand that a stack
#:   shares or 0, columns, terms, stride of the right operand's columns).
#: - `ls_convolution_scratch` returns the same for a convolution and its gradients: the address of eleven sizes.
#: - `ls_recurrent_scratch` returns the same for a recurrent layer: the address of its kind and four sizes.
SIGNATURES: Mapping[str, tuple[Returned, Taken]] = {
    "ls_run": (None, (A, N)),
    "ls_show_running": (None, (A,)),
    "ls_momentum": (N, (N, A, A, A, A, F, F, N, A, A, F, N, F, N, F)),
    "ls_product_scratch": (N, (N, N, N, N, N)),
    "ls_convolution_scratch": (N, (A,)),
    "ls_recurrent_scratch": (N, (A,)),
    "ls_supported": (N, ()),
    **{f"ls_check_{part}": (DIGEST, ()) for part in SELF_TEST},
}

#: One digest of all parts, by which machines know that they compute alike.
SELF_TEST_DIGEST = hashlib.sha256(repr(SELF_TEST).encode()).hexdigest()[:16]

#: The remedy for a library that cannot be used.
_AGAIN = "install Lockstep again with another compiler, as in CC=clang"


@dataclass(frozen=True)
class Library:
    """A loaded library, and its functions for those who compute."""

    target: str
    path: Path
    #: All functions, with the types of their arguments.
    functions: ctypes.CDLL


@cache
def load(target: str = "", folder: Path = FOLDER) -> Library:
    """Load the kernels of a target: by default of the one in `LOCKSTEP_KERNELS`, or of the fastest that this processor
    supports.

    `NumericsError` if there are no kernels, or if they do not compute what the contract demands.
    """
    name = target or kernels_target()
    candidates = [_known(name)] if name else targets_of(this_machine())
    compiled = [candidate for candidate in candidates if library_path(candidate, folder).exists()]
    for candidate in compiled:
        library = _open(candidate, library_path(candidate, folder))
        if library.functions.ls_supported():
            check(library)
            return library
    names = ", ".join(candidate.name for candidate in candidates)
    if compiled:
        needs = compiled[-1].needs
        raise NumericsError(f"this processor cannot run the kernels for {names}: expected one with at least {needs}")
    if candidates:
        raise NumericsError(
            f"no kernels for {names} are installed in {folder}: install a C compiler (Debian, Ubuntu: sudo apt install "
            "gcc libc6-dev), and then Lockstep again"
        )
    raise NumericsError(f"there are no kernels for machines of the kind {this_machine()!r}: expected x86_64 or aarch64")


def check_libraries(targets: Iterable[Target]) -> None:
    """Check the libraries of those targets that this processor supports; `NumericsError` if one fails."""
    for target in targets:
        library = _open(target, library_path(target))
        if library.functions.ls_supported():
            check(library)


def _known(name: str) -> Target:
    for target in TARGETS:
        if target.name == name:
            return target
    expected = ", ".join(target.name for target in TARGETS if target.machines)
    raise NumericsError(f"{name!r} is not a target of the kernels ({KERNELS_VARIABLE}): expected one of {expected}")


def _open(target: Target, path: Path) -> Library:
    """Load a library, and declare its functions."""
    if sources() and not is_current(target, path):
        raise NumericsError(
            f"{path} was compiled from other sources or with other flags: run "
            "`python -m lockstep.common.numerics.kernels.compilation`"
        )
    try:
        functions = ctypes.CDLL(str(path))
        for name, (returned, taken) in SIGNATURES.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = returned, taken
    except (OSError, AttributeError) as error:
        raise NumericsError(f"{path} cannot be loaded: {error}: {_AGAIN}") from None
    return Library(target.name, path, functions)


def check(library: Library) -> None:
    """Run the self-test of a library; `NumericsError` if a part of it fails."""
    for part, expected in SELF_TEST.items():
        found = getattr(library.functions, f"ls_check_{part}")()
        if found != expected:
            raise NumericsError(
                f"the self-test of the kernels failed: {part} of {library.path} have the digest {found:016x}, "
                f"expected {expected:016x}, because its compiler fused or reordered operations: {_AGAIN}"
            )


if __name__ == "__main__":
    try:
        loaded = load()
    except NumericsError as error:
        sys.exit(f"error: {error}")
    print(f"kernels for {loaded.target}, self-test passed: {SELF_TEST_DIGEST}")

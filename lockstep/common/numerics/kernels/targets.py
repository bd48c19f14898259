"""The processors that kernels are compiled for: with which flags, and of which sources."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

#: Where the sources are, and the libraries that are compiled from them.
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
    #: What a processor must have.
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

"""The properties of a machine that decide whether another computes the same bits (rules R4 and R6)."""

import hashlib
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.numerics.choice import kernels_here
from lockstep.common.numerics.leaves import CONTRACT_VERSION
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.blas import blas_kernel, blas_name, blas_threads
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import Numerics
from lockstep.common.runtime.version import VERSION

#: Packages and modules whose code decides the bits of a result: from a sample to the sums, and from these to weights.
DECIDING = (
    "lockstep.common.aggregation",
    "lockstep.common.autograd",
    "lockstep.common.data",
    "lockstep.common.job",
    "lockstep.common.model",
    "lockstep.common.nn",
    "lockstep.common.numerics",
    "lockstep.common.optim",
    "lockstep.common.runtime.blas",
    "lockstep.ps.run.plan",
    "lockstep.ps.shard",
    "lockstep.worker.batches",
    "lockstep.worker.compute",
    "lockstep.worker.gradient_sink",
    "lockstep.worker.local_steps",
    "lockstep.worker.node_sums",
)

#: Fields that decide bits, whatever the numerics are.
ALWAYS = ("lockstep", "code", "mode", "draws", "engine", "evidence")

#: All fields that decide bits. Portable numerics are the contract, and not the processor or the NumPy below it.
DECIDING_FIELDS: dict[Numerics, tuple[str, ...]] = {
    "portable": (*ALWAYS, "contract", "kernels"),
    "native": (*ALWAYS, "numpy", "blas", "kernel", "threads", "features", "canary"),
}


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """The numerics of a process that joins, or of a run; processes with equal ones compute the same bits.

    A process can have both kinds of numerics: `mode` is that of the run. Its fields that decide no bits in
    that mode are for people who compare two receipts.
    """

    lockstep: str
    #: SHA-256 of the source of `DECIDING`, first 16 hex digits.
    code: str
    numpy: str
    mode: Numerics = "native"
    #: The version of the contract of portable numerics.
    contract: int = 0
    #: SHA-256 of what the kernels compute in their self-test, first 16 hex digits; empty without kernels.
    kernels: str = ""
    #: The processors that the kernels are compiled for, such as "avx512".
    target: str = ""
    #: SHA-256 of numbers that NumPy draws, first 16 hex digits.
    draws: str = ""
    #: Name and version of the BLAS that NumPy was built with.
    blas: str
    #: The kernel that BLAS chose for this processor, "unknown" if it does not report one.
    kernel: str
    #: BLAS threads; 0 if the library does not report them.
    threads: int
    #: NumPy's dispatched processor features.
    features: str
    #: SHA-256 of what NumPy computes, first 16 hex digits.
    canary: str
    #: The library that computes gradients if that is not our autograd: its version, and its use of the processor.
    engine: str = ""
    #: SHA-256 of what it computed of the model, first 16 hex digits.
    evidence: str = ""
    #: The versions of Python and of the C library, as far as known.
    python: str = ""
    libc: str = ""

    def differences(self, other: "Fingerprint") -> list[tuple[str, str | int, str | int]]:
        """Return the name, our value and the other's, of each field that differs and decides the bits of our mode."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in DECIDING_FIELDS[self.mode]]
        return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def code_digest(root: Path = Path(__file__).parents[3]) -> str:
    """Return the digest of the code that decides the bits of a result."""
    digest = hashlib.sha256()
    for path in _deciding_files(root):
        text = path.read_text(encoding="utf-8")
        digest.update(f"{path.relative_to(root).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()[:16]


def _deciding_files(root: Path) -> Iterator[Path]:
    for name in DECIDING:
        place = root.joinpath(*name.split("."))
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


@cache
@computing()
def fingerprint() -> Fingerprint:
    """Return this process's fingerprint, for a run with native numerics; computed once, in a few milliseconds.

    That of one with portable numerics has another `mode`: which of them a run has, a process learns when it has joined.
    """
    kernels = kernels_here()
    return Fingerprint(
        lockstep=VERSION,
        code=code_digest(),
        numpy=np.__version__,
        contract=CONTRACT_VERSION,
        kernels=kernels.digest,
        target=kernels.target,
        draws=_digest(_draws()),
        blas=blas_name(),
        kernel=blas_kernel(),
        threads=blas_threads(),
        features=" ".join(processor_features()),
        canary=_digest(_arithmetic()),
        python=platform.python_version(),
        libc=" ".join(platform.libc_ver()).strip(),
    )


def fingerprint_of(numerics: Numerics) -> Fingerprint:
    """Return the fingerprint of a run that this process computes with these numerics."""
    return msgspec.structs.replace(fingerprint(), mode=numerics)


def processor_features() -> list[str]:
    """Return the features of this processor that NumPy has code of its own for."""
    table = np.show_config(mode="dicts")["SIMD Extensions"]
    return list(table.get("found", ()))


def _digest(arrays: Iterator[NDArray[np.generic]]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def _draws() -> Iterator[NDArray[np.generic]]:
    """Draw as samplers, layers and initial values do: NumPy promises a generator's bits, but not how they are used."""
    drawn = generator(0, Purpose.CANARY)
    yield drawn.random(999, dtype=np.float32)
    yield drawn.random(99)
    yield drawn.permutation(999)
    yield drawn.integers(0, 10**6, 99)


def _arithmetic() -> Iterator[NDArray[np.generic]]:
    """Compute with NumPy what native numerics leave to it: products, functions and sums, in three milliseconds."""
    drawn = generator(1, Purpose.CANARY).random((150, 784), dtype=np.float32) - np.float32(0.5)
    for inner in (25, 400, 784):
        yield drawn[:, :inner] @ drawn[:33, :inner].T
        yield drawn[:, :inner].T @ drawn[:, :10]
    yield drawn.astype(np.float64) @ drawn[:5].T.astype(np.float64)
    for function in (np.exp, np.tanh, np.sqrt, np.log, np.log1p):
        positive = np.abs(drawn) + np.float32(1e-20)
        yield function(positive)
        yield function(positive.astype(np.float64))
    yield np.power(np.abs(drawn), np.float32(0.75))
    yield drawn.sum(axis=0)
    yield drawn.sum(axis=1)
    yield drawn.sum(axis=1, dtype=np.float64)

"""What makes two machines compute the same bits, and how to tell (rules R4 and R6)."""

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from common.random import Purpose, generator
from common.runtime.blas import blas_kernel, blas_threads

#: What pip calls the package; `lockstep` in the public index is another project.
DISTRIBUTION = "lockstep-sgd"

#: Packages whose source decides the bits of a result.
CODE_PACKAGES = ("common", "worker", "ps")


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker shows when it joins; two that are equal compute the same bits from the same piece of work."""

    lockstep: str
    #: SHA-256 of the source of `CODE_PACKAGES`, first 16 hex digits.
    code: str
    numpy: str
    #: Name and version of the BLAS that NumPy was built with.
    blas: str
    #: The kernel that BLAS chose for this processor, "unknown" where it does not say.
    kernel: str
    #: BLAS threads; 0 where the library does not say.
    threads: int
    #: NumPy's dispatched processor features.
    features: str
    #: SHA-256 of a canary's results, first 16 hex digits.
    canary: str

    def differences(self, other: "Fingerprint") -> list[tuple[str, str | int, str | int]]:
        """Return the name, our value and the other's, of each field that differs."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__]
        return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def canary_digest() -> str:
    """Return the digest of a millisecond's work that differs where the bits of training would."""
    rng = generator(0, Purpose.CANARY)
    digest = hashlib.sha256()
    for rows, inner, columns in ((16, 784, 10), (64, 400, 120), (7, 33, 5), (150, 25, 6)):
        left = rng.standard_normal((rows, inner), dtype=np.float32)
        right = rng.standard_normal((inner, columns), dtype=np.float32)
        product = left @ right
        digest.update(product.tobytes())
        digest.update((left.T @ product).tobytes())
        digest.update(np.exp(product - product.max()).tobytes())
        digest.update(np.tanh(product).tobytes())
        digest.update(product.sum(axis=0).tobytes() + product.sum(axis=1).tobytes())
    return digest.hexdigest()[:16]


def code_digest() -> str:
    """Return the digest of the source files that decide the bits of a result."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for package in CODE_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cpu_features() -> str:
    """Return NumPy's dispatched processor features that are present, space-separated."""
    config = np.show_config(mode="dicts")
    found = config["SIMD Extensions"].get("found", []) if config else []
    return " ".join(found)


def blas_name() -> str:
    """Return name and version of the BLAS that NumPy was built with."""
    config = np.show_config(mode="dicts")
    blas = config["Build Dependencies"].get("blas", {}) if config else {}
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def own_version() -> str:
    """Return the version of the code that runs."""
    return importlib.metadata.version(DISTRIBUTION)


@cache
def fingerprint() -> Fingerprint:
    """Return this process's fingerprint; computed once, in about 20 ms."""
    return Fingerprint(
        lockstep=own_version(),
        code=code_digest(),
        numpy=np.__version__,
        blas=blas_name(),
        kernel=blas_kernel(),
        threads=blas_threads(),
        features=cpu_features(),
        canary=canary_digest(),
    )

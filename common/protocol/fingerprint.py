"""What makes two machines compute the same bits, and how to tell (rules R4 and R6)."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from common.random import Purpose, generator
from common.runtime.blas import blas_kernel, blas_threads
from common.version import VERSION

#: Packages and modules whose code decides the bits of a result: from a sample to the sums, and from these to weights.
DECIDING = (
    "common.aggregation",
    "common.autograd",
    "common.data",
    "common.job",
    "common.model",
    "common.nn",
    "common.optim",
    "common.random",
    "common.runtime.blas",
    "ps.run.plan",
    "ps.shard",
    "worker.batches",
    "worker.compute",
    "worker.gradient_sink",
    "worker.node_sums",
)

#: A comment, or a string: it may be a docstring, and a `#` in it means nothing. Not by `ast` or `tokenize`: they take a
#: quarter of a second for these files, and differ between versions of Python.
_LEXEME = re.compile(
    r"""
    \#[^\n]*
    | \"{3} [^"\\]* (?:(?:\\.|"(?!""))[^"\\]*)* \"{3}
    | "[^"\\\n]*(?:\\.[^"\\\n]*)*" | '[^'\\\n]*(?:\\.[^'\\\n]*)*'
    """,
    re.DOTALL | re.VERBOSE,
)


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker presents when it joins; equal ones compute the same bits from the same micro-batch."""

    lockstep: str
    #: SHA-256 of the source of `DECIDING` without comments, first 16 hex digits.
    code: str
    numpy: str
    #: Name and version of the BLAS that NumPy was built with.
    blas: str
    #: The kernel that BLAS chose for this processor, "unknown" if it does not report one.
    kernel: str
    #: BLAS threads; 0 if the library does not report them.
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
    """Return the digest of a millisecond of work; it differs if the bits of training would."""
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


def code_digest(root: Path = Path(__file__).parents[2]) -> str:
    """Return the digest of the code that decides the bits of a result; comments and docstrings do not count."""
    digest = hashlib.sha256()
    for path in _deciding_files(root):
        code = without_comments(path.read_text(encoding="utf-8"))
        digest.update(f"{path.relative_to(root).as_posix()}\0{code}\0".encode())
    return digest.hexdigest()[:16]


def _deciding_files(root: Path) -> Iterator[Path]:
    for name in DECIDING:
        place = root.joinpath(*name.split("."))
        yield from sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def without_comments(source: str) -> str:
    """Return source code without comments, docstrings, blank lines, and blanks at the ends of lines."""
    code = _LEXEME.sub(_unless_comment, source)
    return "\n".join(filter(None, map(str.rstrip, code.splitlines())))


def _unless_comment(found: re.Match[str]) -> str:
    """Return a string as it is; nothing for a comment, and for a docstring, which has its lines to itself."""
    text, source = found[0], found.string
    if text.startswith("#"):
        return ""
    start = source.rfind("\n", 0, found.start()) + 1
    is_alone = not source[start : found.start()].strip(" r") and source[found.end() : found.end() + 1] in ("\n", "")
    return "" if is_alone and text.startswith('"""') else text


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


@cache
def fingerprint() -> Fingerprint:
    """Return this process's fingerprint; computed once, in about 20 ms."""
    return Fingerprint(
        lockstep=VERSION,
        code=code_digest(),
        numpy=np.__version__,
        blas=blas_name(),
        kernel=blas_kernel(),
        threads=blas_threads(),
        features=cpu_features(),
        canary=canary_digest(),
    )

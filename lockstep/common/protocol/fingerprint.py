"""What makes two machines compute the same bits, and how to tell (rules R4 and R6)."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.protocol.canary import canary, canary_digest, check_canary, installed_canary
from lockstep.common.runtime.blas import blas_kernel, blas_name, blas_threads
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import Numerics, feature_table, own_numerics
from lockstep.common.runtime.portable import demand_held
from lockstep.common.runtime.version import VERSION

#: Packages and modules whose code decides the bits of a result: from a sample to the sums, and from these to weights.
DECIDING = (
    "lockstep.common.aggregation",
    "lockstep.common.autograd",
    "lockstep.common.data",
    "lockstep.common.job",
    "lockstep.common.model",
    "lockstep.common.nn",
    "lockstep.common.optim",
    "lockstep.common.random",
    "lockstep.common.runtime.blas",
    "lockstep.ps.run.early_stopping",
    "lockstep.ps.run.plan",
    "lockstep.ps.shard",
    "lockstep.worker.batches",
    "lockstep.worker.compute",
    "lockstep.worker.gradient_sink",
    "lockstep.worker.local_steps",
    "lockstep.worker.node_sums",
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


#: Fields of a fingerprint that may differ.
NOT_DECIDING = ("python", "libc")


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker presents when it joins; equal ones compute the same bits from the same micro-batch."""

    lockstep: str
    #: SHA-256 of the source of `DECIDING` without comments, first 16 hex digits.
    code: str
    numpy: str
    #: What the process was started with, and was found to have.
    mode: Numerics = "native"
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
    #: Who computes gradients if that is not our autograd: its version, and what it uses of the processor.
    engine: str = ""
    #: SHA-256 of what it computed of the model, first 16 hex digits.
    evidence: str = ""
    #: The versions of Python and of the C library, as far as known. They are for people who compare two receipts: what
    #: they change of the bits, the canary shows.
    python: str = ""
    libc: str = ""

    def differences(self, other: "Fingerprint") -> list[tuple[str, str | int, str | int]]:
        """Return the name, our value and the other's, of each field that differs and decides bits."""
        names = [name for name in self.__struct_fields__ if name not in NOT_DECIDING]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


def code_digest(root: Path = Path(__file__).parents[3]) -> str:
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


@cache
@computing()
def fingerprint() -> Fingerprint:
    """Return this process's fingerprint; computed once, in about 20 ms.

    With portable numerics it is the same on all machines of equal versions: the kernel, the features and the canary
    are looked at first, and a `NumericsError` says that one of them is not the known one.
    """
    mode = own_numerics()
    if mode == "portable":
        demand_held()
    parts = canary()
    if mode == "portable":
        check_canary(parts, installed_canary())
    return Fingerprint(
        lockstep=VERSION,
        code=code_digest(),
        mode=mode,
        numpy=np.__version__,
        blas=blas_name(),
        kernel=blas_kernel(),
        threads=blas_threads(),
        features=" ".join(feature_table()[0]),
        canary=canary_digest(parts),
        python=platform.python_version(),
        libc=_c_library(),
    )


def _c_library() -> str:
    """Return name and version of the C library, empty if it does not report them."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""

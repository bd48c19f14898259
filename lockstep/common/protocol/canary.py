"""A few milliseconds of all arithmetic that decides bits, and the digests that portable numerics are known to have.

The digests are by the versions of NumPy and its OpenBLAS, since another version may compute other bits with the same
kernel. They depend on these alone, and on the processor and the C library: no code of ours is called but the generator,
so that a change of ours never looks like another machine. `scripts/golden --record` writes those of the versions that
are installed.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from lockstep.common.errors import NumericsError
from lockstep.common.random import Purpose, generator
from lockstep.common.runtime.blas import blas_name

Array = NDArray[np.generic]

#: Rows, inner size and columns of products: dense layers, blocks of convolutions, and the gradients of their kernels,
#: whose inner size is large: OpenBLAS cuts that into parts.
PRODUCTS = (
    (16, 784, 10),
    (16, 784, 128),
    (32, 400, 120),
    (7, 33, 5),
    (150, 25, 6),
    (6, 25, 1152),
    (32, 288, 98),
    (32, 96, 192),
    (6, 6272, 25),
    (16, 1568, 150),
)

#: Elements of arrays for functions of single numbers: a multiple of no vector's width.
VALUES = 4099

#: Where the known digests are.
KNOWN = Path(__file__).with_name("canaries.json")


class KnownCanary(msgspec.Struct, frozen=True, kw_only=True):
    """What portable numerics compute with one version of NumPy and the OpenBLAS in its wheel."""

    numpy: str
    blas: str
    parts: dict[str, str]


class KnownCanaries(msgspec.Struct, frozen=True, kw_only=True):
    """All of them, and which version of NumPy the scripts and the image install."""

    pinned_numpy: str
    known: list[KnownCanary]


def canary() -> dict[str, str]:
    """Return a digest for each part of the arithmetic; one differs if the bits of training would."""
    return {name: hashlib.sha256(b"".join(part())).hexdigest()[:16] for name, part in PARTS.items()}


def canary_digest(parts: Mapping[str, str]) -> str:
    """Return one digest of all parts."""
    return hashlib.sha256(" ".join(f"{name}={parts[name]}" for name in sorted(parts)).encode()).hexdigest()[:16]


def _drawn(*shape: int, at: int = 0) -> NDArray[np.float32]:
    # In float64, as all that is drawn: the tails of float32 are by the C library's log1pf, which glibc changed in 2.41.
    return generator(0, Purpose.CANARY, at=at).standard_normal(shape).astype(np.float32)


def _random() -> Iterator[bytes]:
    rng = generator(7, Purpose.CANARY, at=1, micro_batch=2, layer=3)
    yield rng.random(VALUES, dtype=np.float32).tobytes()
    yield rng.permutation(VALUES).tobytes()
    yield rng.integers(-2, 3, VALUES).tobytes()
    # Its tails are by the C library's functions, which the others never call.
    yield _drawn(16 * VALUES).tobytes()


def _products() -> Iterator[bytes]:
    for at, (rows, inner, columns) in enumerate(PRODUCTS):
        left, right = _uniform(rows, inner, at=at), _uniform(columns, inner, at=at)
        product = left @ right.T
        yield product.tobytes()
        yield (left @ np.ascontiguousarray(right.T)).tobytes()
        yield (product.T @ left).tobytes()
        # Part of a wider array, as the columns of a block are.
        yield (left[:, : inner // 2] @ right[:, : inner // 2].T).tobytes()
    yield (_uniform(4, 8, 64, 24) @ _uniform(4, 8, 24, 64)).tobytes()
    yield (_uniform(64, 64).astype(np.float64) @ _uniform(64, 8).astype(np.float64)).tobytes()


def _uniform(*shape: int, at: int = 0) -> NDArray[np.float32]:
    return generator(1, Purpose.CANARY, at=at, layer=len(shape)).random(shape, dtype=np.float32) - np.float32(0.5)


def _erf() -> Iterator[bytes]:
    # As GELU has it: the C library's function, and a series that LAPACK fits to it.
    places = np.linspace(-1.0, 1.0, 33)
    values = [math.erf(place * 3.0) for place in places.tolist()]
    yield np.array(values).tobytes()
    yield chebyshev.chebval(_drawn(VALUES) * np.float32(0.2), chebyshev.chebfit(places, values, 15)).tobytes()


def _of(*functions: Callable[[Array], Array]) -> Callable[[], Iterator[bytes]]:
    """Return what applies functions of single numbers, of both widths, to numbers from the smallest to large ones."""

    def values() -> Iterator[bytes]:
        scales = np.repeat(np.array([1e-30, 1e-3, 1, 6, 18], np.float32), -(-VALUES // 5))[:VALUES]
        single = np.abs(_drawn(VALUES)) * scales + np.float32(1e-35)
        for function in functions:
            yield function(single).tobytes()
            yield function(-single if function in SIGNED else single.astype(np.float64)).tobytes()

    return values


#: Functions that are applied to negative numbers too.
SIGNED = (np.exp, np.tanh)


def _log1p(x: Array) -> Array:
    # As `lockstep.common.autograd.primitives.activation` has it.
    return np.log1p(x, dtype=np.float64).astype(x.dtype)


def _sums() -> Iterator[bytes]:
    matrix = _drawn(67, 515)
    yield matrix.sum(axis=0).tobytes() + matrix.sum(axis=1).tobytes() + matrix.sum().tobytes()
    yield matrix.sum(dtype=np.float64).tobytes() + np.mean(matrix, axis=1).tobytes() + np.var(matrix, axis=0).tobytes()
    # Longer than NumPy's buffer of 8,192: it was cut there until 2.2, as the gradient of a convolution's bias.
    long, total = _uniform(6, 12544), np.empty(6, np.float32)
    yield np.add.reduce(long, axis=1, out=total).tobytes() + np.add.reduce(long.T, axis=0).tobytes()
    yield long.sum().tobytes() + np.add.reduce(long[:, ::2], axis=1).tobytes()
    yield np.add.reduce(matrix.T, axis=0).tobytes() + np.square(matrix).sum(axis=(0, 1)).tobytes()


def _quotients() -> Iterator[bytes]:
    left, right = _drawn(VALUES), np.abs(_drawn(VALUES, at=1)) + np.float32(0.1)
    yield (left / right).tobytes() + (left * right + left).tobytes() + (right**3).tobytes() + (right**0.75).tobytes()
    yield (left.astype(np.float64) / right).astype(np.float32).tobytes()


#: The arithmetic that decides bits, by the names that errors use.
PARTS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "Philox": _random,
    "products": _products,
    "exp": _of(np.exp),
    "log": _of(np.log, _log1p),
    "tanh": _of(np.tanh),
    "erf": _erf,
    "sqrt": _of(np.sqrt),
    "sums": _sums,
    "quotients and powers": _quotients,
}


def known_canaries(path: Path = KNOWN) -> KnownCanaries:
    """Return the digests that are known."""
    return msgspec.json.decode(path.read_bytes(), type=KnownCanaries)


def known_canary(numpy: str, blas: str, path: Path = KNOWN) -> KnownCanary | None:
    """Return the digests of one pair of versions, None if nobody has recorded them."""
    return next((each for each in known_canaries(path).known if (each.numpy, each.blas) == (numpy, blas)), None)


def check_canary(parts: Mapping[str, str], known: KnownCanary | None) -> None:
    """Raise `NumericsError` if portable numerics compute other bits here than elsewhere; nothing is known of None."""
    odd = [] if known is None else [name for name in PARTS if parts.get(name) != known.parts.get(name)]
    if known is not None and odd:
        raise NumericsError(
            f"portable numerics compute other bits here than elsewhere in {', '.join(odd)}: digest {parts[odd[0]]!r}, "
            f"expected {known.parts.get(odd[0])!r} of NumPy {known.numpy} with {known.blas}; nobody has tried this "
            f"processor or C library: install NumPy {known_canaries().pinned_numpy}, use another machine, or numerics "
            "= 'native'"
        )


def version_note(numpy: str, blas: str) -> str:
    """Return what somebody has to know who compares portable bits of these versions with others; empty if nothing."""
    pinned = known_canaries().pinned_numpy
    recorded = "" if known_canary(numpy, blas) else "; nobody has recorded them (scripts/golden --record)"
    if numpy == pinned and not recorded:
        return ""
    return (
        f"this run uses NumPy {numpy} with {blas}, whose bits may differ from those of NumPy {pinned}, "
        f"which the scripts install{recorded}"
    )


def installed_canary() -> KnownCanary | None:
    """Return the digests of the versions that are installed here, None if nobody has recorded them."""
    return known_canary(np.__version__, blas_name())

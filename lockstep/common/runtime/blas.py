"""The OpenBLAS that NumPy carries: its threads, and the kernel that it chose for this processor."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LoadedBlas:
    """The OpenBLAS inside NumPy's wheel, addressed by its exported functions."""

    library: ctypes.CDLL
    #: What the build added to each name, such as `scipy_` and `64_`.
    prefix: str
    suffix: str

    def function(self, name: str) -> Callable[..., object] | None:
        """Return an exported function by its plain OpenBLAS name, None if it is not exported."""
        return getattr(self.library, f"{self.prefix}openblas_{name}{self.suffix}", None)


@cache
def loaded_blas() -> LoadedBlas | None:
    """Find the OpenBLAS that NumPy's wheel carries; None for another BLAS (Accelerate, MKL, a distribution's)."""
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(path))
            for prefix, suffix in (("scipy_", "64_"), ("", "64_"), ("scipy_", ""), ("", "")):
                blas = LoadedBlas(library, prefix, suffix)
                if blas.function("set_num_threads") is not None:
                    return blas
    return None


def limit_blas_threads() -> None:
    """Set the loaded BLAS to one thread, for a process that imported NumPy before Lockstep (a notebook)."""
    blas = loaded_blas()
    setter = blas.function("set_num_threads") if blas else None
    if setter is not None:
        setter(1)


def blas_threads() -> int:
    """Return the number of threads of the loaded BLAS, 0 if it does not report them."""
    blas = loaded_blas()
    getter = blas.function("get_num_threads") if blas else None
    threads = getter() if getter is not None else 0
    return threads if isinstance(threads, int) else 0


@cache
def blas_kernel() -> str:
    """Return the kernel that OpenBLAS chose for this processor, such as `SkylakeX`."""
    blas = loaded_blas()
    getter = blas.function("get_corename") if blas else None
    if getter is None:
        return "unknown"
    getter.restype = ctypes.c_char_p  # type: ignore[attr-defined]  # a ctypes function pointer, typed as a callable
    name = getter()
    return name.decode() if isinstance(name, bytes) else "unknown"

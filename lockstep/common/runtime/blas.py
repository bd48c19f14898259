"""The OpenBLAS that NumPy carries: its threads, and the kernel that it chose for this processor."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

#: Selects a kernel of OpenBLAS; only a user sets it.
CORETYPE = "OPENBLAS_CORETYPE"

#: The forms that builds give the name of a function of OpenBLAS.
_SPELLINGS = ("scipy_openblas_{}64_", "openblas_{}64_", "scipy_openblas_{}", "openblas_{}")


@cache
def blas_function(name: str) -> Callable[..., object] | None:
    """Return a function of the OpenBLAS that NumPy's wheel carries, by its plain name; None if it is not exported.

    Another BLAS (Accelerate, MKL, a distribution's) has none of them.
    """
    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            library = ctypes.CDLL(str(path))
            for spelling in _SPELLINGS:
                found: Callable[..., object] | None = getattr(library, spelling.format(name), None)
                if found is not None:
                    return found
    return None


def can_limit_blas_threads() -> bool:
    """Return whether the loaded BLAS has a switch for its number of threads."""
    return blas_function("set_num_threads") is not None and blas_function("get_num_threads") is not None


def set_blas_threads(threads: int) -> None:
    """Set the number of threads of the loaded BLAS, if that has a switch for it."""
    setter = blas_function("set_num_threads")
    if setter is not None:
        setter(threads)


def blas_name() -> str:
    """Return name and version of the BLAS that NumPy was built with."""
    config = np.show_config(mode="dicts")
    blas = config["Build Dependencies"].get("blas", {}) if config else {}
    return f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip()


def blas_threads() -> int:
    """Return the number of threads of the loaded BLAS, 0 if it does not report them."""
    getter = blas_function("get_num_threads")
    threads = getter() if getter is not None else 0
    return threads if isinstance(threads, int) else 0


@cache
def blas_kernel() -> str:
    """Return the kernel that OpenBLAS chose for this processor, such as `SkylakeX`."""
    getter = blas_function("get_corename")
    if getter is None:
        return "unknown"
    getter.restype = ctypes.c_char_p  # type: ignore[attr-defined]  # a ctypes function pointer, typed as a callable
    name = getter()
    return name.decode() if isinstance(name, bytes) else "unknown"

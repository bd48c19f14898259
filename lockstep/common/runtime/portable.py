"""Whether this machine can have portable numerics, and whether this process does: looked at, never assumed.

What a process is held to is in `numerics.py`. Whether it then computes the known bits is the canary's to say.
"""

import platform

import numpy as np

from lockstep.common.errors import NumericsError
from lockstep.common.runtime.blas import blas_function, blas_kernel, blas_name, blas_threads
from lockstep.common.runtime.numerics import HASWELL, KERNEL, feature_table, has_needed

#: Releases of OpenBLAS whose products for Haswell go to code for AVX-512 where the processor has it, whatever
#: OPENBLAS_CORETYPE says: (64, 784) by (784, 512) crashes, and smaller ones have other bits. 0.3.29 to 0.3.33 do not.
FAULTY_OPENBLAS = ("0.3.34",)

ADVICE = "use another machine, or numerics = 'native'"


def _baseline() -> list[str]:
    config = np.show_config(mode="dicts")
    return list(config["SIMD Extensions"].get("baseline", [])) if config else []


def demand_portable_machine(architecture: str = platform.machine()) -> None:
    """Raise `NumericsError` if no process on this machine can have portable numerics."""
    if architecture not in ("x86_64", "AMD64"):
        raise NumericsError(
            f"numerics = 'portable' on a processor of the kind {architecture!r}: expected x86-64 with AVX2 and FMA; "
            f"{ADVICE}"
        )
    if blas_function("set_num_threads") is None:
        raise NumericsError(
            f"numerics = 'portable' with the BLAS {blas_name()!r}: expected the OpenBLAS of NumPy's own wheel; install "
            "that (pip install --force-reinstall numpy), or use numerics = 'native'"
        )
    found, _ = feature_table()
    check_features(found, _baseline())
    check_openblas(blas_name(), found)


def check_features(found: list[str], baseline: list[str]) -> None:
    """Raise `NumericsError` if the processor lacks what is needed, or NumPy uses what cannot be switched off."""
    have = {*found, *baseline}
    if not has_needed(have):
        raise NumericsError(
            f"numerics = 'portable' on a processor without AVX2 and FMA (NumPy finds {_names(have)}): expected one "
            f"of Intel since 2013 or AMD since 2015; {ADVICE}"
        )
    if newer := set(baseline) - HASWELL:
        raise NumericsError(
            f"numerics = 'portable' with a NumPy that was built for {_names(newer)}: expected its wheel from PyPI "
            "(pip install --force-reinstall numpy), or numerics = 'native'"
        )


def check_openblas(name: str, found: list[str]) -> None:
    """Raise `NumericsError` if this OpenBLAS cannot be held to one kernel on a processor with these features."""
    newer = set(found) - HASWELL
    if newer and any(f" {release}" in name for release in FAULTY_OPENBLAS):
        raise NumericsError(
            f"numerics = 'portable' with {name} on a processor with {_names(newer)}, where its products for Haswell "
            "crash or have other bits: expected another release; install the NumPy of requirements/watch.txt, or use "
            "numerics = 'native'"
        )


def demand_held() -> None:
    """Raise `NumericsError` if this process, which was started with portable numerics, does not have them.

    It has to be asked before anything is computed: a kernel that was selected for a processor without AVX2 crashes.
    """
    demand_portable_machine()
    check_held(blas_kernel(), blas_threads(), feature_table()[0])


def check_held(kernel: str, threads: int, found: list[str]) -> None:
    """Raise `NumericsError` if a kernel, a number of BLAS threads, or NumPy's features are not the portable ones."""
    newer = sorted(set(found) - HASWELL)
    if kernel == KERNEL and threads == 1 and not newer:
        return
    using = f" and NumPy uses {', '.join(newer)}" if newer else ""
    raise NumericsError(
        f"this process should have portable numerics, but its BLAS runs kernel {kernel!r} on {threads} threads{using}: "
        f"expected {KERNEL!r}, 1 thread, and nothing newer; NumPy was loaded before Lockstep, or another BLAS, or "
        "OPENBLAS_CORETYPE or NPY_DISABLE_CPU_FEATURES is set: remove them, and start it again"
    )


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""Native or portable numerics: which of them this process has, set before NumPy is first imported; imports none itself.

Portable numerics hold OpenBLAS to its kernels for Haswell, and NumPy to what that processor has, so that every x86-64
processor with AVX2 and FMA computes the same bits. Both libraries read what holds them from the environment when they
are loaded, and never again: so it is given to a process when it is started. `portable.py` looks whether it worked.
"""

import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal

from lockstep.common.runtime.environment import own_environment, replace_variables

Numerics = Literal["native", "portable"]

#: Features that NumPy has found, and others that it knows.
FeatureTable = tuple[list[str], list[str]]

#: Which numerics a process is started with: "portable"; native if it is not set.
NUMERICS = "LOCKSTEP_NUMERICS"

#: Selects the kernel of OpenBLAS, and what portable numerics select.
CORETYPE, KERNEL = "OPENBLAS_CORETYPE", "Haswell"

#: Switches off features that NumPy would dispatch by; with the other one set as well NumPy refuses to be imported.
DISABLED, ENABLED = "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"

#: What a Haswell processor has, by NumPy's names (the last two stand for all before them, since NumPy 2.4). This list
#: of things from before 2014 is complete: features that are not in it, and all that are still to come, are switched
#: off by the names in NumPy's own table.
HASWELL = frozenset(
    {"SSE", "SSE2", "SSE3", "SSSE3", "SSE41", "POPCNT", "SSE42", "AVX", "F16C", "FMA3", "AVX2", "X86_V2", "X86_V3"}
)

#: What of it NumPy has to find, by its names since 2.4, or before.
NEEDED = (frozenset({"X86_V3"}), frozenset({"AVX2", "FMA3"}))

#: Prints that table: first what this processor has, then what it has not.
_ASK = """
from numpy import show_config
table = show_config(mode="dicts")["SIMD Extensions"]
print(*table.get("found", ()))
print(*table.get("not found", ()))
"""


def own_numerics() -> Numerics:
    """Return the numerics that this process was started with."""
    return "portable" if own_environment().get(NUMERICS) == "portable" else "native"


def hold_numerics() -> None:
    """Hold libraries that are loaded from now on to the numerics that this process was started with.

    Whoever started it may have set all that this takes; if only `LOCKSTEP_NUMERICS` is set, NumPy is asked first, in a
    process that takes a tenth of a second. A processor that lacks what is needed is held to nothing: it would crash
    while NumPy is loaded, where `portable.py` can report it.
    """
    held = variables_that_hold(own_environment(), feature_table)
    if held:
        replace_variables((ENABLED,), held)


def variables_that_hold(environ: Mapping[str, str], ask: Callable[[], FeatureTable]) -> dict[str, str]:
    """Return what a process with this environment lacks to have its numerics; `ask` returns NumPy's table.

    Empty if it lacks nothing, and for a processor that cannot have them.
    """
    is_held = environ.get(CORETYPE) == KERNEL and bool(environ.get(DISABLED))
    if environ.get(NUMERICS) != "portable" or is_held or not has_needed((table := ask())[0]):
        return {}
    return _held(table)


def has_needed(found: Collection[str]) -> bool:
    """Return whether a processor with these features can have portable numerics."""
    return any(needed <= set(found) for needed in NEEDED)


def environment_with(numerics: Numerics, environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a process has these numerics from its beginning."""
    if numerics == "portable":
        return {**_without((ENABLED,), environ), **_held(feature_table())}
    # What holds a portable process is no wish of the user's, while a kernel may be that in a native one.
    return _without((NUMERICS, CORETYPE, DISABLED) if own_numerics() == "portable" else (), environ)


def _without(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def _held(table: FeatureTable) -> dict[str, str]:
    disabled = " ".join(name for names in table for name in names if name not in HASWELL)
    return {NUMERICS: "portable", CORETYPE: KERNEL, DISABLED: disabled}


def feature_table() -> FeatureTable:
    """Return the processor features that this NumPy has code of its own for: those found here, and the others.

    Asks a process if NumPy is not loaded here: it must not be, before it is held. Empty if there is no NumPy.
    """
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        table = numpy.show_config(mode="dicts")["SIMD Extensions"]
        return list(table.get("found", ())), list(table.get("not found", ()))
    environ = _without((DISABLED, ENABLED), own_environment())
    done = subprocess.run([sys.executable, "-P", "-c", _ASK], env=environ, capture_output=True, text=True, check=False)
    found, _, others = done.stdout.partition("\n")
    return found.split(), others.split()

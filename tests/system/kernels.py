"""Kernels of OpenBLAS: one that this processor has besides the one that is chosen by default."""

import subprocess
import sys
from functools import cache

from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.runtime.environment import child_environment

#: Kernels for x86-64, newest first. That a processor has what one needs does not mean that it works: the one for
#: Prescott of OpenBLAS 0.3.34 crashes.
KERNELS = ("SkylakeX", "Haswell", "Zen", "Sandybridge", "Nehalem", "Core2", "Prescott")

#: Prints which kernel is used, and what comes of the canary with it.
ASK = "from lockstep.common.protocol.fingerprint import fingerprint; print(fingerprint().kernel, fingerprint().canary)"


@cache
def other_kernel() -> str | None:
    """Return a kernel with which a server computes here, and computes other bits than we do; None if there is none."""
    return next((kernel for kernel in KERNELS if _is_another(kernel)), None)


@cache
def crashing_kernel() -> str | None:
    """Return a kernel with which a process crashes here when it computes, None if there is none."""
    return next((kernel for kernel in KERNELS if _canary(kernel).returncode < 0), None)


def _is_another(kernel: str) -> bool:
    asked = _canary(kernel)
    # If the processor lacks what a kernel needs, OpenBLAS takes another one.
    found = asked.stdout.split()
    return asked.returncode == 0 and found[:1] == [kernel] and found[1] != fingerprint().canary


@cache
def _canary(kernel: str) -> "subprocess.CompletedProcess[str]":
    environment = {**child_environment(), "OPENBLAS_CORETYPE": kernel}
    return subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=False)

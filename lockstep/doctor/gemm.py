"""How fast this process multiplies matrices; as a program, one line of JSON, for a comparison under other settings."""

import sys
from collections.abc import Mapping
from subprocess import run

import msgspec
import numpy as np

from common.errors import RunError
from common.runtime.blas import blas_kernel
from common.runtime.clock import Clock, SystemClock

#: Rows and columns: large enough for a kernel's full speed, and for the second-level cache.
SIZE = 384

#: Seconds of measuring.
DURATION_S = 0.15


class Gemm(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured with float32 and one thread."""

    kernel: str
    gflops: float


def measured(clock: Clock) -> Gemm:
    """Multiply for a moment; the fastest product counts."""
    left, right = np.full((SIZE, SIZE), 0.5, np.float32), np.full((SIZE, SIZE), 0.25, np.float32)
    out, best_s, until = np.empty_like(left), float("inf"), clock.now() + DURATION_S
    while clock.now() < until:
        began = clock.now()
        np.matmul(left, right, out=out)
        best_s = min(best_s, clock.now() - began)
    return Gemm(kernel=blas_kernel(), gflops=2e-9 * SIZE**3 / best_s)


def measured_under(environment: Mapping[str, str]) -> Gemm:
    """Measure in a process of its own: a BLAS chooses its kernel when it is loaded."""
    done = run(
        [sys.executable, "-P", "-m", "lockstep.doctor.gemm"], env=dict(environment), capture_output=True, check=False
    )
    try:
        return msgspec.json.decode(done.stdout, type=Gemm)
    except msgspec.MsgspecError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RunError(f"matrices could not be multiplied in another process: {last or 'it said nothing'}") from None


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measured(SystemClock())) + b"\n")

"""Examine this machine: what it offers to a run, what would hinder it, and how fast it multiplies matrices.

As a program it prints that speed as one line of JSON, so that it can be measured under another environment.
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from subprocess import run

import msgspec
import numpy as np

from lockstep.checking.checkup.target import Finding, findings_lines, found
from lockstep.common.errors import AddressError, RunError
from lockstep.common.numerics.choice import Kernels, kernels_here
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.runtime.blas import CORETYPE, blas_kernel
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.environment import child_environment, cores
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.common.transport.zeromq.ports import serve

#: Docker's default for /dev/shm, of which a net with a million weights and two workers needs a third.
LITTLE_SHARED_BYTES = 64 * 2**20

#: Rows and columns: large enough for a kernel's full speed, and for the second-level cache.
SIZE = 384

#: Seconds of measuring.
DURATION_S = 0.15


class Gemm(msgspec.Struct, frozen=True, kw_only=True):
    """The measured speed of float32 matrix products with one thread."""

    kernel: str
    gflops: float


def measured(clock: Clock) -> Gemm:
    """Multiply for a moment, and return the speed of the fastest product."""
    left, right = np.full((SIZE, SIZE), 0.5, np.float32), np.full((SIZE, SIZE), 0.25, np.float32)
    out, best_s, until = np.empty_like(left), float("inf"), clock.now() + DURATION_S
    while clock.now() < until:
        start = clock.now()
        np.matmul(left, right, out=out)
        best_s = min(best_s, clock.now() - start)
    return Gemm(kernel=blas_kernel(), gflops=2e-9 * SIZE**3 / best_s)


def measured_under(environment: Mapping[str, str]) -> Gemm:
    """Measure in another process, because a BLAS selects its kernel when it is loaded."""
    command = [sys.executable, "-P", "-m", "lockstep.checking.checkup.machine"]
    done = run(command, env=dict(environment), capture_output=True, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=Gemm)
    except msgspec.MsgspecError as error:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "it printed nothing"
        raise RunError(f"matrices could not be multiplied in another process: {reason}") from error


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The folder in which a run's processes share memory."""

    folder: str
    total_bytes: int
    free_bytes: int


class MachineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a machine, without a verdict."""

    system: str
    python: str
    cores: int
    fingerprint: Fingerprint
    #: The kernels of portable numerics.
    kernels: Kernels
    gemm: Gemm
    #: The value of `OPENBLAS_CORETYPE`, empty if it is not set, and the speed without it.
    coretype: str
    gemm_without: Gemm | None
    shared: SharedMemory
    #: Address -> why a server cannot listen there; empty if it can.
    ports: dict[str, str]


def examine_machine() -> tuple[MachineInfo, list[Finding]]:
    """Return the facts about this machine, and the findings.

    Takes half a second, or three times as long if a kernel was selected by hand.
    """
    facts = facts_of(child_environment())
    return facts, machine_findings(facts)


def facts_of(environment: Mapping[str, str]) -> MachineInfo:
    coretype = environment.get(CORETYPE, "")
    root = shared_root()
    usage = shutil.disk_usage(root)
    without = {name: value for name, value in environment.items() if name != CORETYPE}
    return MachineInfo(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cores=cores(),
        fingerprint=fingerprint(),
        kernels=kernels_here(),
        gemm=measured_under(environment) if coretype else measured(SystemClock()),
        coretype=coretype,
        gemm_without=measured_under(without) if coretype else None,
        shared=SharedMemory(folder=str(root), total_bytes=usage.total, free_bytes=usage.free),
        ports=_ports(),
    )


def _ports() -> dict[str, str]:
    """Try to listen as a server does, on each transport."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="lockstep-doctor-") as folder:
        for name, address in (("tcp://127.0.0.1", "tcp://127.0.0.1:0"), ("ipc", f"ipc://{folder}/server.sock")):
            try:
                serve(address).close()
                found[name] = ""
            except (AddressError, OSError) as error:
                found[name] = str(error)
    return found


def machine_findings(facts: MachineInfo) -> list[Finding]:
    """Return what would hinder a run."""
    findings, shown, own, shared = [], facts.fingerprint, facts.gemm_without, facts.shared
    if shown.threads > 1:
        findings.append(found("threads", threads=shown.threads, blas=shown.blas))
    if own is not None and own.kernel != facts.gemm.kernel:
        findings.append(found("kernel", variable=CORETYPE, coretype=facts.coretype, chosen=facts.gemm, own=own))
    if shared.free_bytes < LITTLE_SHARED_BYTES:
        free, total = _mebibytes(shared.free_bytes), _mebibytes(shared.total_bytes)
        findings.append(found("shared-memory", folder=shared.folder, free=free, total=total))
    return findings + [found("unusable-port", name=name, why=why) for name, why in facts.ports.items() if why]


def machine_lines(facts: MachineInfo, findings: list[Finding]) -> list[str]:
    """Return the facts, one per line, and the findings."""
    shown = facts.fingerprint
    chosen = f", by {CORETYPE}={facts.coretype}" if facts.coretype else ""
    free = _mebibytes(facts.shared.free_bytes)
    memory = "" if facts.shared.folder == "/dev/shm" else ", which is on a disk and slower"
    return [
        f"system         {facts.system}, Python {facts.python}",
        f"cores          {facts.cores}",
        f"BLAS           {shown.blas}, kernel {facts.gemm.kernel}{chosen}",
        f"BLAS threads   {shown.threads or 'unknown'}",
        f"speed          {facts.gemm.gflops:.0f} GFLOP/s, float32 matrix product, one thread",
        f"shared memory  {facts.shared.folder}: {free} of {_mebibytes(facts.shared.total_bytes)} free{memory}",
        *(f"{'listens at':<14} {name}: {why or 'yes'}" for name, why in facts.ports.items()),
        f"versions       lockstep {shown.lockstep} (code {shown.code}), NumPy {shown.numpy}",
        f"kernels        {_kernels_line(facts.kernels)}",
        f"native         {shown.canary}: machines with the same value give the same bits with native numerics",
        f"processor      {shown.features}",
        *(findings_lines(findings) or ["", "no findings: nothing would hinder a run"]),
    ]


def _kernels_line(kernels: Kernels) -> str:
    """Return what jobs with portable numerics compute with here."""
    if kernels.obstacle:
        return f"none, so jobs have native numerics: {kernels.obstacle}"
    return f"{kernels.target}, self-test {kernels.digest}: portable numerics, the same bits on every machine"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measured(SystemClock())) + b"\n")

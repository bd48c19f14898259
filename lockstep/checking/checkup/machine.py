"""Examine this machine: what it offers to a run, what would hinder it, and how fast it multiplies matrices.

As a program it prints that speed as one line of JSON, or with `fingerprint` the numerics of its process, so that both
can be had under another environment.
"""

import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from subprocess import run
from typing import TypeVar

import msgspec
import numpy as np

from lockstep.checking.checkup.finding import Finding, findings_lines, found
from lockstep.common.errors import AddressError, NumericsError, RunError
from lockstep.common.protocol.canary import version_note
from lockstep.common.protocol.fingerprint import Fingerprint, fingerprint
from lockstep.common.runtime.blas import blas_kernel
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.runtime.environment import child_environment, cores
from lockstep.common.runtime.numerics import CORETYPE, environment_with
from lockstep.common.runtime.portable import demand_portable_machine
from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.common.transport.zeromq.ports import serve

T = TypeVar("T")

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
    measured_there = _printed_under(environment, Gemm)
    if isinstance(measured_there, Gemm):
        return measured_there
    raise RunError(f"matrices could not be multiplied in another process: {measured_there or 'it printed nothing'}")


def _printed_under(environment: Mapping[str, str], kind: type[T], *arguments: str) -> T | str:
    """Run this module in another process; return what it prints, or the last line of what went wrong."""
    command = [sys.executable, "-P", "-m", "lockstep.checking.checkup.machine", *arguments]
    done = run(command, env=dict(environment), capture_output=True, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=kind)
    except msgspec.MsgspecError:
        return done.stderr.decode(errors="replace").strip().rpartition("\n")[2]


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The folder in which a run's processes share memory."""

    folder: str
    total_bytes: int
    free_bytes: int


class PortableNumerics(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of this machine has that was started with portable numerics."""

    #: None if there is none.
    fingerprint: Fingerprint | None = None
    #: Why not.
    obstacle: str = ""


def portable_numerics(environment: Mapping[str, str]) -> PortableNumerics:
    """Take the fingerprint of a process with portable numerics."""
    try:
        demand_portable_machine()
    except NumericsError as error:
        return PortableNumerics(obstacle=str(error))
    portable = _printed_under(environment_with("portable", environment), PortableNumerics, "fingerprint")
    if isinstance(portable, PortableNumerics):
        return portable
    return PortableNumerics(obstacle=f"a process with portable numerics printed {portable or 'nothing'!r}")


class MachineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a machine, without a verdict."""

    system: str
    python: str
    cores: int
    fingerprint: Fingerprint
    portable: PortableNumerics
    gemm: Gemm
    #: The value of `OPENBLAS_CORETYPE`, empty if it is not set, and the speed without it.
    coretype: str
    gemm_without: Gemm | None
    shared: SharedMemory
    #: Address -> why a server cannot listen there; empty if it can.
    ports: dict[str, str]


class MachineReport(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a machine, and the findings."""

    facts: MachineInfo
    findings: list[Finding]


def examine_machine() -> MachineReport:
    """Examine this machine. Takes half a second, or three times as long if a kernel was selected by hand."""
    facts = facts_of(child_environment())
    return MachineReport(facts=facts, findings=machine_findings(facts))


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
        portable=portable_numerics(environment),
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


def machine_lines(machine: MachineReport) -> list[str]:
    """Return the facts, one per line, and the findings."""
    facts, shown = machine.facts, machine.facts.fingerprint
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
        f"native         {shown.canary}: machines with the same value give the same bits",
        f"portable       {_portable_line(facts.portable)}",
        f"processor      {shown.features}",
        *(findings_lines(machine.findings) or ["", "no findings: nothing would hinder a run"]),
    ]


def _portable_line(portable: PortableNumerics) -> str:
    """Return what a job with portable numerics would have here."""
    shown = portable.fingerprint
    if shown is None:
        return f"not here: {portable.obstacle}"
    note = version_note(shown.numpy, shown.blas)
    return f"{shown.canary}: {note or f'the bits of NumPy {shown.numpy} on x86-64 with AVX2'}"


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _answer(arguments: list[str]) -> Gemm | PortableNumerics:
    """Return what another process asks this one for."""
    if arguments != ["fingerprint"]:
        return measured(SystemClock())
    try:
        return PortableNumerics(fingerprint=fingerprint())
    except NumericsError as error:
        return PortableNumerics(obstacle=str(error))


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_answer(sys.argv[1:])) + b"\n")

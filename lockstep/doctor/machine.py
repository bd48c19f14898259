"""What this machine offers to a run, and what of it is in the way."""

import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.errors import AddressError
from common.protocol.numerics import Fingerprint, fingerprint
from common.runtime.clock import SystemClock
from common.runtime.environment import child_environment, cores
from common.transport.shared_memory.folder import shared_root
from common.transport.zeromq.ports import serve
from lockstep.doctor.finding import Finding
from lockstep.doctor.gemm import Gemm, measured, measured_under
from lockstep.doctor.report import findings_lines

#: The variable by which people choose another kernel of OpenBLAS than the processor's own.
CORETYPE = "OPENBLAS_CORETYPE"

#: Docker's default for /dev/shm: a net of a million weights with two workers needs a third of it.
LITTLE_SHARED_BYTES = 64 * 2**20


class SharedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The folder in which a run's processes share memory."""

    folder: str
    total_bytes: int
    free_bytes: int

    @property
    def is_memory(self) -> bool:
        return self.folder == "/dev/shm"


class MachineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at; nothing of it is judged."""

    system: str
    python: str
    cores: int
    fingerprint: Fingerprint
    gemm: Gemm
    #: What `OPENBLAS_CORETYPE` is set to, empty where it is not, and what was measured without it.
    coretype: str
    gemm_without: Gemm | None
    shared: SharedMemory
    #: Address -> why nobody could listen there, empty where it works.
    ports: dict[str, str]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that was examined."""

    facts: MachineInfo
    findings: list[Finding]


def examine_machine() -> Machine:
    """Look at this machine; half a second, or one and a half where a kernel was chosen by hand."""
    facts = facts_of(child_environment())
    return Machine(facts=facts, findings=machine_findings(facts))


def facts_of(environment: Mapping[str, str]) -> MachineInfo:
    """Return the facts under that environment, as far as they depend on it."""
    coretype = environment.get(CORETYPE, "")
    root = shared_root()
    usage = shutil.disk_usage(root)
    without = {name: value for name, value in environment.items() if name != CORETYPE}
    return MachineInfo(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cores=cores(),
        fingerprint=fingerprint(),
        gemm=measured_under(environment) if coretype else measured(SystemClock()),
        coretype=coretype,
        gemm_without=measured_under(without) if coretype else None,
        shared=SharedMemory(folder=str(root), total_bytes=usage.total, free_bytes=usage.free),
        ports=_ports(),
    )


def _ports() -> dict[str, str]:
    """Try to listen as a server does."""
    with tempfile.TemporaryDirectory(prefix="lockstep-doctor-") as folder:
        socket = Path(folder) / "server.sock"
        tried = {"tcp://127.0.0.1": "tcp://127.0.0.1:0", "ipc": f"ipc://{socket}"}
        return {name: _why_not(address) for name, address in tried.items()}


def _why_not(address: str) -> str:
    try:
        serve(address).close()
    except (AddressError, OSError) as error:
        return str(error)
    return ""


def machine_findings(facts: MachineInfo) -> list[Finding]:
    """Return what is in the way of a run."""
    return [*_threads(facts), *_coretype(facts), *_shared(facts.shared), *_unbindable(facts.ports)]


def _threads(facts: MachineInfo) -> list[Finding]:
    threads = facts.fingerprint.threads
    if threads <= 1:
        return []
    return [
        Finding(
            kind="threads",
            what=f"the BLAS uses {threads} threads",
            evidence=f"{facts.fingerprint.blas} says so after it was told to use one",
            cause="it was loaded before Lockstep and cannot be changed: other threads give other bits",
            change="set OPENBLAS_NUM_THREADS=1 and OMP_NUM_THREADS=1 before Python starts",
        )
    ]


def _coretype(facts: MachineInfo) -> list[Finding]:
    chosen, own = facts.gemm, facts.gemm_without
    if own is None or own.kernel == chosen.kernel:
        return []
    return [
        Finding(
            kind="kernel",
            what=f"{CORETYPE}={facts.coretype} makes the BLAS use another kernel than this processor's",
            evidence=f"{chosen.gflops:.0f} GFLOP/s with {chosen.kernel}, {own.gflops:.0f} with {own.kernel}",
            cause="somebody set the variable, perhaps so that different machines give the same bits",
            change=f"unset {CORETYPE}, unless all machines of a run need this kernel",
        )
    ]


def _shared(shared: SharedMemory) -> list[Finding]:
    if shared.free_bytes >= LITTLE_SHARED_BYTES:
        return []
    return [
        Finding(
            kind="shared-memory",
            what="there is little shared memory",
            evidence=f"{shared.folder} has {_mebibytes(shared.free_bytes)} of {_mebibytes(shared.total_bytes)} left",
            cause="a container's default is 64 MiB; or other programs use it, or left files there",
            change="start the container with --shm-size=1g (shm_size in compose), or remove what is left; without "
            "enough, gradients and weights are sent over sockets",
        )
    ]


def _unbindable(ports: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            kind="port",
            what=f"no server can listen at {name}",
            evidence=why,
            cause="the system, a container or a sandbox forbids it",
            change="allow it, or train with the other transport (transport = ipc or tcp), or alone (workers = 0)",
        )
        for name, why in ports.items()
        if why
    ]


def machine_lines(machine: Machine) -> list[str]:
    """Return the facts, a line each, and the findings."""
    facts, shown = machine.facts, machine.facts.fingerprint
    chosen = f", by {CORETYPE}={facts.coretype}" if facts.coretype else ""
    free = _mebibytes(facts.shared.free_bytes)
    memory = "" if facts.shared.is_memory else ", which is a disk's and slower"
    return [
        f"system         {facts.system}, Python {facts.python}",
        f"cores          {facts.cores}",
        f"BLAS           {shown.blas}, kernel {facts.gemm.kernel}{chosen}",
        f"BLAS threads   {shown.threads or 'unknown'}",
        f"speed          {facts.gemm.gflops:.0f} GFLOP/s, float32 matrix product, one thread",
        f"shared memory  {facts.shared.folder}: {free} of {_mebibytes(facts.shared.total_bytes)} free{memory}",
        *(f"{'listens at':<14} {name}: {why or 'yes'}" for name, why in facts.ports.items()),
        f"versions       lockstep {shown.lockstep} (code {shown.code}), NumPy {shown.numpy}",
        f"numerics       {shown.canary}: machines with equal ones give equal bits",
        f"processor      {shown.features}",
        *(findings_lines(machine.findings) or ["", "no findings: nothing is in the way of a run"]),
    ]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"

"""The place of a process in a run that a launcher has started many times over. Pure: the environment is an argument.

Each launcher says in variables of its own how many processes there are and which of them this one is. Only
some of them give the address of rank 0; `MASTER_ADDR` and `MASTER_PORT` give it under any of them.
"""

import re
import zlib
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from lockstep.common.errors import UsageError
from lockstep.launch.endpoints import tcp_address

#: The port of rank 0 where neither the launcher nor `MASTER_PORT` says another.
PORT = 5555

#: Ports from which one is taken by the number of a Slurm job, since two jobs may share a node: below those that systems
#: give to outgoing connections, from 32768 on.
JOB_PORTS = range(20_000, 30_000)

#: The variables that most launchers read and set for one another.
HEAD_HOST, HEAD_PORT = "MASTER_ADDR", "MASTER_PORT"


class LauncherPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a run."""

    launcher: str
    rank: int
    #: Processes of the run, None if the launcher does not say.
    size: int | None
    #: The address of rank 0; the host may be empty if this is rank 0.
    host: str
    port: int
    #: Which of the processes on its host it is, and how many the launcher has started there.
    local_rank: int = 0
    local_size: int = 1

    @property
    def address(self) -> str:
        """The address of rank 0, as the other ranks dial it."""
        return tcp_address(self.host, self.port)

    @property
    def bind(self) -> str:
        """The address at which rank 0 listens: any of this machine, because its name may lead to loopback alone."""
        if self.host in ("localhost", "::1") or self.host.startswith("127."):
            return self.address  # no other machine is to reach it
        return tcp_address("::" if ":" in self.host else "0.0.0.0", self.port)


class Environment(msgspec.Struct, frozen=True):
    """The variables of a launcher that are not empty, read by their names."""

    launcher: str
    variables: Mapping[str, str]

    def text(self, *names: str) -> str:
        """Return the value of the first of these that has one, empty if none has."""
        return next((self.variables[name] for name in names if name in self.variables), "")

    def number(self, name: str, least: int, most: int = 2**31 - 1) -> int:
        """Return a number; `UsageError` if it is none, out of range, or missing."""
        text = self.text(name)
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        if not least <= number <= most:
            shown = repr(text) if text else "not set"
            raise UsageError(f"{self.launcher} has {name} = {shown}: expected a whole number from {least} to {most}")
        return number

    def among_neighbours(self, place: LauncherPlace, rank_name: str, size: int) -> LauncherPlace:
        """Return the place with what the launcher says of the processes on its host: alone there if it does not."""
        rank = self.number(rank_name, 0) if rank_name in self.variables else 0
        return replace(place, local_rank=rank, local_size=size) if rank < size else place

    def place(self, rank_name: str, size_name: str, host: str, port: int = PORT) -> LauncherPlace:
        """Return the place; `MASTER_ADDR` and `MASTER_PORT` come before `host` and `port`.

        `UsageError` if the rank is not below the size, or rank 0 cannot be found.
        """
        rank = self.number(rank_name, 0)
        size = self.number(size_name, 1) if size_name else None
        if size is not None and rank >= size:
            raise UsageError(f"{self.launcher} has {rank_name} = {rank} of {size_name} = {size}: expected a rank below")
        host = self.text(HEAD_HOST) or host
        if rank and not host:
            raise UsageError(
                f"{self.launcher} does not provide the address of rank 0, to which rank {rank} connects: expected "
                f"its host in {HEAD_HOST} (and its port in {HEAD_PORT}, or else {PORT}), set for all processes"
            )
        port = self.number(HEAD_PORT, 1, 65535) if HEAD_PORT in self.variables else port
        return LauncherPlace(launcher=self.launcher, rank=rank, size=size, host=host, port=port)


def _torchrun(found: Environment) -> LauncherPlace:
    """RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as `torchrun` and Kubeflow's PyTorchJob set them."""
    for name in (HEAD_HOST, HEAD_PORT):
        if name not in found.variables:
            raise UsageError(
                f"RANK = {found.text('RANK')!r} is set and {name} is not: expected all of RANK, WORLD_SIZE, "
                f"{HEAD_HOST} and {HEAD_PORT}, or none"
            )
    place = found.place("RANK", "WORLD_SIZE", "")
    # torchrun's own agent listens at that port, and its processes are given it.
    place = replace(place, port=place.port + (found.text("TORCHELASTIC_USE_AGENT_STORE") == "True"))
    size = found.number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in found.variables else 1
    return found.among_neighbours(place, "LOCAL_RANK", size)


def _open_mpi(found: Environment) -> LauncherPlace:
    """`mpirun` gives ranks and sizes; the host of rank 0 only if all are on one, or Slurm has given the nodes."""
    local_size = found.text("OMPI_COMM_WORLD_LOCAL_SIZE")
    is_one_host = local_size == found.text("OMPI_COMM_WORLD_SIZE")
    host = "127.0.0.1" if is_one_host else first_host(found.text("SLURM_JOB_NODELIST"))
    place = found.place("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", host, _job_port(found))
    size = found.number("OMPI_COMM_WORLD_LOCAL_SIZE", 1) if local_size else 1
    return found.among_neighbours(place, "OMPI_COMM_WORLD_LOCAL_RANK", size)


def _slurm(found: Environment) -> LauncherPlace:
    """`srun` gives ranks and sizes, and the nodes, on the first of which it puts rank 0."""
    if "SLURM_STEP_ID" not in found.variables:
        raise UsageError(
            f"SLURM_PROCID = {found.text('SLURM_PROCID')!r} is set and SLURM_STEP_ID is not, so that this is the batch "
            "script itself: expected `srun lockstep node` there, which starts one process per task"
        )
    hosts = found.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in found.variables else "SLURM_NTASKS"
    place = found.place("SLURM_PROCID", size, first_host(hosts), _job_port(found))
    node = found.number("SLURM_NODEID", 0) if "SLURM_NODEID" in found.variables else 0
    tasks = tasks_of(found.text("SLURM_STEP_TASKS_PER_NODE"), node)
    return found.among_neighbours(place, "SLURM_LOCALID", tasks)


def _job_port(found: Environment) -> int:
    if "SLURM_JOB_ID" not in found.variables:
        return PORT
    step = f"{found.text('SLURM_JOB_ID')}.{found.text('SLURM_STEP_ID')}"
    return JOB_PORTS[zlib.crc32(step.encode()) % len(JOB_PORTS)]


def _kubernetes(found: Environment) -> LauncherPlace:
    """An Indexed Job gives the index of its pod, and nothing else."""
    return found.place("JOB_COMPLETION_INDEX", "WORLD_SIZE" if "WORLD_SIZE" in found.variables else "", "")


#: Launchers, what shows that one was there, and how it is read. The innermost comes first: `mpirun` may run within a
#: job of Slurm, and either of them within a pod.
LAUNCHERS: tuple[tuple[str, str, Callable[[Environment], LauncherPlace]], ...] = (
    ("torchrun", "RANK", _torchrun),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", _open_mpi),
    ("Slurm", "SLURM_PROCID", _slurm),
    ("Kubernetes", "JOB_COMPLETION_INDEX", _kubernetes),
)


def detect(environ: Mapping[str, str]) -> LauncherPlace:
    """Return the place that a launcher has given to this process; `UsageError` if no launcher has started it."""
    variables = {name: value for name, value in environ.items() if value}
    for launcher, mark, read in LAUNCHERS:
        if mark in variables:
            return read(Environment(launcher, variables))
    marks = ", ".join(f"{mark} ({launcher})" for launcher, mark, _ in LAUNCHERS)
    raise UsageError(
        f"no launcher has started this process: expected one of {marks} in the environment; by hand, start `lockstep "
        "server` and `lockstep worker`, or on one machine `lockstep train`"
    )


def tasks_of(counts: str, node: int) -> int:
    """Return the tasks of a node, by a list as `SLURM_STEP_TASKS_PER_NODE` has it: `4(x2),3`; 1 if it has no such."""
    for count, times in re.findall(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", counts):
        node -= int(times or 1)
        if node < 0:
            return int(count)
    return 1


def first_host(hosts: str) -> str:
    """Return the first host of a list as `SLURM_JOB_NODELIST` has it: `a[07,11-13]x,b2` begins with `a07x`.

    Each pair of brackets holds numbers and ranges of them, of which the first one counts. (`scontrol show hostnames`
    prints the whole list; it is not there in a container.)
    """
    # A comma within brackets parts numbers, and any other one parts hosts.
    first = re.split(r",(?![^\[]*\])", hosts)[0]
    return re.sub(r"\[([^,\]-]*)[^\]]*\]", r"\1", first).strip()

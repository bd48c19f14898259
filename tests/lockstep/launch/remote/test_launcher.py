"""Where a process finds its place: a table of what launchers put into the environment."""

import pytest

from lockstep.common.errors import UsageError
from lockstep.launch.endpoints import nearby
from lockstep.launch.remote.launcher import JOB_PORTS, LauncherPlace, detect, first_host, tasks_of

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_JOB_NODELIST": "login1,gnode[10,20]",
    "SLURM_STEP_NODELIST": "gnode[10,20]",
}
MPI = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"}
SPREAD_MPI = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
POD = {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "lenet-node-0-0.lenet"}

#: What the environment holds -> launcher, rank, size, host, port; the port None where it follows from a job's number.
PLACES: dict[str, tuple[dict[str, str], tuple[str, int, int | None, str, int | None]]] = {
    "torchrun": (TORCHRUN, ("torchrun", 1, 4, "10.0.0.7", 29500)),
    "torchrun's agent has the port": (
        {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "True"},
        ("torchrun", 1, 4, "10.0.0.7", 29501),
    ),
    "no agent": ({**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}, ("torchrun", 1, 4, "10.0.0.7", 29500)),
    "torchrun in Slurm": ({**SLURM, **TORCHRUN}, ("torchrun", 1, 4, "10.0.0.7", 29500)),
    "Slurm": (SLURM, ("Slurm", 3, 4, "gnode10", None)),
    "Slurm, rank 0": ({**SLURM, "SLURM_PROCID": "0"}, ("Slurm", 0, 4, "gnode10", None)),
    "an older Slurm": (
        {k: v for k, v in SLURM.items() if not k.startswith("SLURM_STEP_N")},
        ("Slurm", 3, 8, "login1", None),
    ),
    "Slurm, told": (
        {**SLURM, "MASTER_ADDR": "ib-gnode20", "MASTER_PORT": "6000"},
        ("Slurm", 3, 4, "ib-gnode20", 6000),
    ),
    "mpirun on one host": (MPI, ("Open MPI", 2, 3, "127.0.0.1", 5555)),
    "mpirun on several": ({**SPREAD_MPI, "MASTER_ADDR": "host-a"}, ("Open MPI", 2, 3, "host-a", 5555)),
    "mpirun in Slurm": (
        {**SPREAD_MPI, **SLURM, "SLURM_PROCID": "0"},
        ("Open MPI", 2, 3, "login1", None),
    ),
    "mpirun, rank 0": ({**SPREAD_MPI, "OMPI_COMM_WORLD_RANK": "0"}, ("Open MPI", 0, 3, "", 5555)),
    "a pod": (POD, ("Kubernetes", 1, None, "lenet-node-0-0.lenet", 5555)),
    "a pod that knows the others": (
        {**POD, "WORLD_SIZE": "5", "MASTER_PORT": "7000"},
        ("Kubernetes", 1, 5, "lenet-node-0-0.lenet", 7000),
    ),
    "the first pod": ({"JOB_COMPLETION_INDEX": "0"}, ("Kubernetes", 0, None, "", 5555)),
    "mpirun in a pod": ({**POD, **MPI, "MASTER_ADDR": "a"}, ("Open MPI", 2, 3, "a", 5555)),
    "what is set to nothing is not set": (
        {**POD, "RANK": "", "SLURM_PROCID": ""},
        ("Kubernetes", 1, None, "lenet-node-0-0.lenet", 5555),
    ),
}

#: What the environment holds -> which of so many processes on its host this one is.
NEIGHBOURS = {
    "torchrun": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, (1, 2)),
    "torchrun, which does not say how many": (TORCHRUN, (0, 1)),
    "Slurm": ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_NODEID": "1", "SLURM_LOCALID": "2"}, (2, 3)),
    "Slurm, one task per node": ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, (0, 1)),
    "Slurm, which says nothing": (SLURM, (0, 1)),
    "mpirun": ({**MPI, "OMPI_COMM_WORLD_LOCAL_RANK": "2"}, (2, 3)),
    "mpirun on several": ({**SPREAD_MPI, "MASTER_ADDR": "a", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, (0, 1)),
    "a pod": (POD, (0, 1)),
}

#: A list of tasks per node, and a node -> its tasks.
TASKS = {("4", 0): 4, ("4(x2),3", 0): 4, ("4(x2),3", 1): 4, ("4(x2),3", 2): 3, ("4(x2),3", 3): 1, ("", 0): 1}

#: What the environment holds -> what is said of it.
MISTAKES = {
    "nothing": ({"PATH": "/bin"}, "no launcher has started this process: expected one of RANK (torchrun), OMPI_COMM"),
    "no master": ({"RANK": "0", "WORLD_SIZE": "2"}, "RANK = '0' is set and MASTER_ADDR is not: expected all of RANK"),
    "no size": ({**TORCHRUN, "WORLD_SIZE": ""}, "torchrun has WORLD_SIZE = not set: expected a whole number from 1"),
    "no number": ({**TORCHRUN, "RANK": "one"}, "torchrun has RANK = 'one': expected a whole number from 0"),
    "a negative rank": ({**TORCHRUN, "RANK": "-1"}, "torchrun has RANK = '-1': expected a whole number from 0"),
    "a rank too high": ({**TORCHRUN, "RANK": "4"}, "torchrun has RANK = 4 of WORLD_SIZE = 4: expected a rank below"),
    "no port": ({**TORCHRUN, "MASTER_PORT": "70000"}, "torchrun has MASTER_PORT = '70000': expected a whole number fr"),
    "a batch script": (
        {k: v for k, v in SLURM.items() if "STEP" not in k},
        "SLURM_PROCID = '3' is set and SLURM_STEP_ID is not, so that this is the batch script itself",
    ),
    "mpirun on hosts unknown": (
        SPREAD_MPI,
        "Open MPI does not provide the address of rank 0, to which rank 2 connects: expect",
    ),
    "a pod alone": (
        {"JOB_COMPLETION_INDEX": "1"},
        "Kubernetes does not provide the address of rank 0, to which rank 1 connects",
    ),
}


@pytest.mark.parametrize(("environ", "expected"), PLACES.values(), ids=PLACES)
def test_a_place_is_what_the_launcher_says(
    environ: dict[str, str], expected: tuple[str, int, int | None, str, int | None]
) -> None:
    place = detect(environ)
    launcher, rank, size, host, port = expected
    assert (place.launcher, place.rank, place.size, place.host) == (launcher, rank, size, host)
    assert place.port == port if port is not None else place.port in JOB_PORTS


@pytest.mark.parametrize(("environ", "text"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_missing_or_wrong_is_named(environ: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError) as error:
        detect(environ)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_two_jobs_on_one_node_have_ports_of_their_own_and_one_job_has_one() -> None:
    ports = {detect({**SLURM, "SLURM_JOB_ID": str(job), "SLURM_PROCID": rank}).port for job in (1, 2) for rank in "03"}
    assert len(ports) == 2


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("gnode[10,20,25-37]", "gnode10"),
        ("node[001-128]", "node001"),
        ("a1,b2", "a1"),
        ("tux[3-4]x[0-1],other", "tux3x0"),
        ("rack1-n[08]", "rack1-n08"),
        ("n[1-2].cluster.example,n9", "n1.cluster.example"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("host", "dialled", "bound", "beside"),
    [
        ("10.0.0.7", "tcp://10.0.0.7:9", "tcp://0.0.0.0:9", "tcp://127.0.0.1:9"),
        ("node1", "tcp://node1:9", "tcp://0.0.0.0:9", "tcp://127.0.0.1:9"),
        ("fd00::7", "tcp://[fd00::7]:9", "tcp://[::]:9", "tcp://[::1]:9"),
        ("127.0.0.1", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9", "tcp://127.0.0.1:9"),
        ("localhost", "tcp://localhost:9", "tcp://localhost:9", "tcp://localhost:9"),
        ("::1", "tcp://[::1]:9", "tcp://[::1]:9", "tcp://[::1]:9"),
    ],
)
def test_rank_0_listens_everywhere_unless_all_are_on_its_machine(
    host: str, dialled: str, bound: str, beside: str
) -> None:
    place = LauncherPlace(launcher="torchrun", rank=0, size=1, host=host, port=9)
    assert (place.address, place.bind, nearby(place.bind)) == (dialled, bound, beside)


@pytest.mark.parametrize(("environ", "neighbours"), NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_who_else_is_on_its_host(environ: dict[str, str], neighbours: tuple[int, int]) -> None:
    place = detect(environ)
    assert (place.local_rank, place.local_size) == neighbours


@pytest.mark.parametrize(("at", "tasks"), TASKS.items())
def test_the_tasks_of_a_node(at: tuple[str, int], tasks: int) -> None:
    assert tasks_of(*at) == tasks

"""`lockstep node` under launchers that are not there: what they do is to set variables, and a test can do that."""

import signal
import socket
from collections.abc import Callable

import pytest

from lockstep.cli.main import run
from tests.system.alone import digest_alone, run_here
from tests.system.jobs import BRIEF, ENDLESS
from tests.system.processes import GONE_S, Place

#: Returns the variables of a rank, of so many, with this port.
Launcher = Callable[[int, int, str], dict[str, str]]


def free_port() -> str:
    """Return a port that was free a moment ago: launchers name one before anybody listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


def torchrun(rank: int, size: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        **beside(rank, size),
    }


def beside(local_rank: int, local_size: int) -> dict[str, str]:
    """Return what torchrun says of a rank among those of its host."""
    return {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_size)}


def open_mpi(rank: int, size: int, port: str) -> dict[str, str]:
    sizes = {"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}
    ranks = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)}
    return {**sizes, **ranks, "MASTER_PORT": port}


@pytest.fixture(autouse=True)
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


#: Of Slurm and Kubernetes, tests/deploy runs the commands that their files have.
@pytest.mark.parametrize("launcher", [torchrun, pytest.param(open_mpi, marks=pytest.mark.slow)])
def test_the_same_command_under_any_launcher_comes_to_the_bits_of_one_process(place: Place, launcher: Launcher) -> None:
    port = free_port()
    ranks = [place.start("node", *BRIEF, "--run-dir", "run", environ=launcher(rank, 3, port)) for rank in (2, 0, 1)]
    ends = [process.end() for process in ranks]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    assert "server at tcp://127.0.0.1:" in ends[1][1]
    assert place.digest() == digest_alone(*BRIEF)
    result = place.result()
    # Rank 0 works too.
    assert (result["workers"], result["teams"]) == (3, 1)
    assert place.is_empty(0.0)


def test_a_launcher_that_stops_all_and_starts_all_again_loses_nothing(place: Place) -> None:
    job = (*BRIEF[:-1], "400")
    port = free_port()
    first = [place.start("node", *job, "--run-dir", "run", environ=torchrun(rank, 2, port)) for rank in (0, 1)]
    first[0].line_with("epoch 1/")
    for process in first:
        process.send(signal.SIGTERM)
    ends = [process.end(GONE_S) for process in first]
    assert [code for code, _, _ in ends] == [130, 130], ends
    assert place.is_empty(0.0)
    second = [place.start("node", *job, "--run-dir", "run", environ=torchrun(rank, 2, port)) for rank in (0, 1)]
    second[0].line_with("resumes after step ")
    assert [process.end()[0] for process in second] == [0, 0]
    assert run(["train", *job, "--workers", "0", "--run-dir", "alone"]) == 0
    assert place.digest() == place.digest("alone")
    # Once more: there is nothing left to do, and no rank waits for a server.
    third = [place.start("node", *job, "--run-dir", "run", environ=torchrun(rank, 2, port)) for rank in (0, 1)]
    assert [process.end()[0] for process in third] == [0, 0]


def test_a_rank_that_dies_does_not_end_the_run(place: Place) -> None:
    port = free_port()
    ranks = [place.start("node", *ENDLESS, "--run-dir", "run", environ=torchrun(rank, 2, port)) for rank in (0, 1)]
    ranks[0].line_with("epoch 1/")
    ranks[1].send(signal.SIGKILL)
    ranks[0].line_with("epoch ")
    ranks[0].line_with("epoch ")
    ranks[0].send(signal.SIGINT)
    code, _, error = ranks[0].end(GONE_S)
    assert (code, error.strip()) == (130, "error: interrupted")
    assert ranks[1].end()[0] == -signal.SIGKILL
    assert place.is_empty(0.0)


@pytest.mark.slow
def test_another_rank_leads_those_of_a_host_if_the_one_that_did_was_killed(place: Place) -> None:
    port = free_port()
    alone, led = torchrun(0, 3, port), [{**torchrun(rank, 3, port), **beside(rank - 1, 2)} for rank in (1, 2)]
    head = place.start("node", *ENDLESS, "--run-dir", "run", "--workers", "1", environ={**alone, **beside(0, 1)})
    first, second = (place.start("node", *ENDLESS, "--run-dir", "run", environ=environ) for environ in led)
    first.error_with("joined run run")
    first.send(signal.SIGKILL)
    second.error_with("and leads them")
    second.error_with("joined run run")
    head.interrupt()
    assert second.end(GONE_S)[0] == 1
    assert first.end()[0] == -signal.SIGKILL
    assert place.is_empty(GONE_S)


def node(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environ: dict[str, str]
) -> tuple[int, str]:
    """Run a rank that is refused, in the test's own process; return its exit code and its error."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    code, _, error = run_here(place.folder, capsys, "node", *BRIEF, "--run-dir", "run", "--seed", "4")
    return code, error


def test_a_folder_with_another_job_is_refused_before_anybody_waits(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", *BRIEF, "--workers", "0", "--run-dir", "run", "--seed", "3"]) == 0
    (place.folder / "run" / "result.json").unlink()
    code, error = node(place, monkeypatch, capsys, torchrun(0, 2, free_port()))
    assert (code, error.partition(":")[0]) == (2, "error")
    assert "seed = 3 in the run, 4 here" in error


def test_an_address_for_others_needs_insecure_or_keys(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {**torchrun(0, 2, free_port()), "MASTER_ADDR": "192.0.2.7"}
    code, error = node(place, monkeypatch, capsys, environ)
    assert code == 2
    assert "can be reached from other machines" in error
    assert not (place.folder / "run").exists()


def test_with_keys_all_ranks_show_one(place: Place) -> None:
    """The others one of their own, or, where they see its folder, the server's."""
    assert run(["keys", "create", "keys"]) == 0
    port = free_port()
    shown = (("--keys", "keys"), ("--keys", "keys"), ("--key", "keys/worker-1.key"))
    ranks = [
        place.start("node", *BRIEF, "--run-dir", "run", *flags, environ=torchrun(rank, 3, port))
        for rank, flags in enumerate(shown)
    ]
    assert [process.end()[0] for process in ranks] == [0, 0, 0]
    assert place.digest() == digest_alone(*BRIEF)


def test_without_a_launcher_there_is_no_place(place: Place) -> None:
    code, _, error = place.start("node", *BRIEF).end()
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("error: no launcher has started this process: expected one of RANK (torchrun)")

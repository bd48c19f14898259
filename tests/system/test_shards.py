"""Several servers as real processes: one digest, whatever carries the vectors, and nothing left behind."""

import json
import os
import signal
from typing import Any

import pytest

from common.transport.shared_folder import shared_root
from tests.system.processes import GONE_S, Place

#: Some steps of a model whose vectors are several frames long; clipped, so that all slices count in each.
JOB = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--clip-norm", "0.5")
BRIEF = (*JOB, "--steps", "6")
ENDLESS = (*JOB, "--epochs", "1000000")


def result_in(place: Place, name: str = "run") -> dict[str, Any]:
    result: dict[str, Any] = json.loads((place.folder / name / "result.json").read_text())
    return result


def digest_alone(place: Place) -> str:
    assert place.start("train", *BRIEF, "--workers", "0", "--run-dir", "alone").end()[0::2] == (0, "")
    return str(result_in(place, "alone")["weights_sha256"])


@pytest.mark.parametrize("transport", ["tcp", "ipc", "shm"])
@pytest.mark.parametrize("servers", ["2", "3"])
def test_one_digest_for_any_number_of_servers(place: Place, servers: str, transport: str) -> None:
    flags = ("--workers", "2", "--servers", servers, "--transport", transport, "--run-dir", "run")
    code, _, error = place.start("train", *BRIEF, *flags).end()
    assert (code, error) == (0, "")
    result = result_in(place)
    assert (result["servers"], result["transport"], result["obstacle"]) == (int(servers), transport, "")
    assert result["weights_sha256"] == digest_alone(place)
    assert len(list((place.folder / "run").glob("shard-*.log"))) == int(servers) - 1
    assert place.is_empty(0.0)


def test_more_servers_than_the_model_has_blocks(place: Place) -> None:
    flags = ("--model", "linear", "--data", "tiny.npz", "--workers", "1", "--servers", "3")
    code, out, error = place.start("train", *flags).end()
    assert (code, out) == (2, "")
    assert error == "error: servers = 3 for a model of 7,850 values: expected 1 to 2, one for 4096 of them\n"
    assert place.is_empty(0.0)


def test_shards_started_by_hand(place: Place) -> None:
    server = place.start("server", *BRIEF, "--servers", "3", "--bind", "tcp://127.0.0.1:0", "--run-dir", "run")
    address = server.line_with("lockstep shard").split()[-1]
    assert server.line_with("waiting") == f"waiting for shards: 0 of 2 are ready, at {address}"
    worker = place.start("worker", address)
    shards = [place.start("shard", address) for _ in range(2)]
    assert [process.end()[0] for process in (server, worker, *shards)] == [0, 0, 0, 0]
    assert result_in(place)["weights_sha256"] == digest_alone(place)
    assert place.is_empty(0.0)


@pytest.mark.parametrize("transport", ["ipc", "shm"])
def test_a_shard_that_is_killed_fails_the_run_with_one_line(place: Place, transport: str) -> None:
    flags = ("--workers", "2", "--servers", "2", "--transport", transport, "--run-dir", "run", "--max-restarts", "0")
    process = place.start("train", *ENDLESS, *flags)
    process.line_with("epoch 2/")
    (pid,) = place.pids("lockstep shard")
    os.kill(pid, signal.SIGKILL)
    code, _, error = process.end()
    assert code == 1
    assert error == (
        f"error: a shard (pid {pid}) was killed by SIGKILL, and its slice of the weights is gone with it\n"
    )
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize("transport", ["tcp", "shm"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_nothing(place: Place, number: signal.Signals, transport: str) -> None:
    flags = ("--workers", "2", "--servers", "3", "--transport", transport, "--run-dir", "run")
    process = place.start("train", *ENDLESS, *flags)
    process.line_with("epoch 2/")
    servers = place.pids("lockstep server")
    process.send(number)
    code, _, _ = process.end(GONE_S)
    assert code == (130 if number == signal.SIGINT else -number)
    assert place.is_empty(GONE_S)
    assert not [path for pid in servers for path in shared_root().glob(f"lockstep-{os.geteuid()}-{pid}-*")]
    assert (place.folder / "run" / "weights.safetensors").is_file() or number == signal.SIGKILL


def test_a_run_goes_on_from_a_checkpoint_with_another_number_of_servers(place: Place) -> None:
    flags = ("--workers", "2", "--servers", "2", "--transport", "ipc", "--checkpoint-every-steps", "1")
    process = place.start("train", *BRIEF[:-2], "--momentum", "0.9", "--epochs", "60", *flags, "--run-dir", "run")
    process.line_with("epoch 3/")
    process.send(signal.SIGINT)
    assert process.end(GONE_S)[0] == 130
    code, _, error = place.start("train", "--resume", "run", "--servers", "3").end()
    assert (code, error) == (0, "")
    whole = ("--momentum", "0.9", "--epochs", "60", "--workers", "0", "--run-dir", "alone")
    assert place.start("train", *BRIEF[:-2], *whole).end()[0] == 0
    assert result_in(place)["weights_sha256"] == result_in(place, "alone")["weights_sha256"]

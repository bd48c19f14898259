"""Several servers as real processes: one digest, whatever carries the vectors, and nothing left behind."""

import os
import signal
from socket import gethostname

import pytest

from lockstep.common.transport.shared_memory.folder import shared_root
from lockstep.launch.serve import SEVERAL_SERVERS
from tests.system.alone import digest_alone
from tests.system.processes import GONE_S, Place

#: Some steps of a model whose vectors are several frames long; clipped, so that all slices count in each.
JOB = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--set", "clip_norm=0.5")
BRIEF = (*JOB, "--steps", "6")
ENDLESS = (*JOB, "--epochs", "1000000")


@pytest.mark.parametrize(
    ("servers", "transport"),
    [
        ("3", "shm"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("2", "tcp"), ("3", "tcp"), ("2", "ipc"))),
    ],
)
def test_one_digest_for_any_number_of_servers(place: Place, servers: str, transport: str) -> None:
    flags = ("--workers", "2", "--servers", servers, "--transport", transport, "--run-dir", "run")
    place.train(*BRIEF, *flags)
    result = place.result()
    # Several servers share no memory.
    carrier, obstacle = ("ipc", SEVERAL_SERVERS) if transport == "shm" else (transport, "")
    assert (result["servers"], result["transport"], result["obstacle"]) == (int(servers), carrier, obstacle)
    assert result["weights_sha256"] == digest_alone(*BRIEF)
    assert len(list((place.folder / "run").glob("shard-*.log"))) == int(servers) - 1
    assert place.is_empty(0.0)


def test_shards_started_by_hand(place: Place) -> None:
    server = place.start("server", *BRIEF, "--servers", "3", "--bind", "tcp://127.0.0.1:0", "--run-dir", "run")
    address = server.line_with("lockstep shard").split()[-1]
    assert server.line_with("waiting") == f"waiting for shards: 0 of 2 are ready, at {address}"
    worker = place.start("worker", address)
    shards = [place.start("shard", address) for _ in range(2)]
    assert [process.end()[0] for process in (server, worker, *shards)] == [0, 0, 0, 0]
    assert place.digest() == digest_alone(*BRIEF)
    assert place.is_empty(0.0)


def test_a_shard_that_is_killed_fails_the_run_with_one_line(place: Place) -> None:
    flags = ("--workers", "2", "--servers", "2", "--run-dir", "run", "--set", "max_restarts=0")
    process = place.start("train", *ENDLESS, *flags)
    process.line_with("epoch 2/")
    (pid,) = place.pids("lockstep shard")
    os.kill(pid, signal.SIGKILL)
    code, _, error = process.end()
    assert code == 1
    # Either sees it first: `train`, which started the shard, or the server, whose connection is gone.
    lost = f"shard 1 (host {gethostname()}, pid {pid}) is gone, and its slice of the weights with it"
    assert error in (
        f"error: a shard (pid {pid}) was killed by SIGKILL, and its slice of the weights is gone with it\n",
        f"error: {lost}: its connection is gone\n",
    )
    assert (place.folder / "run" / "weights.safetensors").is_file()
    assert place.is_empty(GONE_S)


@pytest.mark.parametrize(
    ("number", "transport"),
    [
        (signal.SIGKILL, "shm"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((signal.SIGINT, "tcp"), (signal.SIGINT, "shm"))),
    ],
)
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

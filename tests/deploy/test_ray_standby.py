"""deploy/ray_standby.py, on a cluster of one-core nodes that are all on this machine: the server's node dies."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.lockstep.launch.remote import test_ray
from tests.lockstep.launch.remote.test_ray import RAY_S, Ray, three
from tests.system.alone import digest_alone
from tests.system.processes import Place, Process, digest_in, is_gone

__all__ = ["three"]

pytestmark = [*test_ray.pytestmark, pytest.mark.slow]

SCRIPT = ROOT / "deploy" / "ray_standby.py"


def started(place: Place, three: Ray, *words: str) -> Process:
    """Start the script as a driver of the cluster."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        cwd=place.folder,
        env={**os.environ, "RAY_ADDRESS": three.address, "RAY_DEDUP_LOGS": "0", "LOCKSTEP_TEST": place.mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    place.started.append(Process(process))
    return place.started[-1]


def lose_node_of(three: Ray, pid: int) -> None:
    """Let the node go on which a process is, with that process, as when its machine is switched off."""
    assert three.ask(f"remove {three.ask(f'holder {pid}')}") == "done"
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_the_servers_node_dies_and_the_run_goes_on_to_the_same_bits(
    place: Place, three: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    data = ("--model", "lenet", "--data", str(place.folder / "tiny.npz"), "--global-batch", "48", "--steps", "2000")
    expected = digest_alone(*data)
    for _ in range(2):
        three.ask("add 1")
    often = ("--set", "checkpoint_every_steps=20", "--takeover-seconds", "2")
    script = started(place, three, "run", "--workers", "2", *data, *often)
    script.line_with("has the checkpoint of step ")
    (server,) = three.place.pids("--standbys")
    lose_node_of(three, server)
    script.line_with("takes over, from step ")
    # A new server on another node, at another address and with nothing of the run.
    script.line_with("has the checkpoint of step ")
    code, out, _ = script.end(RAY_S)
    assert code == 0, out
    assert digest_in(Path("run")) == expected
    assert f"weights sha256  {expected}" in out
    for command in ("server", "worker"):
        assert all(is_gone(pid, RAY_S) for pid in three.ours(command))

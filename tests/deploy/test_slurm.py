"""deploy/slurm.sbatch: the script itself, under stand-ins for `srun` and `scontrol` that do what it relies on."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.cli.main import run
from tests.architecture.source import ROOT
from tests.deploy.stand_in import Machine
from tests.system.jobs import gated_model, hold
from tests.system.processes import PATIENCE_S, digest_in

SCRIPT = ROOT / "deploy" / "slurm.sbatch"

#: Starts the tasks of a step as Slurm does: each by its variables; signals are passed on, the worst code is returned.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
assert len(words) == len(sys.argv) - 2
tasks = [
    subprocess.Popen(words, env={{**os.environ, "SLURM_PROCID": str(rank), "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NTASKS"], "SLURM_STEP_NODELIST": os.environ["SLURM_JOB_NODELIST"],
        "SLURM_STEP_TASKS_PER_NODE": os.environ["SLURM_NTASKS"], "SLURM_NODEID": "0", "SLURM_LOCALID": str(rank)}})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() % 256 for task in tasks))
"""

SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\n'

JOB = ("--model", "linear", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "8")


def directives() -> dict[str, str]:
    """Return what the script asks of Slurm."""
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert run(["keys", "create", "keys"]) == 0
    with machine.exits:
        yield machine


def slurm(machine: Machine) -> dict[str, str]:
    """Return what Slurm sets for a batch script of two tasks on one node, which is this one."""
    # A job's number makes its port: another one for each test.
    job = {"SLURM_JOB_ID": machine.free_port(), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    return {**job, "SLURM_SUBMIT_DIR": str(machine.folder)}


def test_it_asks_for_what_it_relies_on() -> None:
    asked = directives()
    assert "requeue" in asked
    to, _, before_s = asked["signal"].partition("@")
    assert to == "B:USR1"  # to the script alone: the tasks get their signal from it
    assert int(before_s) >= 30
    assert re.fullmatch(r"\d\d:\d\d:\d\d", asked["time"])


def test_it_trains_with_keys_and_out_of_time_goes_on_after_a_requeue(machine: Machine) -> None:
    environ, gate = slurm(machine), machine.folder / "gate"
    os.mkfifo(gate)
    job = [*JOB, "--model", gated_model(machine.folder, gate, is_training=False)]
    first = machine.start(["bash", str(SCRIPT), *job], environ)
    # The first epoch's steps are made, and it is being evaluated.
    held = hold(gate, first)
    first.send_signal(signal.SIGUSR1)
    assert first.wait(PATIENCE_S) == 0, machine.said(first)
    assert Path("scontrol.txt").read_text() == f"requeue {environ['SLURM_JOB_ID']}\n"
    os.close(held)
    gate.unlink()
    gate.touch()
    second = machine.start(["bash", str(SCRIPT), *job], environ)
    assert second.wait(PATIENCE_S) == 0, machine.said(second)
    assert "resumes after step 4" in machine.said(second)
    # What is finished is not requeued.
    assert Path("scontrol.txt").read_text().count("\n") == 1
    assert run(["train", *job, "--workers", "0", "--run-dir", "alone"]) == 0
    assert digest_in(Path("runs") / f"slurm-{environ['SLURM_JOB_ID']}") == digest_in(Path("alone"))


def test_a_wrong_job_ends_with_its_code_and_is_not_requeued(machine: Machine) -> None:
    script = machine.start(["bash", str(SCRIPT), "--model", "mlpp"], {**slurm(machine), "SLURM_NTASKS": "1"})
    assert script.wait(PATIENCE_S) == 2
    assert "model = 'mlpp' is not known" in machine.said(script)
    assert not Path("scontrol.txt").exists()

"""Real workers that help with updates, one of which dies or stands still within its slice: the same bits."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.system.alone import run_here
from tests.system.jobs import LOOK_S, hold
from tests.system.processes import GONE_S, Place

#: More than a million values: half of them are made in several parts, and all ways of an update are tried at first.
MODEL = """
import os
import signal
import sys

from lockstep import nn
from lockstep.worker.slice_update import SliceUpdater


def build():
    if "worker" in sys.argv:
        try:
            os.close(os.open("fatal", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            make_fatal()
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 10))


def make_fatal():
    advance, seen = SliceUpdater._advance, []

    def stop_within(self, on_made):
        result = advance(self, on_made)
        if result is None:
            seen.append(self)
            if len(seen) == 3:
                {what}
        return result

    SliceUpdater._advance = stop_within
"""

#: What the first worker does within its third slice.
KILL, STAND = "os.kill(os.getpid(), signal.SIGKILL)", "open('gate', 'rb').read()"

FLAGS = ("--data", "tiny.npz", "--global-batch", "32", "--micro-batches", "2", "--lr", "0.01")

#: Workers make most steps by themselves, or are leased all of them: the norm of a gradient is found by the server.
WAYS = {"by themselves": (), "with the server": ("--clip-norm", "1000")}

#: Steps by which a worker that stands still wakes up.
AWAKE = 60

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="on one core, updates are made alone"
)


def job(folder: Path, what: str, steps: int, way: str) -> tuple[str, ...]:
    (folder / "fatal.py").write_text(MODEL.format(what=what))
    return ("--model", "fatal.py:build", "--steps", str(steps), *FLAGS, *WAYS[way])


def digest(place: Place, name: str) -> str:
    found: str = json.loads((place.folder / name / "result.json").read_text())["weights_sha256"]
    return found


def steps_in(place: Place) -> int:
    metrics = place.folder / "run" / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


# In virtual time, the job "clipped" has the norm found by the server, with kills in the middle of slices.
@pytest.mark.parametrize("way", ["by themselves", pytest.param("with the server", marks=pytest.mark.slow)])
def test_a_worker_killed_within_its_slice_changes_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    flags = job(place.folder, KILL, 60, way)
    process = place.start("train", *flags, "--workers", "2", "--transport", "shm", "--run-dir", "run")
    code, out, _ = process.end()
    assert code == 0
    assert "SIGKILL" in out
    assert run_here(place.folder, capsys, "train", *flags, "--workers", "0", "--run-dir", "alone")[0] == 0
    assert digest(place, "run") == digest(place, "alone")
    assert place.is_empty(GONE_S)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_one_that_stands_still_in_its_slice_and_wakes_up_later_tears_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    os.mkfifo(place.folder / "gate")
    flags = job(place.folder, STAND, 4 * AWAKE, way)
    process = place.start("train", *flags, "--workers", "2", "--transport", "shm", "--run-dir", "run")
    descriptor = hold(place.folder / "gate", process.popen)
    while steps_in(place) < AWAKE:
        assert not process.ends_within(LOOK_S), "the run ended before the worker woke up"
    os.close(descriptor)
    assert process.end()[0] == 0
    assert run_here(place.folder, capsys, "train", *flags, "--workers", "0", "--run-dir", "alone")[0] == 0
    assert digest(place, "run") == digest(place, "alone")
    assert place.is_empty(GONE_S)

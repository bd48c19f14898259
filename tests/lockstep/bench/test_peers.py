"""Processes that make steps on demand: all at once, and gone in the end whatever they do."""

import signal
import sys

import pytest

from lockstep.bench.measuring.peers import Stepper, faster, steps_of
from lockstep.bench.measuring.timed_run import median_step_s
from lockstep.common.errors import RunError
from tests.lockstep.bench.baselines import baseline

#: Answers each line, with the number of the line as the version.
HONEST = """
import json, sys
for number, line in enumerate(sys.stdin):
    answer = {"version": str(number), "seconds": [0.5] * int(line), "peak_rss_bytes": 1}
    print(json.dumps(answer), flush=True)
"""


def start(source: str) -> Stepper:
    return Stepper.start("the thing", [sys.executable, "-c", source])


def test_each_line_is_answered() -> None:
    steppers = [start(HONEST), start(HONEST)]
    assert [answer.seconds for answer in steps_of(steppers, 3)] == [[0.5] * 3] * 2
    assert steps_of(steppers[:1], 1)[0].version == "1"
    for stepper in steppers:
        stepper.close()
        assert stepper.process.returncode == 0


def test_a_death_is_reported_with_the_exit_code() -> None:
    stepper = start("raise SystemExit(7)")
    with pytest.raises(RunError, match="the thing died with exit code 7"):
        steps_of([stepper], 1)
    stepper.close()


def test_what_does_not_end_is_killed_with_what_it_has_started() -> None:
    # The grandchild holds the pipe: waiting for its end would be for ever.
    grandchild = "import signal; signal.pause()"
    source = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    stepper = start(source)
    stepper.close(grace_s=0.2)
    assert stepper.process.returncode == -signal.SIGKILL


def test_the_faster_layout_of_the_baseline_counts() -> None:
    baselines = [baseline("contiguous", [0.004, 0.004]), baseline("channels-last", [0.003], [0.001, 0.003])]
    peer = faster(baselines, median_step_s, our_s=0.002, global_batch=6)
    assert peer is not None
    assert (peer.layout, peer.ms_per_step, peer.images_per_s, peer.ratio) == ("channels-last", 3.0, 2000, 1.5)
    assert peer.peak_rss_mb == 2e-5
    assert faster([], median_step_s, our_s=0.001, global_batch=64) is None

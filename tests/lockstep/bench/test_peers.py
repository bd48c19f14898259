"""Processes that make steps on demand: all at once, and gone in the end whatever they do."""

import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

import pytest

from lockstep.bench.peers import (
    BaselineSubject,
    Stepper,
    faster,
    start_baselines,
    start_whole_machine,
    steps_of,
)
from lockstep.common.errors import RunError
from lockstep.common.runtime.environment import cores
from tests.lockstep.bench.baselines import baseline, write_peer

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
    slow = baseline("contiguous", [0.004, 0.004], [0.004], [0.004])
    fast = baseline("channels-last", [0.003], [0.001, 0.003], [0.009])
    peer = faster([slow, fast], mean, [[0.002], [0.001], [0.002]], global_batch=6)
    assert peer is not None
    assert (peer.layout, peer.threads, peer.ms_per_step, peer.images_per_s) == ("channels-last", 1, 3.0, 2000)
    assert (peer.ms_spread, peer.peak_rss_mb) == ((2.0, 9.0), 3e-5)
    assert faster([], mean, [[0.001]], global_batch=64) is None


def test_a_ratio_is_that_of_the_middle_turn_and_not_of_the_middle_times() -> None:
    # The machine is ten times slower in one turn, for both.
    theirs = baseline("contiguous", [0.002], [0.020], [0.003])
    peer = faster([theirs], mean, [[0.001], [0.010], [0.002]], global_batch=1)
    assert peer is not None
    assert (peer.ratio, peer.ratio_spread) == (2.0, (1.5, 2.0))


def test_pytorch_has_a_thread_per_core_and_is_compiled_in_its_faster_layout(tmp_path: Path) -> None:
    python, calls = write_peer(tmp_path)
    with ExitStack() as stack:
        subject = BaselineSubject(model="cnn")
        whole, compiled = start_whole_machine(python, subject, 64, stack, is_compiling=True, say=lambda _: None)
        assert [(each.layout, each.threads) for each in whole] == [
            ("contiguous", cores()),
            ("channels-last", cores()),
        ]
        assert [each.layout for each in compiled] == ["channels-last"]
    threads = f" --threads {cores()}" if cores() > 1 else ""
    *plain, last = calls.read_text().splitlines()
    # Both layouts are started at once.
    assert sorted(plain) == sorted([f"step cnn 64{threads}", f"step cnn 64 --channels-last{threads}"])
    assert last == f"step cnn 64 --compile --channels-last{threads}"


def test_what_cannot_be_compiled_is_left_out_and_named(tmp_path: Path) -> None:
    python, _ = write_peer(tmp_path, refused="--compile")
    said = list[str]()
    with ExitStack() as stack:
        subject = BaselineSubject(model="mlp")
        whole, compiled = start_whole_machine(python, subject, 64, stack, is_compiling=True, say=said.append)
    assert (len(whole), compiled) == (1, [])
    assert said == ["torch.compile is left out: it cannot do with --compile"]


def test_a_net_that_cannot_be_trained_channels_last_is_measured_contiguous(tmp_path: Path) -> None:
    python, _ = write_peer(tmp_path, refused="--channels-last")
    with ExitStack() as stack:
        found = start_baselines(python, ["step", "cnn", "32"], stack, BaselineSubject(model="my.py:net").layouts())
    assert [each.layout for each in found] == ["contiguous"]

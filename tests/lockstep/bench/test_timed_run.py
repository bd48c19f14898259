"""Timed runs: the steps that count, their figures, and the processor time of their processes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lockstep.bench.peers import WARM_UP
from lockstep.bench.timed_run import (
    ProcessorClock,
    StepProcessorTime,
    TeamRole,
    TimedRun,
    mean_step_s,
    middle_run,
    per_step,
    seconds_of,
    split_of,
)
from lockstep.ps.records.metrics import StepRecord
from tests.lockstep.statuses import result, status


def step(number: int, round_s: float, epoch: int = 1) -> StepRecord:
    """Return a step half of whose time is computing and a tenth of it the update."""
    times: dict[str, Any] = {
        "round_s": round_s,
        "mean_s": round_s / 2,
        "slowest_s": round_s / 2,
        "update_s": round_s / 10,
    }
    return StepRecord(epoch=epoch, step=number, loss=0.0, accuracy=0.0, lr=0.1, samples=8, **times)


def run_of(*steady: float, after: Sequence[StepRecord] = ()) -> TimedRun:
    """Return a run of which the warm-up took longer."""
    warm_up = [step(number, 9.0) for number in range(WARM_UP)]
    steps = [step(WARM_UP + number, seconds) for number, seconds in enumerate(steady)]
    return TimedRun(result=result(), steps=[*warm_up, *steps, *after])


def test_slow_steps_count_as_in_the_images_per_second_of_a_run() -> None:
    assert mean_step_s([[1.0, 1.0, 4.0]]) == 2.0


@pytest.mark.parametrize(
    ("turns", "expected"), [([1.0, 9.0, 2.0], 2.0), ([3.0, 1.0], 3.0), ([1.0, 2.0, 3.0, 9.0], 3.0)]
)
def test_the_middle_turn_counts_or_the_slower_of_two(turns: list[float], expected: float) -> None:
    assert mean_step_s([[seconds, seconds] for seconds in turns]) == expected


def test_the_warm_up_and_the_step_after_an_evaluation_do_not_count() -> None:
    after = [step(WARM_UP + 2, 7.0, epoch=2), step(WARM_UP + 3, 0.5, epoch=2)]
    assert run_of(1.0, 2.0, after=after).seconds() == [1.0, 2.0, 0.5]


def test_the_parts_of_a_step_add_up_to_the_mean_step_of_the_middle_turn() -> None:
    runs = [run_of(1.0, 1.0), run_of(5.0, 5.0), run_of(2.0, 4.0)]
    split = split_of([middle_run(runs)])
    assert (split.steps, split.compute_s) == (2, 1.5)
    assert split.step_s == pytest.approx(mean_step_s([run.seconds() for run in runs])) == pytest.approx(3.0)
    # The warm-up's last update lies within the first step that counts.
    assert split.update_s == pytest.approx((0.9 + 0.2) / 2)


#: Ticks in a second, of which the system counts in whole numbers.
TICKS = os.sysconf("SC_CLK_TCK")

SERVER, LEADER, PROCESS = TeamRole.SERVER, TeamRole.LEADER, TeamRole.PROCESS

#: The processes of a team.
TEAM = {SERVER: [1], LEADER: [3], PROCESS: [4, 5]}


def show(proc: Path, pid: int, seconds: float) -> None:
    """Show a process with so many seconds of processor time, a third of them in the system."""
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    ticks = round(seconds * TICKS)
    before = " ".join(str(number) for number in range(1, 11))
    (folder / "stat").write_text(f"{pid} (a (name) of two) S {before} {ticks - ticks // 3} {ticks // 3} 7 7 20\n")


def test_the_time_of_a_process_is_its_own_and_the_systems(tmp_path: Path) -> None:
    show(tmp_path, 8, 1.5)
    assert seconds_of(tmp_path, 8) == 1.5
    assert seconds_of(tmp_path, 9) is None


def test_this_process_has_taken_some() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the system does not show its processes in files")
    own = seconds_of(Path("/proc"), os.getpid())
    assert own is not None
    assert own == pytest.approx(sum(os.times()[:2]), abs=0.5)


def one_team(proc: Path, seconds: float) -> None:
    """Show a server with so many seconds, a leader with twice that, and two others."""
    for pid, share in ((1, 1.0), (3, 2.0), (4, 3.0), (5, 5.0)):
        show(proc, pid, share * seconds)


def read(
    proc: Path, step: int, clock: ProcessorClock | None = None, pids: dict[TeamRole, list[int]] = TEAM
) -> ProcessorClock:
    clock = clock or ProcessorClock(proc)
    clock.on_status(status(step=step, steps=400), pids)
    return clock


def test_the_difference_of_two_readings_counts(tmp_path: Path) -> None:
    clock = ProcessorClock(tmp_path)
    # Before a quarter of the run, at a quarter, in between, near the end, and over.
    for step, seconds in ((99, 9.0), (100, 1.0), (200, 7.0), (300, 2.0), (400, 9.0)):
        one_team(tmp_path, seconds)
        read(tmp_path, step, clock)
    assert clock.first is not None
    assert clock.last is not None
    assert (clock.first[0], clock.last[0]) == (100, 300)
    # A second in 200 steps; the other processes take 3 and 5.
    assert per_step([clock]) == StepProcessorTime(server_ms=5.0, leader_ms=10.0, process_ms=20.0)


def test_runs_are_taken_together(tmp_path: Path) -> None:
    clocks = []
    for more in (1.0, 3.0):
        one_team(tmp_path, 1.0)
        clock = read(tmp_path, 100)
        one_team(tmp_path, 1.0 + more)
        clocks.append(read(tmp_path, 200, clock))
    found = per_step(clocks)
    assert found is not None
    assert found.server_ms == 20.0


def test_a_process_that_was_started_in_between_does_not_count(tmp_path: Path) -> None:
    one_team(tmp_path, 1.0)
    clock = read(tmp_path, 100)
    for pid, seconds in ((1, 1.5), (4, 3.25), (9, 77.0)):
        show(tmp_path, pid, seconds)
    found = per_step([read(tmp_path, 150, clock, TEAM | {PROCESS: [4, 9]})])
    assert found == StepProcessorTime(server_ms=10.0, leader_ms=0.0, process_ms=5.0)


def test_a_worker_of_one_process_has_no_other_processes(tmp_path: Path) -> None:
    one_team(tmp_path, 1.0)
    clock = read(tmp_path, 100, None, TEAM | {PROCESS: []})
    show(tmp_path, 1, 2.0)
    found = per_step([read(tmp_path, 200, clock, TEAM | {PROCESS: []})])
    assert found == StepProcessorTime(server_ms=10.0, leader_ms=0.0, process_ms=None)


def test_a_run_that_was_read_once_or_not_at_all_says_nothing(tmp_path: Path) -> None:
    one_team(tmp_path, 1.0)
    assert per_step([read(tmp_path, 100), ProcessorClock(tmp_path)]) is None
    assert per_step([read(tmp_path / "elsewhere", 200, read(tmp_path / "elsewhere", 100))]) is None

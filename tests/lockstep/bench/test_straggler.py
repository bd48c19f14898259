"""The straggler bench: the slowed process, the steps that count, the compared cases, and one short bench for real."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from lockstep.bench.bench import heading, line
from lockstep.bench.peers import WARM_UP
from lockstep.bench.straggler import (
    PATTERNS,
    Begun,
    Slowdown,
    StragglerBench,
    StragglerRow,
    Turn,
    ratios_of,
    slow_down,
    turn_of,
)
from lockstep.bench.timed_run import BenchSession, TimedRun
from lockstep.cli.main import run
from lockstep.common.errors import RunError
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock, SystemClock
from lockstep.launch.chaos import ProcessesOf
from lockstep.launch.supervision.child import WatchedProcess
from lockstep.launch.supervision.restarts import Role
from lockstep.ps.records.ledger import LedgerShare, Line, RunBegun, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.metrics import StepRecord
from lockstep.runs.job_file import resolve
from tests.lockstep.statuses import result, status

PNG = b"\x89PNG\r\n\x1a\n"


def ledger_of(steps: int) -> list[Line]:
    """Return a ledger in which process 22 computes one of four micro-batches, first as 1 and from step 25 on as 2."""
    lines: list[Line] = [
        RunBegun(step=0, weights_sha256="00"),
        *(WorkerIn(rank=at, host="h", pid=11 * at + 11) for at in (0, 1)),
    ]
    for step in range(steps):
        slow = 1 if step < 25 else 2
        if step == 25:
            lines.append(WorkerIn(rank=2, host="h", pid=22))
        shares = [LedgerShare(0, 2, 0), LedgerShare(2, 3, slow), LedgerShare(3, 4, 0)]
        lines.append(StepDone(step=step, shares=shares, losses=bytes(16), checksum=1))
    return lines


def run_of(steps: int, *again: Line) -> TimedRun:
    records = [
        StepRecord(epoch=1, step=at, loss=0.0, accuracy=0.0, lr=0.1, samples=4, round_s=at / 100) for at in range(steps)
    ]
    return TimedRun(result=result(), steps=records, ledger=[*ledger_of(steps), *again])


def test_steps_count_from_the_one_on_in_which_the_worker_was_slowed_down() -> None:
    again = [
        UnusedWork(work="train", step=step, lo=2, hi=4, rank=1, why="others had done it, or it came twice")
        for step in (3, 24)
    ]
    validation = UnusedWork(work="evaluate", step=24, lo=0, hi=4, rank=1, why="it left")
    turn = turn_of(run_of(27, *again, validation), Begun(step=23, pid=22, process=1))
    assert turn == Turn(seconds=[0.23, 0.24, 0.25, 0.26], known=4, by_last=4, by_others=12, unused=2)


def test_of_a_team_the_steps_count_of_which_it_says_who_computed_what() -> None:
    team: list[Line] = [
        WorkerIn(rank=0, host="h", pid=22, processes=3),
        StepDone(step=20, shares=[LedgerShare(0, 4, 0)], losses=bytes(16), checksum=1),
        StepDone(
            step=21, shares=[LedgerShare(0, 3, 0), LedgerShare(3, 4, 0)], processes=[1, 2], losses=bytes(16), checksum=1
        ),
    ]
    run = TimedRun(result=result(), steps=run_of(22).steps, ledger=team)
    turn = turn_of(run, Begun(step=20, pid=24, process=2))
    assert turn == Turn(seconds=[0.2, 0.21], known=1, by_last=1, by_others=3, unused=0)


@pytest.mark.parametrize("begun", [None, Begun(step=WARM_UP, pid=22, process=1)])
def test_a_run_that_was_over_too_early_is_reported(begun: Begun | None) -> None:
    with pytest.raises(RunError, match="the run of 20 steps was over before its last worker was slowed down"):
        turn_of(run_of(WARM_UP), begun)


def straggler(workers: int = 2) -> StragglerBench:
    return StragglerBench(workers=workers, cases=("3", "stall"))


@pytest.mark.parametrize(
    ("case", "workers", "ideal"),
    [("alone", 2, 1.0), ("all", 2, 2.0), ("3", 2, 4 / 3), ("stall", 2, 4 / 3), ("stopped", 2, 1.0), ("2", 5, 9 / 8)],
)
def test_in_the_ideal_the_speeds_of_all_add_up(case: str, workers: int, ideal: float) -> None:
    assert straggler(workers).ideal(case) == pytest.approx(ideal)


def test_a_turn_begins_with_what_the_cases_are_compared_with() -> None:
    assert straggler().all_cases() == ("alone", "all", "3", "stall")
    assert [straggler(workers=4).workers_in(case) for case in straggler().all_cases()] == [3, 4, 4, 4]


def test_ratios_are_taken_within_a_turn() -> None:
    # The second turn was disturbed for both, the third for one.
    assert ratios_of([[1.0, 3.0], [8.0], [9.0]], [[4.0], [16.0], [18.0]]) == [2.0, 2.0, 2.0]


ROW = StragglerRow(
    model="lenet",
    batch=128,
    micro_batches=8,
    workers=2,
    cores=2,
    case="3",
    speed=1 / 3,
    steps=300,
    ms_per_step=12.0,
    images_per_s=10_667.0,
    of_alone=1.2,
    of_all=0.75,
    of_ideal=0.9,
    duplicates=0.0123,
    micro_batches_of_fast=6.25,
    micro_batches_of_slow=1.75,
    weights_sha256="ab",
)


def test_a_row_is_a_line_below_its_heading() -> None:
    figures = line(ROW)
    assert " ".join(figures.split()) == "is 3 times slower 12.00 10,667 1.20 0.75 0.90 1.2% 6.2 1.8"
    assert len(figures) == len(heading(StragglerRow)) <= 80
    alone = msgspec.structs.replace(ROW, case="alone", micro_batches_of_slow=None)
    assert line(alone).split()[-1] == "-"


def test_a_slow_worker_next_to_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, plot_file = tmp_path / "rows.json", tmp_path / "rows.png"
    flags = ["--batch", "32", "--micro-batches", "4", "--cases", "stopped", "--steps", "150", "--rounds", "1"]
    assert run(["bench", "straggler", *flags, "--to", str(json_file), "--plot", str(plot_file)]) == 0
    rows = msgspec.json.decode(json_file.read_bytes(), type=list[StragglerRow])
    assert [(row.case, row.workers, row.speed) for row in rows] == [
        ("alone", 1, 0.0),
        ("all", 2, 1.0),
        ("stopped", 2, 0.0),
    ]
    for row in rows:
        assert 0 < row.steps <= 150
        assert row.images_per_s == pytest.approx(32 / row.ms_per_step * 1e3)
        assert row.micro_batches_of_fast + (row.micro_batches_of_slow or 0.0) == pytest.approx(4)
    # The bits do not depend on who is slow.
    assert len({row.weights_sha256 for row in rows}) == 1
    assert plot_file.read_bytes().startswith(PNG)
    assert capsys.readouterr().out.splitlines()[0] == heading(StragglerRow)


STOP, CONTINUE = signal.SIGSTOP, signal.SIGCONT


@dataclass
class Timeline:
    """A process that notes its signals with their milliseconds, and a wait that moves the clock."""

    #: Waits before the end.
    left: int
    #: Seconds by which each wait takes too long.
    late_s: Sequence[float] = ()
    clock: ManualClock = field(default_factory=ManualClock)
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)
    waits: list[float | None] = field(default_factory=list)

    def send(self, number: signal.Signals) -> None:
        self.signals.append((round(1e3 * self.clock.now(), 6), number))

    def wait(self, timeout_s: float | None) -> bool:
        late_s = self.late_s[len(self.waits)] if len(self.waits) < len(self.late_s) else 0.0
        self.waits.append(timeout_s)
        self.clock.advance((timeout_s or 0.0) + late_s)
        self.left -= 1
        return self.left <= 0

    def run(self, pattern: str) -> None:
        slow_down(PATTERNS[pattern], self.send, self.wait, self.clock)


def test_a_process_runs_and_stands_still_in_turn() -> None:
    timeline = Timeline(left=5)
    timeline.run("3")
    # Ended while it stood still.
    assert timeline.signals == [(0, STOP), (2, CONTINUE), (3, STOP), (5, CONTINUE), (6, STOP), (8, CONTINUE)]


def test_late_wake_ups_do_not_add_up() -> None:
    timeline = Timeline(left=4, late_s=[0.0005, 0.0002])
    timeline.run("3")
    assert [at for at, _ in timeline.signals] == [0, 2.5, 3.2, 5, 6]


def test_after_a_wake_up_that_is_much_too_late_each_part_has_its_full_time() -> None:
    timeline = Timeline(left=4, late_s=[0.1])
    timeline.run("3")
    assert [at for at, _ in timeline.signals] == [0, 102, 103, 105, 106]


def test_one_that_is_stopped_for_good_waits_for_the_end() -> None:
    timeline = Timeline(left=1)
    timeline.run("stopped")
    assert (timeline.waits, [number for _, number in timeline.signals]) == ([None], [STOP, CONTINUE])


@pytest.mark.parametrize("waits", [1, 2])
def test_an_error_leaves_the_process_running(waits: int) -> None:
    timeline = Timeline(left=99)

    def wait(timeout_s: float | None) -> bool:
        if len(timeline.waits) == waits:
            raise RuntimeError("broken")
        return timeline.wait(timeout_s)

    with pytest.raises(RuntimeError, match="broken"):
        slow_down(PATTERNS["2"], timeline.send, wait, timeline.clock)
    assert timeline.signals[-1][1] is CONTINUE


@pytest.mark.parametrize(
    ("name", "speed"), [("2", 1 / 2), ("3", 1 / 3), ("10", 1 / 10), ("stall", 1 / 3), ("stopped", 0.0)]
)
def test_patterns_have_the_speed_of_their_names(name: str, speed: float) -> None:
    assert PATTERNS[name].speed == pytest.approx(speed)


@dataclass
class FakeWorker:
    """Notes its signals."""

    pid: int
    signals: list[signal.Signals] = field(default_factory=list)

    def send(self, number: signal.Signals) -> None:
        self.signals.append(number)


def slowdown_of(name: str | None, workers: list[FakeWorker], statuses: Sequence[Status | None]) -> Slowdown:
    slowdown = Slowdown(None if name is None else PATTERNS[name], 20, SystemClock())
    for each in statuses:
        slowdown.on_status(each, lambda role: workers)  # type: ignore[arg-type, return-value]
    slowdown.end()
    return slowdown


def test_the_last_worker_is_slowed_down_once_the_run_has_warmed_up() -> None:
    workers = [FakeWorker(11), FakeWorker(22)]
    slowdown = slowdown_of(
        "stopped", workers, [None, status(step=0), status(step=19), status(step=23), status(step=30)]
    )
    assert slowdown.begun == Begun(step=23, pid=22, process=1)
    assert [worker.signals for worker in workers] == [[], [STOP, CONTINUE]]


def test_a_run_that_is_over_before_is_left_alone() -> None:
    workers = [FakeWorker(11)]
    assert slowdown_of("stopped", workers, [status(step=19)]).begun is None
    assert workers[0].signals == []


def test_without_a_pattern_only_the_step_is_found() -> None:
    workers = [FakeWorker(11)]
    assert slowdown_of(None, workers, [status(step=20)]).begun == Begun(step=20, pid=11, process=0)
    assert workers[0].signals == []


@dataclass
class InterruptedSlowdown:
    """A slowdown that is interrupted as by Ctrl-C, once its worker is slow."""

    slowdown: Slowdown
    children: list[WatchedProcess] = field(default_factory=list)

    def on_status(self, found: Status | None, processes: ProcessesOf) -> None:
        self.slowdown.on_status(found, processes)
        if self.slowdown.begun is not None:
            self.children = [*processes(Role.SERVER), *processes(Role.WORKER)]
            raise KeyboardInterrupt

    def end(self) -> None:
        self.slowdown.end()


def test_nobody_is_left_after_an_interrupt_while_a_worker_stands_still(tmp_path: Path) -> None:
    job, _ = resolve({"model": "linear", "global_batch": 8, "micro_batches": 2, "epochs": 1000}, {})
    slowdown = InterruptedSlowdown(Slowdown(PATTERNS["stopped"], 1, SystemClock()))
    with pytest.raises(KeyboardInterrupt):
        BenchSession(tmp_path, Console()).run(job, RunOptions(workers=2), slowdown)
    assert list(tmp_path.iterdir()) == []
    assert len(slowdown.children) == 3
    for child in slowdown.children:
        assert child.has_ended()
        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)

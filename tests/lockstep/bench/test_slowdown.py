"""A duty cycle stops and continues a process in time, and in the end the process runs, whatever happened."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from lockstep.bench.straggler import PATTERNS, Begun, Slowdown, slow_down
from lockstep.bench.timed_run import BenchSession
from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock, SystemClock
from lockstep.launch.chaos import RunProcesses
from lockstep.launch.supervision.child import WatchedProcess
from lockstep.launch.supervision.supervisor import Role
from lockstep.runs.job_file import resolve
from tests.lockstep.statuses import status

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
        slowdown.on_status(each, {Role.WORKER: workers})  # type: ignore[dict-item]
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

    def on_status(self, found: Status | None, processes: RunProcesses) -> None:
        self.slowdown.on_status(found, processes)
        if self.slowdown.begun is not None:
            self.children = [*processes[Role.SERVER], *processes[Role.WORKER]]
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

"""The coordinator leads simulated workers to the end of a run, and an event costs the same for any number of them."""

import sys
from pathlib import Path
from types import FrameType

import msgspec
import pytest
from rich.console import Console

from lockstep.bench.coordinator import CoordinatorBench, CoordinatorRow, SimulatedWorkers
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.main import run
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.coordinator.transitions import RunPhase


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_a_crowd_finishes_its_run(workers: int) -> None:
    crowd = SimulatedWorkers(workers, 4 * workers, 3, ManualClock())
    while not crowd.coordinator.is_over():
        crowd.turn()
        crowd.coordinator.validate()
    assert crowd.coordinator.phase is RunPhase.FINISHED
    assert crowd.coordinator.progress.samples == 3 * 4 * workers
    assert crowd.coordinator.membership.most_prepared == workers


def test_slow_workers_do_less_and_nobody_waits_long() -> None:
    crowd = SimulatedWorkers(8, 64, 5, ManualClock())
    crowd.run()
    split = crowd.coordinator.progress.last_step
    assert split.slowest_s < 1.2 * split.mean_s
    # Eight micro-batches each at the mean speed, and one more at most.
    assert crowd.now < 1.0 + 5 * (8 * 0.011 + 0.012 + 0.001)


class OpcodeCount:
    """Counts the instructions of all functions that are entered: a measure of work that no other process disturbs."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> "OpcodeCount":
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self


def opcodes_per_event(workers: int) -> float:
    # What is found once for a shape of the tree is known after the first run.
    SimulatedWorkers(workers, 2 * workers, 2, ManualClock()).run()
    crowd = SimulatedWorkers(workers, 2 * workers, 2, ManualClock())
    while not crowd.coordinator.is_running():
        crowd.turn()
    before, opcodes = sys.gettrace(), OpcodeCount()
    sys.settrace(opcodes)
    try:
        crowd.run()
    finally:
        sys.settrace(before)
    return opcodes.count / crowd.handled


def test_an_event_costs_the_same_for_any_number_of_workers() -> None:
    # It was 3.1 times as much while each event looked through all workers.
    assert opcodes_per_event(64) < 1.3 * opcodes_per_event(8)


def test_rows_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, plot_file = tmp_path / "rows.json", tmp_path / "rows.png"
    flags = ["--workers", "1,4", "--steps", "2", "--to", str(json_file), "--plot", str(plot_file)]
    assert run(["bench", "coordinator", *flags]) == 0
    one, four = msgspec.json.decode(json_file.read_bytes(), type=list[CoordinatorRow])
    assert [(row.workers, row.micro_batches, row.steps) for row in (one, four)] == [(1, 4, 2), (4, 16, 2)]
    assert one.growth == 1.0
    assert four.growth == pytest.approx(four.us_per_event / one.us_per_event)
    assert four.ms_per_step == pytest.approx(four.us_per_event * four.events / 2 / 1e3)
    assert plot_file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_job_has_no_more_micro_batches_than_it_may_have(tmp_path: Path) -> None:
    session = BenchSession(tmp_path, Console(), ManualClockThatMoves())
    (row,) = CoordinatorBench(workers=(2,), micro_batches_per_worker=4096, steps=1).measure(session)
    assert row.micro_batches == 4096


class ManualClockThatMoves(ManualClock):
    """A clock that is read at another time each time."""

    def now(self) -> float:
        self.advance(0.001)
        return super().now()

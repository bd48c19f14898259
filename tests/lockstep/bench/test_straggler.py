"""The straggler bench: what counts of a run, how cases are compared, and one short bench for real."""

from pathlib import Path

import msgspec
import pytest

from lockstep.bench.bench import heading, line
from lockstep.bench.peers import WARM_UP
from lockstep.bench.straggler import Begun, StragglerBench, StragglerRow, Turn, ratios_of, turn_of
from lockstep.bench.timed_run import TimedRun
from lockstep.cli.main import run
from lockstep.common.errors import RunError
from lockstep.ps.records.ledger import LedgerShare, Line, RunBegun, StepDone, UnusedWork, WorkerIn
from lockstep.ps.records.metrics import StepRecord
from tests.lockstep.statuses import result

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
    flags = ["--batch", "32", "--micro-batches", "4", "--cases", "stopped", "--steps", "30", "--rounds", "1"]
    assert run(["bench", "straggler", *flags, "--to", str(json_file), "--plot", str(plot_file)]) == 0
    rows = msgspec.json.decode(json_file.read_bytes(), type=list[StragglerRow])
    assert [(row.case, row.workers, row.speed) for row in rows] == [
        ("alone", 1, 0.0),
        ("all", 2, 1.0),
        ("stopped", 2, 0.0),
    ]
    for row in rows:
        assert 0 < row.steps <= 30
        assert row.images_per_s == pytest.approx(32 / row.ms_per_step * 1e3)
        assert row.micro_batches_of_fast + (row.micro_batches_of_slow or 0.0) == pytest.approx(4)
    # The bits do not depend on who is slow.
    assert len({row.weights_sha256 for row in rows}) == 1
    assert plot_file.read_bytes().startswith(PNG)
    assert capsys.readouterr().out.splitlines()[0] == heading(StragglerRow)

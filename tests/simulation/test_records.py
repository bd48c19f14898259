"""What a run records and leaves behind is what one process records, with one server or three, whoever computes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.ledger import EpochDone, Line, RunBegun, StepDone, UnusedWork, WorkerIn, read_lines
from lockstep.ps.records.metrics import EpochRecord, StepRecord, read_metrics
from lockstep.ps.records.receipt import Receipt
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RunFolder, RunResult, read_result
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
from tests.simulation.small import digits, job_of

#: An epoch and a step; weights for three servers, all of which clipping needs.
JOB = job_of(model="mlp", steps=4, micro_batches=8, momentum=0.9, clip_norm=1.0)

#: What of a result depends on who computed it, and on how long that took.
FREE = (
    *("workers", "servers", "transport", "obstacle", "moved", "split"),
    *("wall_s", "train_s", "images_per_s", "compute_s", "update_s"),
)

#: The same of the line of a step, and of that of an epoch.
FREE_OF_A_STEP = ("round_s", "mean_s", "slowest_s", "update_s", "sums_bytes", "weights_bytes")
FREE_OF_AN_EPOCH = ("wall_s",)

#: Virtual seconds at which the server starts: clocks do not begin at zero.
STARTED_S = 7000.0


@dataclass(frozen=True)
class Records:
    """What a folder says, without what may differ."""

    #: By step, which micro-batches were counted, their losses, and the checksum of the weights.
    steps: dict[int, tuple[list[int], bytes, int]]
    epochs: list[EpochDone]
    begun: list[RunBegun]
    receipt: Receipt
    result: dict[str, Any]
    metrics: list[dict[str, Any]]


def records_in(folder: Path) -> Records:
    lines = lines_in(folder)
    steps = [line for line in lines if isinstance(line, StepDone)]
    assert len({line.step for line in steps}) == len(steps), "a step is there twice"
    metrics = read_metrics(folder)
    result: RunResult = read_result(folder)
    without = {name: value for name, value in msgspec.to_builtins(result).items() if name not in FREE}
    without["history"] = [figures(epoch) for epoch in result.history]
    return Records(
        steps={line.step: (counted(line), line.losses, line.checksum) for line in steps},
        epochs=[line for line in lines if isinstance(line, EpochDone)],
        begun=[line for line in lines if isinstance(line, RunBegun)],
        receipt=msgspec.json.decode((folder / RECEIPT).read_bytes(), type=Receipt),
        result=without,
        metrics=[*map(figures, metrics.steps), *map(figures, metrics.epochs)],
    )


def lines_in(folder: Path) -> list[Line]:
    return read_lines((folder / LEDGER).read_bytes(), LEDGER)


def counted(line: StepDone) -> list[int]:
    """Return the micro-batches of a step, each as often as it was counted."""
    return sorted(micro_batch for share in line.shares for micro_batch in range(share.lo, share.hi))


def figures(record: StepRecord | EpochRecord) -> dict[str, Any]:
    free = FREE_OF_A_STEP if isinstance(record, StepRecord) else FREE_OF_AN_EPOCH
    return {name: value for name, value in msgspec.to_builtins(record).items() if name not in free}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """Return the records of one process: the oracle."""
    folder = tmp_path_factory.mktemp("alone")
    opening = open_run("simulation", JOB, digits(), AdmissionPolicy())
    setting = Setting(servers=0, transport="none", started=0.0)
    recorder = MetricsRecorder(opening.info, setting, opening.layout, RunFolder(folder))
    recorder.begin(opening.shard.digest())
    SerialRun(opening, recorder, ManualClock(), lambda status: None).train()
    return records_in(folder)


def simulated(folder: Path, servers: int, *, workers: int, root: Path | None, job: Job = JOB) -> Simulation:
    folder.mkdir()
    admission = AdmissionPolicy(min_workers=workers, servers=servers, lease_timeout_s=5.0)
    clock = ManualClock()
    clock.advance(STARTED_S)
    return Simulation(job, 5 + servers, admission, folder=RunFolder(folder), root=root, clock=clock)


@pytest.mark.parametrize(("story", "shares"), [("calm", False), ("twice", True), ("dies", True), ("late", False)])
@pytest.mark.parametrize("servers", [1, 3])
def test_a_run_records_what_one_process_does_and_leaves_nothing_behind(
    tmp_path: Path, expected: Records, servers: int, story: str, shares: bool
) -> None:
    root = tmp_path / "memory" if shares else None
    if root is not None:
        root.mkdir()
    simulation = simulated(tmp_path / "run", servers, workers=3, root=root)
    first = simulation.add_worker(doubles=story == "twice")
    for _ in range(2):
        simulation.add_worker(doubles=story == "twice")
    simulation.run_to(1)
    if story == "dies":
        first.die()
    elif story == "late":
        first.is_hanging = True
        simulation.run_to(2)
        first.is_hanging = False
    simulation.finish()
    simulation.recorder.close()
    assert records_in(tmp_path / "run") == expected
    members = [line.rank for line in lines_in(tmp_path / "run") if isinstance(line, WorkerIn)]
    assert members[:3] == [0, 1, 2]
    simulation.check_released()
    if simulation.sharing is not None:
        simulation.sharing.close()
    assert root is None or list(root.iterdir()) == []
    result = simulation.recorder.result
    assert result is not None
    # In virtual time: all of it since the server's start, and training within it.
    assert 0.0 < result.train_s <= result.wall_s <= simulation.clock.now() - STARTED_S
    assert [epoch.wall_s for epoch in result.history] == sorted(epoch.wall_s for epoch in result.history)


def test_micro_batches_of_a_worker_that_died_are_listed_and_counted_once(tmp_path: Path, expected: Records) -> None:
    simulation = simulated(tmp_path / "run", 3, workers=2, root=None)
    first, _ = simulation.add_worker(), simulation.add_worker()
    simulation.run(until=lambda: bool(first.runner.state.leases))
    first.die()
    simulation.finish()
    simulation.recorder.close()
    again = [line for line in lines_in(tmp_path / "run") if isinstance(line, UnusedWork)]
    assert {(line.step, line.rank) for line in again} == {(0, again[0].rank)}
    assert records_in(tmp_path / "run") == expected

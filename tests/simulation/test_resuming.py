"""A run that stops anywhere and resumes, with other workers and servers or none, is the run that never stopped."""

from functools import cache
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common import nn
from lockstep.common.data.dataset import TrainTest
from lockstep.common.errors import DataError, FileFormatError, JobError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.nn.description import describe
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.recorder import Setting
from lockstep.ps.records.run_folder import CHECKPOINTS, LEDGER, RESULT
from lockstep.ps.setup import RunSetup, open_run
from lockstep.runs.run_dir import has_begun
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run, violations
from tests.simulation.small import digits, job_of, noisy_net, other_digits

#: Seven steps, three an epoch; all that could depend on where it stopped: momenta, statistics, dropout, a schedule,
#: rounding at random, and the difference between the weights that are kept and those that are sent.
JOB = job_of(
    model=noisy_net(),
    steps=7,
    global_batch=18,
    micro_batches=3,
    optimizer="adam",
    lr=0.01,
    clip_norm=0.5,
    max_shift=1,
    schedule="one-cycle",
    wire="int8",
    wire_weights="bfloat16",
)

#: Of a vector that can be cut into three slices, with slots of the optimizer and clipping.
CUT = job_of(
    model=dict(describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 14), nn.ReLU(), nn.Linear(14, 10)))),
    steps=6,
    global_batch=18,
    micro_batches=3,
    optimizer="adamw",
    lr=0.01,
    clip_norm=0.5,
)

OPTIONS = RunOptions(checkpoint_keep=3, checkpoint_every_steps=1)


class StoppedError(BaseException):
    """What stops a run as SIGKILL does: nothing is tidied up that a killed process would not tidy up."""


def run(folder: Path, workers: int, servers: int = 1, *, job: Job = JOB, stop_at: int | None = None) -> list[str]:
    """Carry out a run, or a part of it up to a number of steps, from where it is; return what was said."""
    if workers == 0:
        return run_alone(folder, open_run("simulated", job, digits(), RunOptions()), stop_at)
    options = msgspec.structs.replace(OPTIONS, min_workers=workers, servers=servers)
    with Simulation(job, servers + 10 * workers, options, folder=folder) as simulation:
        for _ in range(workers):
            simulation.add_worker()
        simulation.run(until=lambda: stop_at is not None and simulation.server.shard.updates >= stop_at)
        assert stop_at is not None or simulation.finish()
    return simulation.said


def run_alone(folder: Path, opening: RunSetup, stop_at: int | None = None) -> list[str]:
    """Carry out a run in one process."""
    said, clock = list[str](), ManualClock()
    setting = Setting(transport="memory", started=0.0)
    destination = Destination(folder=folder, options=OPTIONS, is_resumed=has_begun(folder))
    session = open_session(opening, setting, destination, clock, said.append)

    def watch(status: object) -> None:
        if opening.shard.updates == stop_at:
            raise StoppedError

    try:
        SerialRun(opening, session.recorder, clock, watch, session.start, session.checkpointer).train()
    except StoppedError:
        return said
    finally:
        session.recorder.close()
    return said


@cache
def alone(is_cut: bool = False) -> RunRecords:
    return reference_run(CUT if is_cut else JOB, digits())


def prove(folder: Path, job: Job = JOB) -> None:
    assert list(violations(job, digits(), folder, alone(is_cut=job is CUT))) == []


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_stopping_after_any_step_changes_nothing(tmp_path: Path, stop_at: int) -> None:
    before, after = [(0, 2), (2, 0), (3, 1)][stop_at % 3]
    run(tmp_path, before, stop_at=stop_at)
    assert not (tmp_path / RESULT).exists()
    said = run(tmp_path, after)
    assert any(f"resumes after step {stop_at} of 7" in text for text in said)
    prove(tmp_path)


@pytest.mark.parametrize("stop_at", range(1, 6))
def test_other_servers_change_nothing(tmp_path: Path, stop_at: int) -> None:
    before, after = [((2, 1), (1, 2)), ((1, 2), (3, 1)), ((2, 3), (1, 2))][stop_at % 3]
    run(tmp_path, *before, job=CUT, stop_at=stop_at)
    assert not (tmp_path / RESULT).exists()
    run(tmp_path, *after, job=CUT)
    prove(tmp_path, CUT)


@pytest.mark.parametrize("job", [JOB, CUT], ids=["workers", "servers"])
def test_stopping_after_every_step_changes_nothing(tmp_path: Path, job: Job) -> None:
    for stop_at in range(1, (job.steps or 0)):
        run(tmp_path, stop_at % 3, 1 + (stop_at % 3 if job is CUT else 0), job=job, stop_at=stop_at)
    run(tmp_path, 1, job=job)
    prove(tmp_path, job)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    run(tmp_path, 0, stop_at=5)
    damaged = tmp_path / CHECKPOINTS / "step-00000005.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    said = run(tmp_path, 2)
    assert str(damaged) in said[0]
    assert "resumes after step 4 of 7" in said[1]
    prove(tmp_path)
    assert '"step":4,"weights_sha256"' in (tmp_path / LEDGER).read_text()
    assert '"lost_steps":1' in (tmp_path / LEDGER).read_text()


@pytest.mark.parametrize("damage", ["all are damaged", "there is none"])
def test_without_a_whole_checkpoint_a_run_begins_anew(tmp_path: Path, damage: str) -> None:
    run(tmp_path, 0, stop_at=2)
    for file in (tmp_path / CHECKPOINTS).iterdir():
        if damage == "there is none":
            file.unlink()
        else:
            file.write_bytes(b"x" * 100)
    said = run(tmp_path, 1)
    assert any(text.startswith("notice: starts over: ") for text in said)
    prove(tmp_path)
    assert '"lost_steps":2' in (tmp_path / LEDGER).read_text().splitlines()[0]


def opening_of(job: Job = JOB, data: TrainTest | None = None) -> RunSetup:
    return open_run("simulated", job, data or digits(), RunOptions())


def test_what_is_not_the_runs_is_refused_with_both_named(tmp_path: Path) -> None:
    run(tmp_path, 0, stop_at=2)
    with pytest.raises(JobError, match=r"to another job: lr = 0\.01 in the run, 0\.02 here"):
        run_alone(tmp_path, opening_of(msgspec.structs.replace(JOB, lr=0.02)))
    with pytest.raises(DataError, match="has changed since"):
        run_alone(tmp_path, opening_of(data=other_digits()))
    opening = opening_of()
    odd = replace(opening.info, source="0" * 64)
    with pytest.raises(UsageError, match="the file of model"):
        run_alone(tmp_path, replace(opening, info=odd))


@pytest.mark.parametrize("name", [METRICS, LEDGER])
def test_lines_that_are_gone_are_told(tmp_path: Path, name: str) -> None:
    run(tmp_path, 0, stop_at=3)
    lines = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(lines[: len(lines) // 2])
    with pytest.raises(FileFormatError, match="put the run's own file back"):
        run(tmp_path, 0)


def test_a_run_that_goes_on_is_nobody_elses(tmp_path: Path) -> None:
    with Simulation(JOB, folder=tmp_path), pytest.raises(UsageError, match="is in use by a run that is not over"):
        run(tmp_path, 0)

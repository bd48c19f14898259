"""A run that stops anywhere and goes on, with other workers or none, is the run that never stopped."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import DataError, FileFormatError, JobError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.checkpoint.resuming import coordinator_of
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.recorder import Setting
from lockstep.ps.records.run_folder import CHECKPOINTS, LEDGER, RESULT
from lockstep.ps.server.server import Server
from lockstep.ps.setup import AdmissionPolicy, RunSetup, open_run
from lockstep.runs.launch_config import Launch
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
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

#: What may differ: times, and how many computed.
FREE = (
    "wall_s",
    "train_s",
    "images_per_s",
    "compute_s",
    "update_s",
    "split",
    "workers",
    "servers",
    "transport",
    "moved",
)


def opening_of(job: Job = JOB) -> RunSetup:
    return open_run("run", job, digits(), AdmissionPolicy())


def destination_in(folder: Path, *, is_resumed: bool, every_steps: int = 1, keep: int = 3) -> Destination:
    launch = Launch(checkpoint_keep=keep, checkpoint_every_steps=every_steps)
    return Destination(folder=folder, launch=launch, is_resumed=is_resumed)


class StoppedError(BaseException):
    """What stops a run as SIGKILL does: nothing is tidied up that a killed process would not tidy up."""


def run(
    folder: Path, workers: int, *, is_resumed: bool, stop_at: int | None = None, opening: RunSetup | None = None
) -> list[str]:
    """Carry out a run, or a part of it up to a number of steps; return what was said."""
    opening, said = opening or opening_of(), list[str]()
    setting = Setting(servers=1, transport="memory", started=0.0)
    destination = destination_in(folder, is_resumed=is_resumed)
    if workers == 0:
        clock = ManualClock()
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
    simulation = Simulation(opening.info.job, admission=AdmissionPolicy(min_workers=workers))
    session = open_session(opening, setting, destination, simulation.clock, said.append)
    simulation.server = Server(
        coordinator_of(replace(opening.info, min_workers=workers), session.start),
        opening,
        session.recorder,
        simulation.server.port,
        simulation.clock,
        said.append,
        checkpointer=session.checkpointer,
    )
    for _ in range(workers):
        simulation.add_worker()
    simulation.run(until=lambda: stop_at is not None and opening.shard.updates >= stop_at)
    session.recorder.close()
    return said


def bits(folder: Path) -> dict[str, Any]:
    """Return the result and the lines of metrics, without times."""
    result = {key: value for key, value in json.loads((folder / RESULT).read_text()).items() if key not in FREE}
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for record in (*result["history"], *lines):
        for key in [key for key in record if key.endswith(("_s", "_bytes"))]:
            del record[key]
    return {"result": result, "lines": lines}


@cache
def calm(root: Path) -> dict[str, Any]:
    folder = root / "run"
    folder.mkdir()
    run(folder, 0, is_resumed=False)
    return bits(folder)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return calm(tmp_path_factory.mktemp("calm"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.mark.parametrize("stop_at", range(1, 8))
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (3, 1)])
def test_stopping_after_any_step_changes_nothing(
    folder: Path, expected: dict[str, Any], stop_at: int, before: int, after: int
) -> None:
    run(folder, before, is_resumed=False, stop_at=stop_at)
    assert not (folder / RESULT).exists()
    said = run(folder, after, is_resumed=True)
    assert any(f"resumes after step {stop_at} of 7" in text for text in said)
    assert bits(folder) == expected


def test_stopping_after_every_step_changes_nothing(folder: Path, expected: dict[str, Any]) -> None:
    for stop_at in range(1, 8):
        run(folder, stop_at % 3, is_resumed=stop_at > 1, stop_at=stop_at)
    run(folder, 1, is_resumed=True)
    assert bits(folder) == expected


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(folder: Path, expected: dict[str, Any]) -> None:
    run(folder, 0, is_resumed=False, stop_at=5)
    damaged = folder / CHECKPOINTS / "step-00000005.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    said = run(folder, 2, is_resumed=True)
    assert str(damaged) in said[0]
    assert "resumes after step 4 of 7" in said[1]
    assert bits(folder) == expected
    assert '"step":4,"weights_sha256"' in (folder / LEDGER).read_text()
    assert '"lost_steps":1' in (folder / LEDGER).read_text()


@pytest.mark.parametrize("damage", ["all are damaged", "there is none"])
def test_without_a_whole_checkpoint_a_run_begins_anew(folder: Path, expected: dict[str, Any], damage: str) -> None:
    run(folder, 0, is_resumed=False, stop_at=2)
    for file in (folder / CHECKPOINTS).iterdir():
        if damage == "there is none":
            file.unlink()
        else:
            file.write_bytes(b"x" * 100)
    said = run(folder, 1, is_resumed=True)
    assert any(text.startswith("notice: starts over: ") for text in said)
    assert bits(folder) == expected
    assert '"lost_steps":2' in (folder / LEDGER).read_text().splitlines()[0]


def test_what_is_not_the_runs_is_refused_with_both_named(folder: Path) -> None:
    run(folder, 0, is_resumed=False, stop_at=2)
    other_job = open_run("run", job_of(**{**vars_of(JOB), "lr": 0.02}), digits(), AdmissionPolicy())
    with pytest.raises(JobError, match=r"to another job: lr = 0\.01 in the run, 0\.02 here"):
        run(folder, 0, is_resumed=True, opening=other_job)
    other_data = open_run("run", JOB, other_digits(), AdmissionPolicy())
    with pytest.raises(DataError, match="has changed since"):
        run(folder, 0, is_resumed=True, opening=other_data)
    opening = opening_of()
    odd = replace(opening.info, source="0" * 64)
    with pytest.raises(UsageError, match="the file of model"):
        run(folder, 0, is_resumed=True, opening=replace(opening, info=odd))


def vars_of(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in job.__struct_fields__}


@pytest.mark.parametrize("name", [METRICS, LEDGER])
def test_lines_that_are_gone_are_told(folder: Path, name: str) -> None:
    run(folder, 0, is_resumed=False, stop_at=3)
    lines = (folder / name).read_bytes()
    (folder / name).write_bytes(lines[: len(lines) // 2])
    with pytest.raises(FileFormatError, match="put the run's own file back"):
        run(folder, 0, is_resumed=True)


def test_a_run_that_goes_on_is_nobody_elses(folder: Path) -> None:
    opening, setting = opening_of(), Setting(servers=1, transport="memory", started=0.0)
    session = open_session(opening, setting, destination_in(folder, is_resumed=False), ManualClock(), lambda text: None)
    with pytest.raises(UsageError, match="is in use by a run that is not over"):
        run(folder, 0, is_resumed=True)
    session.recorder.close()

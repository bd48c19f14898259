"""A run that stops early, of itself or because callbacks say so: at the same step and bits, whoever computes."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import CallbackDecision, EpochRecord
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.recorder import NO_TRANSPORT, MetricsRecorder, Setting
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, RunResult
from lockstep.ps.setup import open_run
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run, violations
from tests.simulation.small import JOBS, digits, job_of
from tests.simulation.test_resuming import run

JOB = JOBS["stopped"]


def alone(job: Job, **values: Any) -> RunResult:
    """Return what one process without any transport comes to."""
    opening = open_run("alone", job, digits(), RunOptions(pause="is_to_stop" in values))
    recorder = MetricsRecorder(opening.info, Setting(transport=NO_TRANSPORT, started=0.0), opening.layout, None)
    return SerialRun(opening, recorder, ManualClock(), lambda status: None, **values).train()


@cache
def reference() -> RunRecords:
    return reference_run(JOB, digits())


def expected() -> RunResult:
    return reference().result


def timeless(result: RunResult) -> list[EpochRecord]:
    """Return the history without times."""
    names = EpochRecord.__struct_fields__
    figures = ({name: getattr(epoch, name) for name in names} for epoch in result.history)
    return [EpochRecord(**{**epoch, "wall_s": 0.0}) for epoch in figures]


def test_what_the_job_comes_to() -> None:
    result = expected()
    losses = [epoch.val_loss for epoch in result.history if epoch.val_loss is not None]
    assert (len(losses), result.steps, result.weights_epoch) == (6, 12, 4)
    assert min(losses) == losses[3]
    assert result.weights_sha256 == result.history[3].weights_sha256 != result.history[5].weights_sha256
    assert (result.test_loss, result.train_loss) == (result.history[3].test_loss, result.history[3].loss)
    assert result.stopped == "val_loss did not improve for 2 epochs"


def test_without_patience_it_goes_on_and_without_keeping_ends_with_the_last() -> None:
    patient = alone(job_of(model="linear", steps=None, epochs=7, lr=0.002, validation_split=0.25))
    assert (len(patient.history), patient.weights_epoch, patient.stopped) == (7, 7, "")
    assert timeless(patient)[:6] == timeless(expected())


@pytest.mark.parametrize(("workers", "servers"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_any_number_of_workers_stops_at_the_same_step(workers: int, servers: int) -> None:
    simulation = Simulation(JOB, workers, RunOptions(min_workers=workers, servers=servers))
    for _ in range(workers):
        simulation.add_worker()
    simulation.prove(reference())
    result = simulation.result()
    assert (result.steps, result.weights_epoch, result.stopped) == (12, 4, expected().stopped)


def test_a_worker_that_dies_in_a_validation_costs_nothing() -> None:
    simulation = Simulation(JOB, 4, RunOptions(min_workers=2))
    for _ in range(2):
        simulation.add_worker()
    simulation.run(until=lambda: simulation.server.coordinator.round.work == "validate")
    simulation.workers[0].die()
    simulation.prove(reference())


# Resumed


@pytest.mark.parametrize("stop_at", [1, 4, 7, 8, 9, 11])
def test_a_run_that_resumes_ends_with_the_best_of_both_parts(tmp_path: Path, stop_at: int) -> None:
    run(tmp_path, stop_at % 3, job=JOB, stop_at=stop_at)
    assert not (tmp_path / RESULT).exists()
    run(tmp_path, (stop_at + 1) % 3, job=JOB)
    assert list(violations(JOB, digits(), tmp_path, reference())) == []


def test_without_the_best_weights_it_resumes_from_before_them(tmp_path: Path) -> None:
    run(tmp_path, 0, job=JOB, stop_at=11)
    (tmp_path / CHECKPOINTS / "step-00000008.safetensors").unlink()
    said = run(tmp_path, 1, job=JOB)
    assert sum("the best epoch's weights are gone: using the one before it" in text for text in said) == 3
    assert any("starts over: " in text for text in said)
    assert list(violations(JOB, digits(), tmp_path, reference())) == []


# Callbacks

PLAIN = job_of(model="linear", steps=None, epochs=4)


def paused(workers: int, servers: int = 1, folder: Path | None = None) -> Simulation:
    """Return a run that waits for callbacks after its first epoch."""
    simulation = Simulation(PLAIN, workers, RunOptions(min_workers=workers, servers=servers, pause=True))
    for _ in range(workers):
        simulation.add_worker()
    wait_for_pause(simulation)
    return simulation


def wait_for_pause(simulation: Simulation) -> None:
    simulation.run(until=lambda: simulation.server.coordinator.phase is RunPhase.PAUSED)


def tell(simulation: Simulation, epoch: int, *, stops: bool) -> None:
    """Let an observer say what callbacks say."""
    simulation.network.client().send(encode(CallbackDecision(epoch=epoch, stops=stops)))
    simulation.run_until_quiet()


def test_in_a_pause_nothing_is_computed_and_everybody_is_answered() -> None:
    simulation = paused(2)
    steps = simulation.opening.shard.updates
    simulation.add_worker()
    simulation.wait(300)
    simulation.run_until_quiet()
    assert simulation.opening.shard.updates == steps == 3
    assert simulation.server.coordinator.phase is RunPhase.PAUSED
    assert simulation.server.coordinator.status(simulation.world.now).phase == "waiting for callbacks"


@pytest.mark.parametrize(
    ("workers", "servers", "stop_after"), [(1, 1, 1), (3, 1, 2), (2, 2, 3), (2, 2, 1), (2, 1, None)]
)
def test_a_run_ends_after_the_epoch_that_callbacks_name(workers: int, servers: int, stop_after: int | None) -> None:
    simulation, epoch = paused(workers, servers), 1
    while not simulation.server.ended and epoch < PLAIN.epochs:
        tell(simulation, epoch, stops=epoch == stop_after)
        epoch += 1
        wait_for_pause(simulation)
    simulation.finish()
    result, truth = simulation.result(), alone(replace_epochs(stop_after or PLAIN.epochs))
    assert timeless(result) == timeless(truth)
    assert result.weights_sha256 == truth.weights_sha256
    assert result.steps == 3 * (stop_after or PLAIN.epochs)
    assert result.stopped == ("" if stop_after is None else f"a callback stopped it after epoch {stop_after}")


def replace_epochs(epochs: int) -> Job:
    return job_of(model="linear", steps=None, epochs=epochs)


def test_one_process_stops_there_too() -> None:
    result = alone(PLAIN, is_to_stop=lambda history: len(history) == 2)
    assert result.weights_sha256 == alone(replace_epochs(2)).weights_sha256
    assert result.stopped == "a callback stopped it after epoch 2"


def test_a_verdict_on_another_epoch_is_not_heard() -> None:
    simulation = paused(1)
    tell(simulation, 7, stops=True)
    assert simulation.server.coordinator.phase is RunPhase.PAUSED
    tell(simulation, 1, stops=False)
    tell(simulation, 1, stops=True)  # twice, and late: the second epoch is on its way
    wait_for_pause(simulation)
    assert len(simulation.recorder.history) == 2


def test_a_verdict_where_nobody_waits_for_one_is_not_heard() -> None:
    simulation = Simulation(PLAIN)
    simulation.add_worker()
    simulation.run_to(3)
    tell(simulation, 1, stops=True)
    assert simulation.finish() == alone(PLAIN).weights_sha256

"""THE PROMISE: one job, one digest, whoever computed it, in whatever order, whoever came or went meanwhile."""

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation, digest_with
from tests.simulation.small import JOBS, digits, long_test_set


@cache
def alone(name: str) -> RunResult:
    """Return the result of one process without any transport: the oracle."""
    opening = open_run("alone", JOBS[name], digits(), AdmissionPolicy())
    setting = Setting(servers=0, transport="none", started=0.0)
    recorder = MetricsRecorder(opening.info, setting, opening.layout, None)
    return SerialRun(opening, recorder, ManualClock(), lambda status: None).train()


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_any_number_of_workers_gives_the_bits_of_one_process(name: str, workers: int) -> None:
    assert digest_with(JOBS[name], workers, seed=workers) == alone(name).weights_sha256


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["linear", "noisy", "short"])
def test_any_order_of_arrival_gives_the_same_bits(name: str, seed: int) -> None:
    assert digest_with(JOBS[name], 3, seed=100 + seed) == alone(name).weights_sha256


def test_more_workers_than_micro_batches_give_the_same_bits() -> None:
    simulation = Simulation(JOBS["linear"], 5, AdmissionPolicy(min_workers=10))
    for _ in range(10):
        simulation.add_worker()
    assert simulation.finish() == alone("linear").weights_sha256
    assert len([text for text in simulation.heard if "4 micro-batches keep 4 workers busy" in text]) == 6


def test_losses_and_accuracies_are_the_same_too() -> None:
    simulation = Simulation(JOBS["noisy"], 9, AdmissionPolicy(min_workers=3))
    for _ in range(3):
        simulation.add_worker()
    simulation.finish()
    result, expected = simulation.recorder.result, alone("noisy")
    assert result is not None
    timeless = [(e.epoch, e.loss, e.accuracy, e.test_loss, e.test_accuracy, e.weights_sha256) for e in result.history]
    assert timeless == [
        (e.epoch, e.loss, e.accuracy, e.test_loss, e.test_accuracy, e.weights_sha256) for e in expected.history
    ]
    assert len(timeless) == 2


def test_the_jobs_give_different_bits_and_so_do_their_seeds() -> None:
    digests = {alone(name).weights_sha256 for name in JOBS}
    assert len(digests) == len(JOBS)


@pytest.mark.parametrize("name", ["linear", "noisy"])
def test_a_worker_that_comes_late_changes_nothing(name: str) -> None:
    simulation = Simulation(JOBS[name], 1)
    simulation.add_worker()
    simulation.run_to(1)
    simulation.add_worker()
    simulation.run_to(2)
    simulation.add_worker(doubles=True)
    assert simulation.finish() == alone(name).weights_sha256
    assert [worker.samples for worker in simulation.server.coordinator.status(0.0).workers].count(0) < 2


def digest_with_evaluation_by(late: int) -> str:
    """Return the digest of a run whose first worker dies in the evaluation, where there are `late` others."""
    simulation = Simulation(JOBS["linear"], 4, data=long_test_set)
    simulation.add_worker()
    simulation.run(until=lambda: simulation.server.coordinator.round.work == "evaluate")
    for _ in range(late):
        simulation.workers[0].die()
        simulation.add_worker()
    return simulation.finish()


def test_workers_that_come_during_an_evaluation_take_part_in_it() -> None:
    assert digest_with_evaluation_by(late=2) == digest_with_evaluation_by(late=0)


def interrupt(simulation: Simulation, place: int) -> None:
    simulation.workers[place].runner.interrupt()


def kill(simulation: Simulation, place: int) -> None:
    simulation.workers[place].die()


def hang(simulation: Simulation, place: int) -> None:
    simulation.workers[place].is_hanging = True


@pytest.mark.parametrize("end", [interrupt, kill, hang])
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_that_ends_in_the_middle_changes_nothing(end: Callable[[Simulation, int], None], seed: int) -> None:
    simulation = Simulation(JOBS["noisy"], seed, AdmissionPolicy(min_workers=3))
    for _ in range(3):
        simulation.add_worker()
    simulation.run_to(1)
    end(simulation, seed % 3)
    assert simulation.finish() == alone("noisy").weights_sha256


def test_when_all_die_the_run_waits_for_others() -> None:
    simulation = Simulation(JOBS["linear"], 2, AdmissionPolicy(min_workers=2))
    for _ in range(2):
        simulation.add_worker()
    simulation.run_to(2)
    for worker in simulation.workers:
        worker.die()
    simulation.run(until=lambda: any("none is left" in text for text in simulation.said))
    simulation.add_worker()
    assert simulation.finish() == alone("linear").weights_sha256


def test_a_worker_that_hangs_and_comes_back_changes_nothing() -> None:
    simulation = Simulation(JOBS["linear"], 3, AdmissionPolicy(min_workers=2))
    hanging, other = simulation.add_worker(), simulation.add_worker()
    simulation.run_to(1)
    hanging.is_hanging = True
    simulation.run(until=lambda: any("leased again" in text for text in simulation.said))
    hanging.is_hanging, other.is_hanging = False, True
    simulation.run_to(3)
    other.is_hanging = False
    assert simulation.finish() == alone("linear").weights_sha256
    simulation.drain()
    assert hanging.runner.ended == other.runner.ended
    assert hanging.runner.ended is not None
    assert hanging.runner.ended.code == 0


ACTIONS = st.sampled_from(["add", "add", "double", "kill", "hang", "wake", "interrupt"])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 60), ACTIONS, st.integers(0, 9)), max_size=12))
def test_whatever_happens_to_workers_changes_nothing(seed: int, story: list[tuple[int, str, int]]) -> None:
    simulation = Simulation(JOBS["short"], seed)
    simulation.add_worker()
    for turns, action, number in story:
        for _ in range(turns):
            if simulation.server.ended is None:
                simulation.turn()
        act(simulation, action, number)
    simulation.add_worker()
    assert simulation.finish() == alone("short").weights_sha256


def act(simulation: Simulation, action: str, number: int) -> None:
    worker = simulation.workers[number % len(simulation.workers)]
    match action:
        case "add" | "double" if simulation.server.ended is None:
            simulation.add_worker(doubles=action == "double")
        case "kill" if worker.can_act():
            worker.die()
        case "interrupt" if worker.can_act():
            worker.runner.interrupt()
        case "hang" | "wake":
            worker.is_hanging = action == "hang"

"""The promise for models of PyTorch: one job, one digest, whoever computed it, in whatever order, or resumed."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.numerics import kept_numerics, use_numerics
from lockstep.ps.setup import open_run
from tests.lockstep.common.model.pytorch.jobs import NAMES, characters, model_file, torch_job
from tests.simulation.cluster import Simulation, prove
from tests.simulation.simulator.oracle import RunRecords, reference_run, violations
from tests.simulation.small import digits, job_of
from tests.simulation.test_resuming import run

pytest.importorskip("torch", reason="models of PyTorch need the extra: .venv/bin/pip install -e '.[torch]'")


@pytest.fixture(autouse=True)
def native() -> Iterator[None]:
    """Compute with native numerics during each test."""
    with kept_numerics():
        use_numerics("native")
        yield


@cache
def alone(name: str) -> RunRecords:
    return reference_run(torch_job(name), digits())


def test_portable_numerics_are_refused() -> None:
    job = torch_job(NAMES[0], numerics="portable")
    with pytest.raises(
        NumericsError,
        match=r"numerics = 'portable' with a model that is computed by torch .*; or add --set numerics=native",
    ):
        open_run("torch", job, digits(), RunOptions(allow_mixed_numerics=True))


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_workers_gives_the_bits_of_one_process(name: str) -> None:
    prove(torch_job(name), alone(name), workers=3, seed=3)


@pytest.mark.parametrize(("workers", "servers"), [(2, 3), (8, 1)])
def test_any_number_of_servers_gives_the_same_bits(workers: int, servers: int) -> None:
    prove(torch_job("mlp"), alone("mlp"), workers, workers, servers)


@pytest.mark.parametrize(
    ("values", "servers"),
    [
        ({"wire": "int8"}, 1),
        ({"wire": "bfloat16", "wire_weights": "bfloat16"}, 2),
        ({"wire": "float16", "optimizer": "adam"}, 1),
    ],
    ids=str,
)
def test_rounded_sums_have_the_same_bits_too(values: dict[str, Any], servers: int) -> None:
    job = torch_job("lenet", **values)
    prove(job, reference_run(job, digits()), workers=3, seed=5, servers=servers)


@pytest.mark.parametrize(("name", "workers", "servers"), [("lstm", 3, 1), ("mlp", 2, 3)])
def test_local_steps_have_the_same_bits_too(name: str, workers: int, servers: int) -> None:
    # Of two or three samples each: PyTorch's LSTM computes one sample in another way, whose bits it does not repeat.
    local = {"local_steps": 8, "local_lr": 0.05, "micro_batches": 2, "global_batch": 40, "nesterov": True, "steps": 2}
    job = torch_job(name, **local)
    prove(job, reference_run(job, digits()), workers=workers, seed=5, servers=servers)


def test_what_a_killed_worker_had_is_computed_again() -> None:
    simulation = Simulation(torch_job("lenet"), 7, RunOptions(min_workers=2))
    first, _ = simulation.add_worker(), simulation.add_worker()
    simulation.run(until=lambda: bool(first.runner.state.leases))
    first.die()
    simulation.prove(alone("lenet"))


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_run_is_resumed_after_any_step_with_other_workers(stop_at: int, tmp_path: Path) -> None:
    job = torch_job("mlp")
    run(tmp_path, stop_at - 1, job=job, stop_at=stop_at)
    run(tmp_path, 2 - stop_at, job=job)
    assert list(violations(job, digits(), tmp_path, alone("mlp"))) == []


LANGUAGE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(7, 12)
        self.rows = nn.LSTM(12, 12, batch_first=True)
        self.head = nn.Linear(12, 7)

    def forward(self, tokens):
        assert tokens.dtype == torch.int64
        return self.head(self.rows(self.token(tokens))[0])
"""


def test_tokens_have_a_class_each(tmp_path: Path) -> None:
    job = job_of(numerics="native", model=model_file(tmp_path, LANGUAGE), global_batch=8, micro_batches=4, steps=3)
    digests = set()
    for workers in (1, 3):
        simulation = Simulation(job, workers, RunOptions(min_workers=workers), data=characters)
        for _ in range(workers):
            simulation.add_worker()
        digests.add(simulation.finish())
        assert simulation.result().history[0].test_accuracy is not None
    assert len(digests) == 1

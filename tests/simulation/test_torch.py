"""The promise for models of PyTorch: one job, one digest, whoever computed it, in whatever order, or resumed."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lockstep.common.errors import NumericsError
from lockstep.common.job.job import Job
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.launch_config import Launch
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from tests.lockstep.common.model.pytorch.jobs import NAMES, characters, model_file, torch_job
from tests.simulation.cluster import Simulation, digest_with
from tests.simulation.small import digits, job_of
from tests.simulation.test_resuming import StoppedError

pytest.importorskip("torch", reason="models of PyTorch need the extra: .venv/bin/pip install -e '.[torch]'")


@cache
def alone(name: str, **values: Any) -> str:
    return alone_with(torch_job(name, **values))


def alone_with(job: Job) -> str:
    """Return the digest of a run in one process: the oracle."""
    opening = open_run("alone", job, digits(), AdmissionPolicy())
    recorder = MetricsRecorder(opening.info, Setting(servers=0, transport="none", started=0.0), opening.layout, None)
    return SerialRun(opening, recorder, ManualClock(), lambda status: None).train().weights_sha256


def test_portable_numerics_are_refused() -> None:
    job = torch_job(NAMES[0], numerics="portable")
    with pytest.raises(NumericsError, match=r"numerics = 'portable' with a model that .*torch.* computes"):
        open_run("torch", job, digits(), AdmissionPolicy(allows_mixed_numerics=True))


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_workers_gives_the_bits_of_one_process(name: str) -> None:
    for workers in (1, 3):
        assert digest_with(torch_job(name), workers, seed=workers) == alone(name)


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("servers", [1, 3])
def test_any_number_of_servers_gives_the_same_bits(workers: int, servers: int) -> None:
    assert digest_with(torch_job("mlp"), workers, seed=workers, servers=servers) == alone("mlp")


@pytest.mark.parametrize(
    "values",
    [{"wire": "int8"}, {"wire": "bfloat16", "wire_weights": "bfloat16"}, {"wire": "float16", "optimizer": "adam"}],
    ids=str,
)
def test_rounded_sums_have_the_same_bits_too(values: dict[str, Any]) -> None:
    job = torch_job("lenet", **values)
    assert digest_with(job, 2, seed=4) == digest_with(job, 3, seed=5, servers=2) == alone_with(job)


def test_what_a_killed_worker_had_is_computed_again() -> None:
    simulation = Simulation(torch_job("lenet"), 7, AdmissionPolicy(min_workers=2))
    for parts in (1, 0):
        simulation.add_worker(dies_after_parts=parts)
    simulation.run_to(1)
    simulation.add_worker()
    assert simulation.finish() == alone("lenet")


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_is_resumed_after_any_step_with_other_workers(stop: int, tmp_path: Path) -> None:
    job = torch_job("mlp")
    opening = open_run("run", job, digits(), AdmissionPolicy())
    launch = Launch(checkpoint_keep=3, checkpoint_every_steps=1)
    setting = Setting(servers=0, transport="none", started=0.0)

    def carry_out(*, is_resumed: bool, stop: int | None) -> str:
        opening = open_run("run", job, digits(), AdmissionPolicy())
        destination = Destination(folder=tmp_path / "run", launch=launch, is_resumed=is_resumed)
        session = open_session(opening, setting, destination, ManualClock(), lambda text: None)

        def watch(status: Any) -> None:
            if stop is not None and status.step >= stop:
                raise StoppedError

        run = SerialRun(opening, session.recorder, ManualClock(), watch, session.start, session.checkpointer)
        return run.train().weights_sha256

    with pytest.raises(StoppedError):
        carry_out(is_resumed=False, stop=stop)
    assert opening.info.fingerprint.evidence
    assert carry_out(is_resumed=True, stop=None) == alone("mlp")


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
    job = job_of(model=model_file(tmp_path, LANGUAGE), global_batch=8, micro_batches=4, steps=3)
    digests = set()
    for workers in (1, 3):
        simulation = Simulation(job, workers, AdmissionPolicy(min_workers=workers), data=characters)
        for _ in range(workers):
            simulation.add_worker()
        digests.add(simulation.finish())
        assert simulation.recorder.result is not None
        assert simulation.recorder.result.history[0].test_accuracy is not None
    assert len(digests) == 1

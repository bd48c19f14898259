"""A worker of an audited run computes wrongly: it is evicted, or ends the run."""

import pytest

from tests.system.processes import GONE_S, Place

JOB = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "6")


#: A model with which the first worker that builds it computes wrongly.
LYING = """
import os
import sys

from lockstep import nn


class Lying(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)
        self.lies = False
        if "worker" in sys.argv:
            try:
                os.close(os.open("liar", os.O_CREAT | os.O_EXCL))
                self.lies = True
            except FileExistsError:
                pass

    def forward(self, images):
        images = images.reshape(images.shape[0], 784)
        return self.scores(images * 1.001 if self.lies and self.training else images)


def build():
    return Lying()
"""


def honest_digest(place: Place, job: tuple[str, ...]) -> str:
    """Return what a process comes to that trains the lying model alone, and does not lie."""
    place.train(*job, "--workers", "0", "--run-dir", "honest")
    return place.digest("honest")


def lying_job(place: Place) -> tuple[str, ...]:
    """Write the model, and return the job of it."""
    (place.folder / "lying.py").write_text(LYING)
    return (*JOB, "--model", "lying.py:build")


@pytest.mark.parametrize(
    ("workers", "how"),
    [
        ("2", ("--transport", "shm")),
        pytest.param("3", ("--transport", "tcp", "--servers", "2"), marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_computes_wrongly_is_evicted_and_the_run_goes_on(
    place: Place, workers: str, how: tuple[str, ...]
) -> None:
    job = lying_job(place)
    out = place.train(*job, "--workers", workers, "--set", "audit=50%", *how)
    assert out.count(" computes wrongly, and is evicted\n") == 1
    assert "warning: the run goes back to its beginning, and continues without it\n" in out
    assert place.digest() == honest_digest(place, job)
    assert '"kind":"convicted"' in (place.folder / "run" / "ledger.jsonl").read_text()


def test_an_audit_may_end_the_run(place: Place) -> None:
    job = lying_job(place)
    flags = ("--workers", "2", "--set", "audit=100%", "--set", "audit_ends=true", "--run-dir", "run")
    code, _, error = place.start("train", *job, *flags).end()
    assert code == 1
    assert error.count("\n") == 1
    assert error.startswith("error: the audit found a difference in micro-batch ")
    assert " of step 0: " in error
    assert "computes wrongly, and is evicted" in error
    assert "if it is resumed, the run goes back to its beginning" in error
    assert '"kind":"step"' not in (place.folder / "run" / "ledger.jsonl").read_text()
    assert not (place.folder / "run" / "result.json").exists()
    assert place.is_empty(GONE_S)

"""An audited run of real processes: the same bits over every transport, and the ledger and the summary tell of it."""

import pytest

from tests.system.alone import digest_alone, run_here
from tests.system.processes import GONE_S, Place

JOB = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "6")


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(("--transport", "shm"), marks=pytest.mark.slow),
        ("--transport", "ipc", "--servers", "2"),
        pytest.param(("--transport", "tcp"), marks=pytest.mark.slow),
        pytest.param(("--transport", "ipc"), marks=pytest.mark.slow),
        pytest.param(("--transport", "shm", "--servers", "2"), marks=pytest.mark.slow),
        pytest.param(("--transport", "tcp", "--servers", "2"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_all_is_computed_twice_and_is_the_same(
    place: Place, capsys: pytest.CaptureFixture[str], how: tuple[str, ...]
) -> None:
    out = place.train(*JOB, "--workers", "2", "--set", "audit=100%", *how)
    assert place.digest() == digest_alone(*JOB)
    assert "audit           24 micro-batches recomputed by another worker, with the same bits\n" in out
    code, out, _ = run_here(place.folder, capsys, "ledger", "run", "--all")
    assert (code, out.count("for the audit: the same bits")) == (0, 24)


def test_a_share_that_is_none_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = run_here(place.folder, capsys, "train", *JOB, "--set", "audit=101%", "--run-dir", "run")
    assert code == 2
    assert "audit = 1.01: expected a number" in error


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
        pytest.param("3", ("--transport", "tcp"), marks=pytest.mark.slow),
        pytest.param("2", ("--transport", "ipc", "--servers", "2"), marks=pytest.mark.slow),
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


def test_a_server_that_was_started_by_hand_goes_back_by_itself(place: Place) -> None:
    job = lying_job(place)
    flags = ("--set", "audit=100%", "--min-workers", "2", "--run-dir", "run")
    server, address = place.serve(*job, *flags)
    workers = [place.start("worker", address, "--workers", "1", "--apart") for _ in range(2)]
    code, out, _ = server.end()
    ends = [worker.end() for worker in workers]
    assert (code, sorted(code for code, _, _ in ends)) == (0, [0, 2])
    assert "goes back to its beginning" in out
    refused = next(error for code, _, error in ends if code == 2)
    assert "error: the server refused this worker: the audit found a difference in micro-batch " in refused
    assert place.digest() == honest_digest(place, job)


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

"""An audited run of real processes: the same bits over every transport, and the ledger and the summary tell of it."""

import json

import pytest

from tests.system.processes import GONE_S, Place

JOB = ("--model", "mlp", "--data", "tiny.npz", "--global-batch", "48", "--micro-batches", "4", "--steps", "6")


def digest(place: Place, name: str) -> str:
    found: str = json.loads((place.folder / name / "result.json").read_text())["weights_sha256"]
    return found


@pytest.mark.parametrize(
    "how",
    [
        ("--transport", "shm"),
        ("--transport", "tcp"),
        ("--transport", "ipc", "--servers", "2"),
        pytest.param(("--transport", "ipc"), marks=pytest.mark.slow),
        pytest.param(("--transport", "shm", "--servers", "2"), marks=pytest.mark.slow),
        pytest.param(("--transport", "tcp", "--servers", "2"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_all_is_computed_twice_and_is_the_same(place: Place, how: tuple[str, ...]) -> None:
    assert place.start("train", *JOB, "--workers", "0", "--run-dir", "alone").end()[0::2] == (0, "")
    process = place.start("train", *JOB, "--workers", "2", "--audit", "100%", *how, "--run-dir", "run")
    code, out, error = process.end()
    assert (code, error) == (0, "")
    assert digest(place, "run") == digest(place, "alone")
    assert "audit           24 micro-batches computed again by another worker: the same bits\n" in out
    code, out, _ = place.start("ledger", "run").end()
    assert code == 0
    assert out.count("for the audit: the same bits") == 24
    assert place.is_empty(GONE_S)


def test_one_worker_alone_is_told_of_once_and_not_waited_for(place: Place) -> None:
    server = place.start("server", *JOB, "--audit", "0.5", "--bind", place.address(), "--run-dir", "run")
    worker = place.start("worker", server.line_with("lockstep worker").split()[-1])
    code, out, _ = server.end()
    assert (code, worker.end()[0]) == (0, 0)
    assert out.count("no audit of micro-batches ") == 1
    assert "audit           no micro-batch was computed again: " in out


def test_a_share_that_is_none_is_refused(place: Place) -> None:
    code, _, error = place.start("train", *JOB, "--audit", "101%", "--run-dir", "run").end()
    assert code == 2
    assert "'101%' is no share: expected 0% to 100%, or a number from 0 to 1" in error

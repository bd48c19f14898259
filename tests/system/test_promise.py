"""The promise, kept by real processes: one digest for any number of workers, over any transport."""

import json
from typing import Any

import pytest

from lockstep import fit, nn
from lockstep.cli.main import run
from tests.lockstep.tiny_data import tiny_arrays
from tests.system.alone import run_here, train_alone
from tests.system.jobs import BRIEF
from tests.system.processes import Place, digest_in

#: A model with all that could depend on who computes: dropout, and running statistics.
DELICATE = """
from lockstep import nn


def build():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10)
    )
"""


def train(place: Place, name: str, *flags: str) -> dict[str, Any]:
    """Train the delicate model; return the result."""
    (place.folder / "delicate.py").write_text(DELICATE)
    process = place.start("train", *BRIEF, "--model", "delicate.py:build", "--run-dir", name, *flags)
    code, _, error = process.end()
    assert (code, error) == (0, "")
    assert place.is_empty(0.0)
    return place.result(name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights that one process alone arrives at."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "delicate.py").write_text(DELICATE)
    calm = train_alone(folder, *BRIEF, "--model", "delicate.py:build")
    return digest_in(calm)


@pytest.mark.parametrize(
    ("workers", "transport"),
    [
        (3, "tcp"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((1, "tcp"), (1, "ipc"), (2, "tcp"), (2, "ipc"), (3, "ipc"))
        ),
    ],
)
def test_one_digest_for_any_number_of_workers(place: Place, alone: str, workers: int, transport: str) -> None:
    result = train(place, "run", "--workers", str(workers), "--transport", transport)
    assert result["weights_sha256"] == alone
    assert (result["workers"], result["transport"], result["servers"], result["steps"]) == (workers, transport, 1, 8)


def test_the_run_folder_is_whole_and_can_be_evaluated(
    place: Place, alone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(place, "run", "--workers", "2")
    assert result["weights_sha256"] == alone
    assert sorted(path.name for path in (place.folder / "run").iterdir()) == [
        *("checkpoints", "job.toml", "ledger.jsonl", "metrics.jsonl", "model", "receipt.json", "result.json"),
        *("server.log", "weights.safetensors", "worker-0.log", "worker-1.log"),
    ]
    monkeypatch.chdir(place.folder)
    assert run(["evaluate", "run", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    for figure in ("test_accuracy", "test_loss", "weights_sha256"):
        assert evaluated[figure] == result[figure]


def test_the_job_of_a_run_gives_the_same_bits_again(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    train_alone(place.folder, *BRIEF)
    flags = ("--job", "calm/job.toml", "--workers", "0", "--run-dir", "again")
    code, _, error = run_here(place.folder, capsys, "train", *flags)
    assert (code, error) == (0, "")
    results = [place.result(name) for name in ("calm", "again")]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]


def test_more_workers_than_pieces_are_told(place: Place) -> None:
    flags = ("--steps", "1", "--micro-batches", "1", "--workers", "2", "--run-dir", "run")
    code, out, _ = place.start("train", *BRIEF, *flags).end()
    assert code == 0
    assert "note: 1 micro-batches keep at most 1 workers busy" in out


def test_arrays_and_weights_reach_the_workers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    (x_train, y_train), (x_test, y_test) = tiny_arrays()
    data = ((x_train, y_train), (x_test, y_test))
    digests = {
        fit(model, data, workers=workers, steps=4, global_batch=48, warm_start=True, verbose=False).weights_sha256
        for workers in (0, 2)
    }
    assert len(digests) == 1

"""A run's folder as something to use: which of its weights are meant, and the model that has them."""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lockstep import nn
from lockstep.api.callbacks import LambdaCallback
from lockstep.api.fit import fit
from lockstep.api.run import Run, load_run
from lockstep.cli.main import run
from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.errors import DataError, FileFormatError, JobError, ModelError
from lockstep.common.files.safetensors import write
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, WEIGHTS
from lockstep.runs.run_dir import recorded_job
from lockstep.runs.trained_model import dataset_of, open_trained
from tests.lockstep.small_runs import small_run
from tests.lockstep.tiny_data import tiny_arrays, write_tiny


def trained(folder: Path, **values: Any) -> Run:
    """Train with a rate so large that the last epoch is not the best."""
    given: dict[str, Any] = {
        "epochs": 5,
        "lr": 1.5,
        "workers": 0,
        "global_batch": 32,
        "micro_batches": 4,
        "checkpoint_keep": 9,
    }
    data = write_tiny(folder)
    return fit("linear", data, run_dir=folder / "run", verbose=False, **{**given, **values})


def test_the_best_epochs_weights_and_those_of_a_step(tmp_path: Path) -> None:
    done = trained(tmp_path, checkpoint_every_steps=1)
    best = done.best_epoch
    assert best.epoch < 5
    assert weights_digest(open_trained(done.folder, "best").weights) == best.weights_sha256
    assert weights_digest(open_trained(done.folder).weights) == done.weights_sha256
    steps = done.result.steps // 5
    assert weights_digest(open_trained(done.folder, 4 * steps).weights) == done.history[3].weights_sha256


def test_of_a_folder_of_runs_the_last_are_named(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"run-{number}").mkdir()
        (tmp_path / f"run-{number}" / WEIGHTS).touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(
        JobError, match=r"with job.toml and weights\S*; the runs in it: \S*/run-2, .*/run-9, and 2 more$"
    ) as caught:
        open_trained(tmp_path)
    assert str(caught.value).count("run-") == 8


def test_without_its_data_a_run_shows_the_same_figures_and_verify_only_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = trained(tmp_path)
    assert done.class_names == [str(label) for label in range(10)]
    assert run(["evaluate", str(done.folder)]) == 0
    computed = capsys.readouterr().out.splitlines()[0]
    assert "%" in computed
    Path(done.job.data).unlink()
    assert run(["evaluate", str(done.folder)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == computed.partition(" of ")[0]
    assert run(["verify", str(done.folder)]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert "needs its training data, which is not here" in shown.err


def test_the_best_may_be_the_last(tmp_path: Path) -> None:
    done = trained(tmp_path, lr=0.01, checkpoint_keep=0)
    assert done.best_epoch.epoch == 5
    assert weights_digest(open_trained(done.folder, "best").weights) == done.weights_sha256


def test_of_a_run_that_is_not_finished_the_checkpoints_tell(tmp_path: Path) -> None:
    done = trained(tmp_path, checkpoint_every_steps=1)
    best = done.best_epoch
    (done.folder / RESULT).unlink()
    assert weights_digest(open_trained(done.folder, "best").weights) == best.weights_sha256


def test_what_was_not_kept_is_told_with_what_was(tmp_path: Path) -> None:
    done = trained(tmp_path, checkpoint_every_steps=1)
    best, steps = done.best_epoch.epoch, done.result.steps // 5
    with pytest.raises(JobError, match=rf"no whole checkpoint after 7777 steps: expected .*--checkpoint {4 * steps}, "):
        open_trained(done.folder, 7777)
    (done.folder / CHECKPOINTS / f"step-{best * steps:08d}.safetensors").unlink()
    with pytest.raises(JobError, match=rf"no checkpoint of its best epoch, which was {best}: expected --checkpoint "):
        open_trained(done.folder, "best")


def test_a_run_without_an_epoch_has_no_best(tmp_path: Path) -> None:
    done = trained(tmp_path, checkpoint_keep=0)
    (done.folder / RESULT).unlink()
    with pytest.raises(JobError, match="has no finished epoch"):
        open_trained(done.folder, "best")
    with pytest.raises(JobError, match=r"after 3 steps: it has only its last weights .*: to use these, remove"):
        open_trained(done.folder, 3)


def test_evaluate_and_export_take_another_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = trained(tmp_path, checkpoint_every_steps=1)
    best = done.best_epoch
    told = []
    for flags in (["--checkpoint", "best"], []):
        assert run(["evaluate", str(done.folder), "--json", *flags]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert [one["weights_sha256"] for one in told] == [best.weights_sha256, done.weights_sha256]
    assert told[0]["test_accuracy"] == best.test_accuracy
    for name, flags in (("best.npz", ["--checkpoint", "best"]), ("last.npz", [])):
        assert run(["export", str(done.folder), str(tmp_path / name), *flags]) == 0
    assert (tmp_path / "best.npz").read_bytes() != (tmp_path / "last.npz").read_bytes()
    assert run(["evaluate", str(done.folder), "--checkpoint", "first"]) == 2
    assert "'first' does not name weights: expected last, best, ema, or a number of steps" in capsys.readouterr().err


def test_the_model_has_the_weights_of_the_run(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    run = small_run(tmp_path, model)
    trained = open_trained(run.folder)
    assert not trained.model.module.training
    assert trained.job == run.job
    expected = run.model.state_dict()
    assert expected.keys() == trained.arrays().keys()
    for name, array in trained.model.module.state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = small_run(tmp_path).folder
    write(folder / "weights.safetensors", {"1.weight": np.ones((10, 3), np.float32), "1.bias": np.ones(10, np.float32)})
    with pytest.raises(ModelError, match=r"weights do not fit the model: '1.weight' is \(10, 3\), not \(10, 784\)"):
        open_trained(folder)


def test_data_of_another_folder_is_told(tmp_path: Path) -> None:
    folder = small_run(tmp_path).folder
    job = msgspec.structs.replace(open_trained(folder).job, data="elsewhere/some.npz")
    with pytest.raises(DataError, match=r"is not here: expected 'elsewhere/some\.npz' relative to the folder "):
        dataset_of(folder, job)
    kept = msgspec.structs.replace(job, data="data.npz")
    with pytest.raises(DataError, match=r"not here: expected 'data\.npz' in the run's folder, where `fit` keeps it "):
        dataset_of(folder, kept)


OF_DATA = [
    ["verify"],
    ["replay", "--step", "1", "--micro-batch", "0"],
]


@pytest.mark.parametrize("command", OF_DATA, ids=[words[0] for words in OF_DATA])
def test_data_that_was_moved_is_named_and_has_to_be_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = trained(tmp_path, epochs=1)
    (tmp_path / "tiny.npz").rename(tmp_path / "moved.npz")
    words = [command[0], str(done.folder), *command[1:]]
    assert run(words) == 2
    told = capsys.readouterr().err
    assert f"which is not here: expected '{tmp_path / 'tiny.npz'}' where it was trained; name" in told
    assert "by adding `--training-data DATA`" in told
    assert run([*words, "--training-data", "mnist"]) == 2
    assert "the data 'mnist' is not that of the run in " in capsys.readouterr().err
    assert run([*words, "--training-data", "moved.npz"]) == 0


def test_a_run_is_resumed_with_its_data_where_that_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(training: Any, epoch: Any) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    for name in ("whole", "now"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[LambdaCallback(on_epoch_end=interrupt)])
    words, moved = ["train", "--resume", "run", "--no-picture"], (tmp_path / "tiny.npz").rename("now/tiny.npz")
    refused = {
        (): "is not here: expected '{}/tiny.npz' where it was trained; name another place by adding `--data DATA`",
        ("--data", "mnist"): "the data 'mnist' is not that of the run in 'run' (SHA-256 ",
        ("--data", "renamed.npz"): "make a link with `ln -s {}/renamed.npz tiny.npz`, and give --data tiny.npz",
    }
    shutil.copy(moved, "renamed.npz")
    for flags, told in refused.items():
        assert run([*words, *flags]) == 2
        assert told.format(tmp_path) in capsys.readouterr().err
    assert run([*words, "--data", str(moved)]) == 0
    assert load_run("run").weights_sha256 == whole.weights_sha256
    assert recorded_job(Path("run")).data == str(moved)


def test_a_run_of_somebody_else_predicts_with_data_that_is_elsewhere(tmp_path: Path) -> None:
    done = trained(tmp_path, epochs=1)
    samples = tiny_arrays()[1][0]
    expected = done.predict(samples)
    moved = (tmp_path / "tiny.npz").rename(tmp_path / "moved.npz")
    np.testing.assert_array_equal(load_run(done.folder, training_data=moved).predict(samples), expected)
    with pytest.raises(DataError, match="the data 'mnist' is not that of the run"):
        load_run(done.folder, training_data="mnist")


def test_a_folder_without_weights_and_damaged_ones_are_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"holds no weights of a run: expected a run folder, with job.toml and weights"):
        open_trained(tmp_path)
    folder = small_run(tmp_path).folder
    (folder / "weights.safetensors").rename(tmp_path / "weights")
    with pytest.raises(JobError, match="holds no weights of a run"):
        open_trained(folder)
    (folder / "result.json").unlink()
    with pytest.raises(
        JobError, match=r"is not finished: resume it with `lockstep .*; or use a checkpoint: expected --check"
    ):
        open_trained(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(JobError, match=r"is not finished: resume it with `[^`]*`$"):
        open_trained(folder)
    (folder / "weights.safetensors").write_bytes(b"nonsense that is long enough")
    with pytest.raises(FileFormatError, match="claims a header of"):
        open_trained(folder)


@pytest.mark.parametrize("command", [["evaluate"], ["export", "model.npz"], ["export", "weights.safetensors"]])
def test_weights_that_are_not_finite_are_told_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = small_run(tmp_path).folder
    bias = np.zeros(10, np.float32)
    bias[3] = np.nan
    write(folder / "weights.safetensors", {"1.weight": np.ones((10, 784), np.float32), "1.bias": bias})
    assert run([command[0], str(folder), *command[1:]]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {folder}/weights.safetensors: '1.bias' has the value nan: expected finite numbers;")
    assert told.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name in command]

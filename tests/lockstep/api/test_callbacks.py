"""Callbacks: what they are told, in which order, what they can do, and what is refused. All in this process."""

import contextlib
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lockstep.api.callbacks as documented
from lockstep import Callback, EarlyStopping, LambdaCallback, ModelCheckpoint, fit, load_run, resume
from lockstep.api.callbacks import Training
from lockstep.common.errors import CallbackError, JobError, RunError
from lockstep.common.files.safetensors import read
from lockstep.common.protocol.messages import EpochRecord
from lockstep.ps.records.run_folder import EPOCH_WEIGHTS, JOB, RESULT
from tests.lockstep.tiny_data import tiny_arrays

#: Ten steps: five epochs of two.
BRIEF: dict[str, Any] = {
    "workers": 0,
    "epochs": 5,
    "global_batch": 80,
    "micro_batches": 2,
    "lr": 0.01,
    "schedule": "constant",
    "verbose": False,
}


class Diary(Callback):
    """Writes down what it is told."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.entries: list[str] = []

    def on_train_begin(self, training: Training) -> None:
        self.entries.append(f"begin {len(training.history)}")

    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        assert training.history[-1] is epoch
        self.entries.append(f"epoch {epoch.epoch}")
        if epoch.epoch == self.stop_after:
            training.stop()

    def on_train_end(self, training: Training) -> None:
        self.entries.append(f"end {len(training.history)}")


def test_the_example_in_the_docs(tmp_path: Path) -> None:
    (x_train, y_train), (x_test, y_test) = tiny_arrays()
    np.savez(tmp_path / "digits.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    with contextlib.chdir(tmp_path):
        results = doctest.testmod(documented)
    assert (results.failed, results.attempted > 4) == (0, True)


def test_each_epoch_is_told_once_and_the_last_one_too(tmp_path: Path) -> None:
    diary = Diary()
    fit("linear", tiny_arrays(), run_dir=tmp_path / "run", callbacks=[diary], **BRIEF)
    assert diary.entries == ["begin 0", *(f"epoch {number}" for number in range(1, 6)), "end 5"]


def test_a_run_is_stopped_after_an_epoch_with_the_bits_of_so_many_epochs(tmp_path: Path) -> None:
    diary, other = Diary(stop_after=3), Diary()
    run = fit("linear", tiny_arrays(), run_dir=tmp_path / "a", callbacks=[diary, other], **BRIEF)
    shorter = fit("linear", tiny_arrays(), run_dir=tmp_path / "b", **{**BRIEF, "epochs": 3})
    assert run.weights_sha256 == shorter.weights_sha256
    assert diary.entries[-2:] == other.entries[-2:] == ["epoch 3", "end 3"]
    assert (run.result.steps, run.result.stopped) == (6, "a callback stopped it after epoch 3")


def test_the_weights_after_each_epoch_can_be_had(tmp_path: Path) -> None:
    seen = []

    def look(training: Training, epoch: EpochRecord) -> None:
        state, model = training.state_dict(), training.model()
        np.testing.assert_array_equal(model.state_dict()["1.weight"], state["1.weight"])
        seen.append(state["1.weight"])

    run = fit("linear", tiny_arrays(), run_dir=tmp_path, callbacks=[LambdaCallback(on_epoch_end=look)], **BRIEF)
    assert len(seen) == 5
    np.testing.assert_array_equal(seen[-1], run.model.state_dict()["1.weight"])
    assert not np.array_equal(seen[0], seen[1])
    assert not (tmp_path / EPOCH_WEIGHTS).exists()


def test_functions_are_callbacks(tmp_path: Path) -> None:
    told: list[str] = []
    callback = LambdaCallback(
        on_train_begin=lambda training: told.append("begin"), on_train_end=lambda training: told.append("end")
    )
    fit("linear", tiny_arrays(), run_dir=tmp_path, callbacks=[callback, LambdaCallback()], **BRIEF)
    assert told == ["begin", "end"]


# Early stopping is a part of the job


def overfitting(folder: Path, **values: Any) -> Any:
    """Train on labels that mean nothing, so that the validation loss rises at once."""
    (x_train, y_train), test = tiny_arrays()
    noise = ((x_train, np.roll(y_train, 7) * 3 % 10), test)
    return fit("linear", noise, run_dir=folder, **{**BRIEF, "epochs": 40, "lr": 0.1, **values})


def test_early_stopping_says_what_the_job_says(tmp_path: Path) -> None:
    stopping = EarlyStopping(monitor="test_loss", patience=2, min_delta=0.01, restore_best_weights=True)
    by_callback = overfitting(tmp_path / "a", callbacks=[stopping])
    by_values = overfitting(tmp_path / "b", monitor="test_loss", patience=2, min_delta=0.01, keep_best=True)
    assert by_callback.weights_sha256 == by_values.weights_sha256
    assert (tmp_path / "a" / JOB).read_text().replace("/a/", "/b/") == (tmp_path / "b" / JOB).read_text()
    history = by_callback.history
    assert len(history) == by_callback.result.weights_epoch + 2 < 40
    assert by_callback.result.test_loss == by_callback.best_epoch.test_loss


def test_without_restoring_the_best_model_is_there_beside_the_last(tmp_path: Path) -> None:
    run = overfitting(tmp_path, patience=3)
    assert run.weights_sha256 == run.history[-1].weights_sha256 != run.best_epoch.weights_sha256
    kept = overfitting(tmp_path / "best", patience=3, keep_best=True)
    for name, array in run.best_model.state_dict().items():
        np.testing.assert_array_equal(array, kept.model.state_dict()[name])


def test_a_best_model_that_was_not_kept_is_told(tmp_path: Path) -> None:
    run = overfitting(tmp_path, patience=2, checkpoint_keep=0)
    with pytest.raises(JobError, match=r"the weights after epoch \d+ are not in .*: expected a run with keep_"):
        _ = run.best_model


# Files


def test_weights_are_written_after_each_epoch_and_named_by_its_figures(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "w" / "{epoch:02d}-{val_loss:.2f}.safetensors")
    run = fit("linear", tiny_arrays(), run_dir=tmp_path / "run", callbacks=[checkpoint], validation_split=0.25, **BRIEF)
    names = sorted(path.name for path in (tmp_path / "w").iterdir())
    assert names == [f"{epoch.epoch:02d}-{epoch.val_loss:.2f}.safetensors" for epoch in run.history]
    arrays, metadata = read(tmp_path / "w" / names[-1])
    np.testing.assert_array_equal(arrays["1.weight"], run.model.state_dict()["1.weight"])
    assert metadata == {"epoch": "5", "val_loss": repr(run.history[-1].val_loss)}


def test_of_the_best_only(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    run = overfitting(tmp_path / "run", patience=3, callbacks=[ModelCheckpoint(path, save_best_only=True)])
    assert read(path)[1]["epoch"] == str(run.best_epoch.epoch)
    assert run.best_epoch.epoch < len(run.history)


# What is refused, and what goes wrong


class OfEachBatch(Callback):
    def on_train_batch_end(self, training: Training) -> None: ...


class OfTooFew(Callback):
    def on_epoch_end(self, training: Training) -> None: ...  # type: ignore[override]  # the mistake that is planted


class OfKeras(Callback):
    def on_epoch_end(self, epoch: Any, logs: Any = None) -> None: ...  # type: ignore[override]  # planted too


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"callbacks": [Diary]}, "such as the instance EarlyStopping"),
    "one that is not in a list": ({"callbacks": Diary()}, r"expected a list, even for one callback: callbacks=\["),
    "a function": ({"callbacks": [print]}, r"function, write LambdaCallback\(on_epoch_end="),
    "what is never called": ({"callbacks": [OfEachBatch()]}, "has 'on_train_batch_end', which is never called: expec"),
    "too few parameters": (
        {"callbacks": [OfTooFew()]},
        r"OfTooFew.on_epoch_end\(training.* expected def on_epoch_end\(self, training, epoch\)",
    ),
    "another library's parameters": ({"callbacks": [OfKeras()]}, r"OfKeras.on_epoch_end\(epoch.* is called with \(tra"),
    "a figure that is none": (
        {"callbacks": [ModelCheckpoint("w", monitor="val_acc")]},
        "monitor = 'val_acc' .* expected one of loss, val_loss, test_loss, accuracy",
    ),
    "a contradiction": (
        {"callbacks": [EarlyStopping(patience=3)], "patience": 4},
        "EarlyStopping has patience = 3, and 4 is given as well: remove one of them",
    ),
    "two of one kind": (
        {"callbacks": [EarlyStopping(patience=3), EarlyStopping(patience=4)]},
        "EarlyStopping has patience = 4, and 3 is given",
    ),
    "no validation set": ({"callbacks": [EarlyStopping(monitor="val_loss")]}, "without a validation set"),
    "nor for files": (
        {"callbacks": [ModelCheckpoint("w", monitor="val_loss")]},
        "monitor = 'val_loss' without a validation set: expected validation_split above 0",
    ),
    "patience": ({"callbacks": [EarlyStopping(patience=0)]}, "patience = 0: expected"),
}


@pytest.mark.parametrize(("values", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    tmp_path: Path, values: dict[str, Any], text: str
) -> None:
    with pytest.raises(JobError, match=text):
        fit("linear", tiny_arrays(), run_dir=tmp_path / "runs" / "mine", **BRIEF, **values)
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_another_name_in_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "{loss_of_val}.safetensors")
    with pytest.raises(JobError, match=r"cannot be filled in: 'loss_of_val': expected names of epoch, loss, accuracy"):
        fit("linear", tiny_arrays(), run_dir=tmp_path / "run", callbacks=[checkpoint], **BRIEF)


def test_a_path_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ModelCheckpoint cannot write '.*': .*: expected a file's path"):
        fit("linear", tiny_arrays(), run_dir=tmp_path / "run", callbacks=[ModelCheckpoint(tmp_path)], **BRIEF)


class BrokenCallback(Callback):
    def on_epoch_end(self, training: Training, epoch: EpochRecord) -> None:
        raise ZeroDivisionError("of its own")


def test_what_a_callback_raises_ends_the_run_and_is_the_cause(tmp_path: Path) -> None:
    with pytest.raises(
        CallbackError, match=r"BrokenCallback.on_epoch_end raised ZeroDivisionError: of its own"
    ) as told:
        fit("linear", tiny_arrays(), run_dir=tmp_path, callbacks=[BrokenCallback()], **BRIEF)
    assert isinstance(told.value.__cause__, ZeroDivisionError)
    assert not (tmp_path / RESULT).exists()
    with pytest.raises(JobError, match=r"is not finished: resume it with lockstep.resume\("):
        load_run(tmp_path)


def test_a_run_that_a_callback_ended_is_gone_on_with(tmp_path: Path) -> None:
    calm = fit("linear", tiny_arrays(), run_dir=tmp_path / "calm", **BRIEF)
    with pytest.raises(CallbackError):
        fit("linear", tiny_arrays(), run_dir=tmp_path / "run", callbacks=[BrokenCallback()], **BRIEF)
    diary = Diary()
    run = resume(tmp_path / "run", callbacks=[diary], workers=0, verbose=False)
    assert run.weights_sha256 == calm.weights_sha256
    assert diary.entries[-1] == "end 5"
    assert resume(tmp_path / "run").result == run.result

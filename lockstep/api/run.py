"""A finished run, as something to ask and to use."""

import atexit
import html
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.errors import JobError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.losses import LossKind, has_accuracy, kind_of
from lockstep.common.protocol.messages import EpochRecord
from lockstep.launch.page_process import PageProcess, PageRequest
from lockstep.packing.cache import DatasetCache
from lockstep.packing.files import pictures_below
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, RunResult, read_result
from lockstep.ps.run.plan import best_epoch
from lockstep.results.evaluation.pictures import Recognizer
from lockstep.results.evaluation.predictor import ARRAYS, Predictor, rows_in
from lockstep.runs.own_command import demand
from lockstep.runs.run_dir import has_begun, recorded_job, trust
from lockstep.runs.shared_run import opened_run
from lockstep.runs.trained_model import job_with_data, model_with, open_trained


class RunPage(msgspec.Struct, frozen=True):
    """A page that is served until `close`; a notebook shows it as the value of a cell."""

    page: PageProcess
    height: int

    @property
    def link(self) -> str:
        """The address of the page for a browser on this machine."""
        return self.page.link

    def close(self) -> None:
        """End the page's process; may be called twice."""
        self.page.close()

    def _repr_html_(self) -> str:
        link = html.escape(self.link, quote=True)
        return f'<iframe src="{link}" width="100%" height="{self.height}" style="border: 0" title="Lockstep"></iframe>'

    def __repr__(self) -> str:
        return f"RunPage({self.link!r})"


class Run(msgspec.Struct, frozen=True, dict=True):
    """A finished run: its `result`, the `folder` that it is in, and its `job`.

    `fit`, `resume` and `load_run` return one. `result` has the fields of `result.json` in the run's folder, with times
    in seconds. Properties that read the folder raise `FileFormatError` if a file is missing or damaged.
    """

    result: RunResult
    folder: Path
    job: Job

    @property
    def test_accuracy(self) -> float:
        """The share of test samples that the final weights get right, from 0 to 1.

        `JobError` for a run without one, as a regression.
        """
        if self.result.test_accuracy is None:
            raise JobError(
                "the run has no accuracy: expected one with classes, or with metrics=['accuracy']; see test_r2 and "
                "test_loss"
            )
        return self.result.test_accuracy

    @property
    def test_r2(self) -> float:
        """R² over the test set, at most 1. `JobError` for a run without it, as one with classes."""
        if self.result.test_r2 is None:
            raise JobError(
                "the run has no R²: expected one with loss = 'mse', or with metrics=['r2']; see test_accuracy"
            )
        return self.result.test_r2

    @property
    def test_loss(self) -> float:
        """The mean loss over the test set, by the job's loss."""
        return self.result.test_loss

    @property
    def test_metrics(self) -> dict[str, float]:
        """The other metrics of the job over the test set, by name; empty if it names none."""
        return self.result.test_metrics

    @property
    def history(self) -> list[EpochRecord]:
        """One record per epoch: loss, accuracy, test_loss, test_accuracy, wall_s (seconds), weights_sha256.

        With `validation_split` val_loss and val_accuracy too; for a regression r2 and test_r2 in place of accuracies.
        The other metrics of the job are in the dictionary `metrics` of a record, as "f1", "val_f1" and "test_f1".
        """
        return self.result.history

    @property
    def weights_sha256(self) -> str:
        """The digest of the final weights, 64 hexadecimal digits.

        It is equal for equal jobs, whatever the number of workers.
        """
        return self.result.weights_sha256

    @cached_property
    def model(self) -> Any:
        """A model with the final weights, the last epoch's or with `keep_best` the best one's, in evaluation mode.

        A Module of `lockstep.nn` or of PyTorch, as the job's model is. Raises `ModelError` if it is code that you have
        not trained on this machine; see `load_run`.
        """
        return open_trained(self.folder).model.module

    @cached_property
    def ema_model(self) -> Any:
        """A model with the moving average of the weights, in evaluation mode.

        `JobError` if the run has none: expected one with `ema_decay`.
        """
        return open_trained(self.folder, "ema").model.module

    def predict(
        self,
        rows: Any,
        *,
        encoding: str | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        na: str | Sequence[object] = (),
    ) -> NDArray[Any]:
        """Return what the final weights predict of each row: its class, (n,), or numbers, (n, targets).

        `rows` is what the run's data was, without the target. For a run on a table it is a data frame of any library
        that Arrow knows, or the path of a CSV or Parquet file. Classes are texts, whole numbers (int64) or truth values
        (bool), as in the table. A row with a value that did not occur in training has None, or NaN, which a warning
        names. Numbers are in the units of the data, dates in microseconds since 1970, and one alone is (n,). For a run
        on arrays it is an array of samples as they were stored, or the path of an .npy file, or of an .npz with `x`. If
        the samples had several arrays, it is a dictionary of them by name, or the path of an .npz with `x.NAME`; a
        tuple only if they were one in training, because names have no order. A class without a name is its number,
        int64. For a run on pictures it may be the path of one, or of a folder of them, which come by name. With
        `loss="bce"` it is 0 or 1 for each label, (n, labels); with a loss of your own, the model's outputs.

        A CSV file is read as that of the training was, unless `encoding`, `delimiter` or `decimal` is given. `na` has
        values that stand for a missing one, besides those of the training.

        Raises `DataError` for rows of another form.
        """
        reading = {"encoding": encoding, "delimiter": delimiter, "decimal": decimal}
        return self._predictor.labels(self._read(rows), na=_texts(na), **reading)

    def predict_proba(
        self,
        rows: Any,
        *,
        encoding: str | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        na: str | Sequence[object] = (),
    ) -> NDArray[np.float64]:
        """Return the probability of each class, (n, classes), in the order of `class_names`; arguments as of `predict`.

        With `loss="bce"`, that of each label. Raises `JobError` if the outputs are numbers.
        """
        if not has_accuracy(self.job.loss):
            if kind_of(self.job.loss) is LossKind.OWN:
                raise JobError(
                    "a run with a loss of your own has no probabilities, since only that knows what the outputs mean: "
                    "run.predict(rows) returns them; if they are scores of classes, .argmax(axis=1) is the class"
                )
            raise JobError(f"a run with loss = {self.job.loss!r} has no probabilities: expected classes; see predict")
        reading = {"encoding": encoding, "delimiter": delimiter, "decimal": decimal}
        return self._predictor.values(self._read(rows), na=_texts(na), **reading)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of the columns of `predict_proba`.

        Classes without names, and labels of `loss="bce"`, have their numbers, as texts. An ignored label is none of the
        classes. Empty if the run has no classes.
        """
        return self._predictor.class_names

    def _read(self, rows: Any) -> Any:
        """Return rows as they are; if the run is not on a table and they are a path, the samples in that file."""
        if self._predictor.table is not None or not isinstance(rows, str | Path):
            return rows
        path = Path(rows)
        if path.suffix.lower() in ARRAYS:
            return rows_in(path)
        demand("pillow", "predict", f"predicting {one_line(str(path))}")
        recognizer = Recognizer.of(self._predictor, centres=True)
        pictures = pictures_below(path)[0] if path.is_dir() else [path]
        return np.concatenate([recognizer.read(picture) for picture in pictures])

    @cached_property
    def _predictor(self) -> Predictor:
        return Predictor(replace(open_trained(self.folder), job=self.job))

    def watch(self, *, height: int = 900) -> RunPage:
        """Show the run on a page in the cell of a notebook, `height` pixels high; needs the extra `watch`.

        The page is served by a process of its own, on this machine alone, until `close()` or the end of Python. Raises
        `UsageError` if the extra is missing.
        """
        page = RunPage(PageProcess.start(self.folder.absolute(), PageRequest()), height)
        atexit.register(page.close)
        return page

    @property
    def best_epoch(self) -> EpochRecord:
        """The record of the best epoch, by the job's `monitor` and `min_delta`; its numbers count from 1."""
        best = best_epoch(self.job, self.history)
        assert best is not None  # a finished run has an epoch
        return best

    @cached_property
    def best_model(self) -> Any:
        """A model with the weights after the best epoch, in evaluation mode.

        `JobError` if the run kept no checkpoints, or they were removed, unless the final weights are these.
        """
        best = self.best_epoch
        if best.weights_sha256 == self.weights_sha256:
            return self.model
        checkpoints = CheckpointFolder(self.folder / CHECKPOINTS).back_from(self.result.steps)
        kept = next((found for found in checkpoints if found.is_of(best)), None)
        if kept is None:
            raise JobError(
                f"the weights after epoch {best.epoch} are not in {str(self.folder)!r}: expected a run with "
                "keep_best=True or EarlyStopping(restore_best_weights=True)"
            )
        return model_with(self.folder, self.job, kept.arrays, kept.progress.steps)

    def __repr__(self) -> str:
        figures = ((name, getattr(self.result, name)) for name in ("test_accuracy", "test_r2", "test_loss"))
        name, figure = next((name, figure) for name, figure in figures if figure is not None)
        return f"Run({str(self.folder)!r}, {name}={figure:.4f})"


def load_run(folder: str | Path, *, trust_model: bool = False, training_data: str | Path | None = None) -> Run:
    """Return a finished run from its folder, or from a file of `lockstep export`.

    Raises `JobError` without a run there, or if it is not finished.

    A model of your own is code, which the folder has a copy of. If you have not trained it on this machine,
    `run.model` raises `ModelError`. `trust_model=True` agrees to run that code, now and later.

    `training_data` is where the data of the training is now, if it was moved. `DataError` if it is other data.
    """
    path = opened_run(Path(folder))
    if trust_model:
        trust(path)
    if not (path / RESULT).is_file():
        if has_begun(path):
            named = repr(str(folder))
            raise JobError(f"the run in {named} is not finished: resume it with lockstep.resume({named})")
        raise JobError(f"{str(folder)!r} holds no finished run: expected a folder with {RESULT}")
    place = DatasetCache().training_data(path, None if training_data is None else str(training_data))
    job = job_with_data(path, recorded_job(path), place)
    return Run(read_result(path), path, job)


def _texts(values: str | Sequence[object]) -> list[str]:
    """Return one value or several, as the texts of a CSV file."""
    return [values] if isinstance(values, str) else [str(value) for value in values]

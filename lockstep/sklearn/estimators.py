"""The estimators: a network of Lockstep's behind `fit`, `predict` and `score` of scikit-learn.

Every value of a job that decides the weights is a parameter. A fitted estimator holds arrays, texts and numbers, so
that loading its pickle runs none of our code.
"""

import inspect
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.preparation import Preparation
from lockstep.common.errors import JobError, nearest
from lockstep.common.job.job import LEAST_SAMPLES, Job, default_micro_batches
from lockstep.common.model.port import Model
from lockstep.common.numerics.choice import prefer_numerics
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import cores
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.results.display import display_for
from lockstep.runs.job_data import suited_batch
from lockstep.runs.job_file import fields, resolve
from lockstep.sklearn.network import (
    ColumnMoments,
    Floats,
    Network,
    Rows,
    column_moments,
    exported_network,
    opened_network,
    repetitions,
    scaled,
)
from lockstep.sklearn.training import Stream, TrainingTask, train, train_pass

#: Values of a job that are not parameters, with what decides them.
FOLLOWING = {
    "model": "the first parameter",
    "hidden": "the first parameter, as in LockstepClassifier((100, 50))",
    "data": "the arrays that fit is given",
    "seed": "random_state",
    "initial": "warm_start=True, which starts with the weights of the last fit",
    "loss": "the kind of estimator: cross-entropy of classes, or the mean squared error; lockstep.fit takes others",
    "target_scale": "normalize",
    "class_weights": "class_weight",
    "ignore_index": "the rows that fit is given",
    "transform": "a step of a pipeline, or lockstep.fit",
}

#: The defaults that are not those of a job: most are MLPClassifier's, which suit small tables. None of `micro_batches`
#: lets the batch decide, of `numerics` the model and this machine, and of `global_batch` the kind of estimator.
DEFAULTS = {
    "epochs": 200,
    "global_batch": None,
    "micro_batches": None,
    "numerics": None,
    "optimizer": "adam",
    "lr": 0.001,
    "patience": 10,
    "min_delta": 1e-4,
}

#: The name here of a parameter of MLPClassifier, or an argument of `fit`, is called here.
ELSEWHERE = {
    "hidden_layer_sizes": "model",
    "max_iter": "epochs",
    "batch_size": "global_batch",
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "solver": "optimizer",
    "early_stopping": "validation_split",
    "n_iter_no_change": "patience",
    "n_jobs": "workers",
    "seed": "random_state",
}

#: The batch if `global_batch` is not given: MLPClassifier's, and the most of a regressor.
BATCH = 200

#: Every other value of a job is a parameter, with its default.
JOB_VALUES = {
    name: DEFAULTS.get(name, fields()[name].default) for name in Job.__struct_fields__ if name not in FOLLOWING
}

#: The weight of each class, "balanced" for the inverse of its share, or None.
ClassWeight = dict[Any, float] | str | None

#: Rows that are predicted at once: always so many, the last ones filled up, since the bits of a product depend on its
#: shape. So a prediction depends on nothing but its row.
ROWS = 128

#: Rows of a micro-batch at least if `micro_batches` is not given; images are as for any job. Narrower products are
#: slower: 535,818 parameters take 14 % longer with four micro-batches of 50 rows than with one.
LEAST_ROWS = 128


def _signature_of(init: Callable[..., None]) -> inspect.Signature:
    """Return the signature of a constructor, with the values of a job in place of its `**values`."""
    signature = inspect.signature(init)
    *parameters, _ = signature.parameters.values()
    for name, default in JOB_VALUES.items():
        kind: Any = fields()[name].kind
        if fields()[name].is_list:
            kind = list[kind]
        annotation = kind if fields()[name].default is not None and default is not None else kind | None
        given = {"default": default, "annotation": annotation}
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, **given))
    return signature.replace(parameters=parameters)


def _with_parameter(kind: type, name: str, annotation: Any) -> inspect.Signature:
    """Return the signature of a kind of estimator with one more parameter, None by default."""
    signature = inspect.signature(kind.__init__)  # type: ignore[misc]  # that of a class which is not yet subclassed
    own = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    return signature.replace(parameters=[*signature.parameters.values(), own])


class LockstepEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """The common part of both estimators."""

    #: The job's.
    _loss: ClassVar[str]
    #: The state from which the next call of partial_fit continues; missing before the first, and before `fit`.
    _stream: Stream
    _stream_seed: int
    #: The moments by which columns are scaled, and the targets of a regressor; None if they are not.
    _columns: ColumnMoments | None
    _targets: ColumnMoments | None
    #: The model with the fitted weights; None in one that was unpickled and not used since.
    _opened: Model | None

    def __init__(
        self,
        model: Network = (100,),
        *,
        activation: str = "relu",
        sample_shape: tuple[int, ...] | None = None,
        random_state: Any = 0,
        warm_start: bool = False,
        workers: int | None = None,
        verbose: bool = False,
        **values: Any,
    ) -> None:
        self.model = model
        self.activation = activation
        self.sample_shape = sample_shape
        self.random_state = random_state
        self.warm_start = warm_start
        self.workers = workers
        self.verbose = verbose
        for name, default in JOB_VALUES.items():
            setattr(self, name, values.pop(name, default))
        for name in values:
            if name in FOLLOWING and name not in ELSEWHERE:
                raise TypeError(f"unexpected keyword argument {name!r}: it follows from {FOLLOWING[name]}")
            meant = f" (did you mean {ELSEWHERE[name]!r}?)" if name in ELSEWHERE else nearest(name, self.get_params())
            raise TypeError(f"unexpected keyword argument {name!r}{meant}")

    #: What scikit-learn reads the parameters from, as help() does: those above, and each value of a job.
    __init__.__signature__ = _signature_of(__init__)  # type: ignore[attr-defined]  # functions may have one

    def _fit(self, x: Rows, labels: NDArray[Any], classes: int, weights: Floats | None) -> Self:
        """Train from the beginning; `labels` are those of a Dataset, `weights` those of rows."""
        self._stream_seed = self._seed()
        x, labels = self._weighted(x, labels, weights)
        self._columns, self._targets = self._column_moments(x), self._target_moments(labels, classes)
        kept = int(self.validation_split * len(x)) if 0 < self.validation_split < 1 else 0
        task = self._task(x, labels, classes, len(x) - kept)
        if self.warm_start and hasattr(self, "weights_"):
            task = msgspec.structs.replace(task, initial=dict(self.weights_))
        clock = SystemClock()
        shown = display_for(Console(highlight=False, quiet=not self.verbose), clock)
        # An estimator has no test set, and a job needs one: the first row stands for it.
        with replace(shown, has_test=False) as display:
            stream, result = train(task, self._most_workers(), cores(), clock, display)
        self.weights_sha256_, self.workers_ = result.weights_sha256, result.workers
        self.history_ = [_figures(epoch) for epoch in result.history]
        return self._hold(stream)

    def _partial_fit(self, x: Rows, labels: NDArray[Any], classes: int, weights: Floats | None) -> Self:
        """Train with each sample once, from where the last call ended."""
        before: Stream | None = getattr(self, "_stream", None)
        x, labels = self._weighted(x, labels, weights)
        if before is None:
            self._stream_seed, self.history_ = self._seed(), []
            # Once: the weights of later passes are those of columns that are scaled in this way.
            self._columns, self._targets = self._column_moments(x), self._target_moments(labels, classes)
        # One pass has no best epoch, and no validation set that `monitor` could name.
        task = self._task(x, labels, classes, len(x), validation_split=0.0, keep_best=False, monitor="loss")
        stream = train_pass(task, before)
        self.history_ = [*self.history_, {"epoch": stream.passes, **stream.figures}]
        self.weights_sha256_, self.workers_ = stream.figures["weights_sha256"], 0
        return self._hold(stream)

    def _weighted(self, x: Rows, labels: NDArray[Any], weights: Floats | None) -> tuple[Rows, NDArray[Any]]:
        """Return rows and labels, of which each is there as often as its weight says."""
        if weights is None:
            return x, labels
        if self.validation_split:
            raise ValueError(
                f"weights with validation_split = {self.validation_split!r}: expected one of both, since the same row "
                "would be in both sets; set validation_split=0"
            )
        times = repetitions(weights)
        return x.repeat(times, axis=0), labels.repeat(times, axis=0)

    def _column_moments(self, x: Rows) -> ColumnMoments | None:
        """Return what columns are scaled by; None if they are not: the values of images are of one scale."""
        is_image = self.sample_shape is not None and len(self.sample_shape) > 1
        return column_moments(x) if self.normalize and not is_image else None

    def _target_moments(self, labels: NDArray[Any], classes: int) -> ColumnMoments | None:
        """Return what targets are scaled by; None if they are not, as classes never are."""
        return column_moments(labels) if self.normalize and not classes else None

    def _task(
        self, x: NDArray[np.float32], labels: NDArray[Any], classes: int, samples: int, **changed: Any
    ) -> TrainingTask:
        """Return the training task, of which so many samples are used for training; keep how the model is built."""
        sample, outputs = shape = self._shape(x, classes or labels.shape[1])
        exported = exported_network(self.model, self.activation, sample, outputs)
        if self._columns is not None:
            x, changed = scaled(x, self._columns), {**changed, "normalize": False}
        if not classes:
            labels = labels.astype(np.float32) if self._targets is None else scaled(labels, self._targets)
        job = self._job(exported.values(), samples, **changed)
        self._value, self._network_shape = exported.value, shape
        return TrainingTask(job=job, data=self._data(x, labels, classes, sample), text=exported.text)

    def _hold(self, stream: Stream) -> Self:
        self.weights_, self.n_iter_, self.loss_ = stream.weights, stream.passes, stream.figures["loss"]
        self._stream, self._opened = stream, None
        self._model()  # now: a call of predict must not change an estimator
        return self

    def _job(self, model: dict[str, Any], samples: int, **changed: Any) -> Job:
        """Return the job; batches that are larger than the training set are as large as that."""
        values = {name: _plain(getattr(self, name)) for name in JOB_VALUES}
        if self.monitor is None:
            # A job without a validation set is monitored by its test set, which an estimator does not have.
            values["monitor"] = "val_loss" if self.validation_split else "loss"
        if self.numerics is None:
            del values["numerics"]
        if self.global_batch is None:
            values["global_batch"] = self._batch(samples)
        if self.micro_batches is None:
            values["micro_batches"] = self._micro_batches(values["global_batch"])
        if str(self.monitor).startswith("test_"):
            raise JobError(f"monitor = {self.monitor!r}: expected loss, val_loss or the like; there is no test set")
        given = {"data": "arrays", "seed": self._stream_seed, "loss": self._loss}
        job, _ = resolve({}, {**model, **values, **given, **changed})
        # Folds of a cross-validation differ in size, and the last parts of a stream are smaller.
        lowered = {name: min(getattr(job, name), samples) for name in ("global_batch", "micro_batches")}
        return msgspec.structs.replace(job, **lowered)

    def _batch(self, samples: int) -> int:
        """Return the batch for so many samples."""
        return BATCH if self._loss == "cross-entropy" else min(suited_batch(samples), BATCH)

    def _micro_batches(self, batch: Any) -> int:
        """Return how many micro-batches are wide enough to be worth it; a wrong batch is refused later."""
        return default_micro_batches(
            batch if isinstance(batch, int) else 1, LEAST_ROWS if self.sample_shape is None else LEAST_SAMPLES
        )

    def _seed(self) -> int:
        """Return the seed of a job: `random_state` itself if that is a number."""
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _most_workers(self) -> int:
        """Return how many workers may be used: none in a process of a search that runs several, as joblib does."""
        if self.workers is None:
            return cores() if multiprocessing.current_process().name == "MainProcess" else 0
        return resolve({}, {"workers": _plain(self.workers)})[1].workers

    def _shape(self, x: NDArray[np.float32], outputs: int) -> tuple[tuple[int, ...], int]:
        """Return the shape of a sample, and the number of outputs."""
        sample = (x.shape[1],) if self.sample_shape is None else tuple(int(size) for size in self.sample_shape)
        if math.prod(sample) != x.shape[1]:
            raise JobError(
                f"sample_shape = {self.sample_shape!r} has {math.prod(sample)} values: expected {x.shape[1]}, as many "
                "as X has features"
            )
        return sample, outputs

    def _data(self, x: NDArray[np.float32], labels: NDArray[Any], classes: int, sample: tuple[int, ...]) -> TrainTest:
        images = np.ascontiguousarray(x).reshape(len(x), *sample)
        # An estimator has no test set, and a run has one: its figures are not shown. The label is the last class,
        # by which a process that reads both from a file knows how many there are.
        last = np.full(1, classes - 1, np.int64) if classes else labels[:1]
        # scikit-learn has looked at X, and classes are right by what they are; targets may be too large for a float32.
        train = Dataset(images, labels, classes, is_checked=bool(classes))
        # The data of a run that leaves nothing behind is never compared.
        return TrainTest("arrays", train, Dataset(images[:1], last, classes), known_digest="")

    @property
    def module_(self) -> Any:
        """The trained model, in evaluation mode; it takes samples as `predict` prepares them.

        Raises NotFittedError before `fit`.
        """
        check_is_fitted(self)
        return self._model().module

    def _model(self) -> Model:
        """Return the model with the fitted weights; one that was unpickled is built when it is first needed."""
        if self._opened is None:
            model = opened_network(self.model, self._value, *self._network_shape, self._stream_seed)
            model.adopt(self.weights_)
            vector = np.zeros(model.layout.size, np.float32)
            model.layout.write(vector, self.weights_)
            model.load(vector)
            self._opened = model
        return self._opened

    @computing()
    @kept_numerics()
    def _outputs(self, x: ArrayLike) -> NDArray[np.float64]:
        """Return what the network computes of each row, (n, outputs), in the units of the targets."""
        check_is_fitted(self)
        if self.numerics is not None:
            prefer_numerics(self.numerics)
        rows = validate_data(self, x, dtype=np.float32, reset=False)
        model, preparation = self._model(), Preparation(*self._stream.moments)
        sample, outputs = self._network_shape
        found = np.empty((len(rows), outputs))
        batch = np.zeros((ROWS, *sample), np.float32)
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            part = part if self._columns is None else scaled(part, self._columns)
            batch[: len(part)] = part.reshape(len(part), *sample)
            found[start : start + ROWS] = model.outputs(preparation.images(batch))[: len(part)]
        if self._targets is not None:
            mean, deviation = self._targets
            found = found * deviation + mean
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: the weights as arrays, and no model, which is built of them when it is used."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_opened": None} if "_opened" in state else state


class LockstepClassifier(ClassifierMixin, LockstepEstimator):  # type: ignore[misc]  # as above
    """A network that is trained by cross-entropy; the same parameters give the same bits, with any number of workers.

    `model`: sizes of hidden layers, `(100,)`; a name or `FILE.py:FUNCTION`, as a job file has it; a Module, or a
    function that returns one. A function with two parameters is called with the numbers of features and of classes.
    `activation`: relu, tanh, sigmoid, gelu, leaky_relu or identity, between layers that are given by their sizes.
    `sample_shape`: what each row is reshaped to, as `(1, 28, 28)` for a model of images.
    `random_state`: the seed of all random numbers. `warm_start`: begin with the weights of the last `fit`.
    `workers`: the most worker processes, by default one per core. Short training stays in this process, which has the
    same bits and is sooner done.
    All other parameters are values of a job; `global_batch` and `micro_batches` are lowered for small data. Without
    `micro_batches`, each has at least 128 rows, or 16 images, and there are at most 8: as many workers can compute.

    `normalize`: scale each column to mean 0 and deviation 1; images as a whole.
    `class_weight`: a dict of a weight for each class, or "balanced"; see `sample_weight` of `fit`.

    Fitted: `classes_`, `history_` (a dict for each epoch), `loss_`, `n_iter_`, `n_features_in_`, `feature_names_in_`,
    `weights_` (arrays by name), `weights_sha256_`, `workers_` (how many computed; 0 if this process did), `module_`.
    """

    _loss = "cross-entropy"

    def __init__(self, model: Network = (100,), *, class_weight: ClassWeight = None, **values: Any) -> None:
        self.class_weight = class_weight
        super().__init__(model, **values)

    __init__.__signature__ = _with_parameter(LockstepEstimator, "class_weight", ClassWeight)  # type: ignore[attr-defined]

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803  # its names
        """Train on rows X (n, features) and their classes y (n,), which may be any labels; return the estimator.

        `sample_weight` (n,) is how much each row counts, in proportion. Raises ValueError for arrays that do not
        fit, as scikit-learn does, `JobError` for a wrong parameter, `RunError` if the run fails.
        """
        x, targets = self._checked(X, y, reset=True)
        self.classes_, labels = np.unique(targets, return_inverse=True)
        return self._fit(x, labels.astype(np.int64), len(self.classes_), self._weights(x, targets, sample_weight))

    def partial_fit(
        self,
        X: ArrayLike,  # noqa: N803
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Train with each row of X (n, features) once, in this process, from where the last call ended.

        The first call needs all `classes`, and decides how columns are scaled. As many calls with the same data give
        the weights of as many epochs. Raises ValueError if the first call has no `classes`, and for a y (n,) that has
        others; otherwise what `fit` raises.
        """
        is_first = not hasattr(self, "_stream")
        if self.class_weight == "balanced":
            raise ValueError("class_weight = 'balanced' of a part of the data: expected a dict of weights by class")
        if is_first and classes is None:
            raise ValueError("the first call of partial_fit got no classes: expected all that y may have later")
        x, targets = self._checked(X, y, reset=is_first)
        if is_first:
            self.classes_ = np.unique(np.asarray(classes))
        labels = np.minimum(np.searchsorted(self.classes_, targets), len(self.classes_) - 1)
        if (unknown := self.classes_[labels] != targets).any():
            raise ValueError(f"y has {_plain(targets[unknown][0])!r}: expected one of {self.classes_.tolist()!r}")
        weights = self._weights(x, targets, sample_weight)
        return self._partial_fit(x, labels.astype(np.int64), len(self.classes_), weights)

    def _weights(self, x: Rows, targets: NDArray[Any], given: ArrayLike | None) -> Floats | None:
        """Return how much each row counts, by itself and by its class; None if all count the same."""
        weights = _checked_weights(x, given)
        if self.class_weight is None:
            return weights
        of_classes = np.asarray(compute_sample_weight(self.class_weight, targets), np.float64)
        return of_classes if weights is None else of_classes * weights

    def _checked(self, x: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
        rows, targets = validate_data(self, x, y, dtype=np.float32, reset=reset)
        check_classification_targets(targets)
        return rows, targets

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the probability of each class, (n, classes), in the order of `classes_`.

        Raises NotFittedError before `fit`, ValueError for another number of features.
        """
        outputs = self._outputs(X)
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def predict_log_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the logarithm of `predict_proba`, (n, classes). Raises as `predict_proba`."""
        return np.log(self.predict_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return the class of each row, (n,).

        Raises NotFittedError before `fit`, ValueError for another number of features.
        """
        outputs = self._outputs(X)  # raises if there are no classes yet
        classes: NDArray[Any] = self.classes_[outputs.argmax(axis=1)]
        return classes


class LockstepRegressor(RegressorMixin, LockstepEstimator):  # type: ignore[misc]  # as above
    """A network that is trained by the mean squared error; parameters and fitted values as of LockstepClassifier.

    y is (n,) or (n, targets). Each target is scaled to mean 0 and deviation 1 if `normalize` is true, which losses and
    the outputs of `module_` are in units of. Without `global_batch`, a batch has 32 to 200 rows, for about 50 steps in
    an epoch. A function with two parameters as `model` is called with the numbers of features and of targets.
    `history_` has R² in place of accuracies.
    """

    _loss = "mse"

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """Train on rows X (n, features) and numbers y, (n,) or (n, targets); return the estimator.

        `sample_weight` (n,) is how much each row counts, in proportion. Raises ValueError for arrays that do not
        fit, as scikit-learn does, `JobError` for a wrong parameter, `RunError` if the run fails.
        """
        x, targets = self._checked(X, y, reset=True)
        return self._fit(x, targets, 0, _checked_weights(x, sample_weight))

    def partial_fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:  # noqa: N803
        """Train with each row of X (n, features) once, in this process, from where the last call ended.

        y is (n,) or (n, targets). The first call decides how columns are scaled. Raises what `fit` raises.
        """
        x, targets = self._checked(X, y, reset=not hasattr(self, "_stream"))
        return self._partial_fit(x, targets, 0, _checked_weights(x, sample_weight))

    def _checked(self, x: ArrayLike, y: ArrayLike, *, reset: bool) -> tuple[NDArray[np.float32], Floats]:
        rows, targets = validate_data(self, x, y, dtype=np.float32, multi_output=True, y_numeric=True, reset=reset)
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = column_or_1d(targets, warn=True)
        self._has_one_target = targets.ndim == 1
        return rows, targets.reshape(len(rows), -1).astype(np.float64)

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the numbers of each row, in the shape that y had: (n,) or (n, targets).

        Raises NotFittedError before `fit`, ValueError for another number of features.
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if self._has_one_target else outputs


def _checked_weights(x: Rows, given: ArrayLike | None) -> Floats | None:
    return None if given is None else np.asarray(_check_sample_weight(given, x, dtype=np.float64), np.float64)


def _plain(value: Any) -> Any:
    """Return a number or text that a search drew from an array as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _figures(epoch: Any) -> dict[str, Any]:
    """Return the figures of an epoch that an estimator has: none of a test set."""
    names = ("epoch", "loss", "accuracy", "r2", "val_loss", "val_accuracy", "val_r2", "wall_s", "weights_sha256")
    others = {name: value for name, value in epoch.metrics.items() if not name.startswith("test_")}
    return {**{name: value for name in names if (value := getattr(epoch, name)) is not None}, **others}

"""The estimators are what scikit-learn expects of one, and their bits are those of `fit`."""

import copy
import inspect
import pickle
import pickletools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs scikit-learn: .venv/bin/pip install -e '.[sklearn]'")

from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  # makes the next import possible
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from lockstep import fit, nn
from lockstep.common.errors import DivergedError, JobError, LockstepError, ModelError
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.numerics import own_numerics
from lockstep.sklearn import LockstepClassifier, LockstepRegressor
from lockstep.sklearn.estimators import ELSEWHERE, FOLLOWING
from lockstep.sklearn.network import column_moments, scaled
from tests.lockstep.sklearn.own_network import OwnNetwork, fixed, unusual, with_dropout

#: What a quick fit is given.
QUICK: dict[str, Any] = {
    "model": (8,),
    "epochs": 3,
    "global_batch": 32,
    "micro_batches": 2,
    "lr": 0.01,
    "patience": None,
}

Features = np.ndarray[Any, np.dtype[np.float32]]


def blobs(count: int = 120) -> tuple[Features, Any]:
    """Return rows of six features, and the names of three classes that differ in the first of them."""
    rng = generator(0, Purpose.CANARY)
    classes = np.arange(count) % 3
    x = rng.standard_normal((count, 6), dtype=np.float32)
    x[:, 0] += 4 * classes
    return x, np.array(["low", "middle", "high"])[classes]


def numbers(count: int = 120) -> tuple[Features, Any]:
    """Return rows and two numbers for each."""
    x, _ = blobs(count)
    return x, np.stack([x[:, 0] - x[:, 1], x[:, 2]], axis=1)


def classifier(**changed: Any) -> LockstepClassifier:
    return LockstepClassifier(**{**QUICK, **changed})


def regressor(**changed: Any) -> LockstepRegressor:
    return LockstepRegressor(**{**QUICK, **changed})


def indices(y: Any) -> Any:
    """Return the classes of `blobs` as a job has them."""
    return np.unique(y, return_inverse=True)[1].astype(np.int64)


def run_of(x: Any, y: Any, folder: Path, layers: nn.Module, **values: Any) -> Any:
    """Train the same by `fit`, with any test set."""
    given = {"epochs": 3, "global_batch": 32, "micro_batches": 2, "optimizer": "adam", "lr": 0.01, **values}
    return fit(layers, ((x, y), (x[:3], y[:3])), run_dir=folder / "run", workers=0, verbose=False, **given)


def standard(x: Features) -> Features:
    """Return rows with mean 0 and deviation 1 in each column, as an estimator prepares them."""
    return scaled(x, column_moments(x))


#: As quick as the checks allow, which want a little to be learned.
LEARNING: dict[str, Any] = {"model": (16,), "epochs": 15, "lr": 0.03, "global_batch": 32, "patience": None}


@pytest.mark.parametrize(
    "estimator",
    [
        LockstepClassifier(**LEARNING),
        LockstepRegressor(**LEARNING),
        pytest.param(LockstepClassifier(), marks=pytest.mark.slow),
        pytest.param(LockstepRegressor(), marks=pytest.mark.slow),
    ],
    ids=["classifier", "regressor", "classifier with defaults", "regressor with defaults"],
)
def test_the_estimators_pass_all_checks(estimator: Any) -> None:
    # As of scikit-learn's own networks: batches are drawn by the places of rows, and copies have others.
    failing = {"check_sample_weight_equivalence_on_dense_data": "the same rows in another order give other batches"}
    results = check_estimator(estimator, expected_failed_checks=failing, on_skip=None)
    assert {result["status"] for result in results} <= {"passed", "skipped", "xfail"}
    skipped = {result["check_name"] for result in results if result["status"] == "skipped"}
    assert skipped <= {
        "check_array_api_input",
        "check_classifier_data_not_an_array",
        "check_regressor_data_not_an_array",
        "check_sample_weights_pandas_series",
    }
    assert sum(result["status"] == "passed" for result in results) >= 50


@pytest.mark.parametrize("kind", [LockstepClassifier, LockstepRegressor])
def test_every_value_of_a_job_is_a_parameter(kind: type) -> None:
    parameters = inspect.signature(kind).parameters
    assert set(Job.__struct_fields__) - set(FOLLOWING) <= set(parameters) == set(kind().get_params())
    assert parameters["lr"].default == kind().lr == 0.001
    assert kind(lr=0.5).lr == 0.5
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'epoch' \(did you mean 'epochs'\?\)"):
        kind(epoch=1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_iter' \(did you mean 'epochs'\?\)"):
        kind(max_iter=1)
    with pytest.raises(TypeError, match=r"'loss': it follows from the kind of estimator: cross-entropy of classes, "):
        kind(loss="l1")
    assert set(ELSEWHERE.values()) <= set(parameters)
    assert not set(ELSEWHERE) & set(parameters)


def test_a_classifier_has_the_bits_of_fit(tmp_path: Path) -> None:
    x, y = blobs()
    layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    values = {"validation_split": 0.25, "keep_best": True, "label_smoothing": 0.1, "metrics": ["f1"]}
    run = run_of(standard(x), indices(y), tmp_path, layers, seed=5, normalize=False, **values)
    fitted = classifier(random_state=5, **values).fit(x, y)
    assert fitted.weights_sha256_ == run.weights_sha256
    assert [epoch["val_loss"] for epoch in fitted.history_] == [epoch.val_loss for epoch in run.history]
    assert [(epoch["f1"], epoch["val_f1"]) for epoch in fitted.history_] == [
        (epoch.metrics["f1"], epoch.metrics["val_f1"]) for epoch in run.history
    ]
    assert not [name for name in fitted.history_[0] if name.startswith("test_")]
    assert fitted.workers_ == 0


def test_a_regressor_has_the_bits_of_fit(tmp_path: Path) -> None:
    x, y = numbers()
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    run = run_of(standard(x), standard(y), tmp_path, layers, loss="mse", wire="bfloat16", normalize=False)
    fitted = regressor(activation="tanh", wire="bfloat16").fit(x, y)
    held_out = regressor(activation="tanh", validation_split=0.25).fit(x, y)
    assert held_out.history_[-1]["val_r2"] <= 1.0
    assert fitted.weights_sha256_ == run.weights_sha256
    assert [epoch["r2"] for epoch in fitted.history_] == [epoch.r2 for epoch in run.history]


def test_native_numerics_are_a_parameter_and_end_with_the_training() -> None:
    x, y = blobs()
    assert classifier(numerics="native", workers=0).fit(x, y).partial_fit(x, y).n_iter_ > 0
    assert own_numerics() == "portable"


def test_images_are_shifted_as_in_fit(tmp_path: Path) -> None:
    rng = generator(0, Purpose.CANARY)
    x, y = rng.integers(0, 255, (40, 1, 28, 28)).astype(np.float32), np.arange(40) % 10
    run = run_of(x, y, tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), max_shift=2)
    fitted = classifier(model="linear", sample_shape=(1, 28, 28), max_shift=2).fit(x.reshape(40, -1), y)
    assert fitted.weights_sha256_ == run.weights_sha256


def test_labels_and_probabilities() -> None:
    x, y = blobs()
    fitted = classifier(epochs=30).fit(x, y)
    assert list(fitted.classes_) == ["high", "low", "middle"]
    assert fitted.score(x, y) > 0.9
    probabilities = fitted.predict_proba(x)
    assert np.allclose(probabilities.sum(axis=1), 1.0, rtol=1e-12)
    assert (fitted.classes_[probabilities.argmax(axis=1)] == fitted.predict(x)).all()
    assert np.array_equal(fitted.predict_log_proba(x), np.log(probabilities))


@pytest.mark.parametrize("columns", [1, 2])
def test_a_regressors_predictions_have_the_shape_of_y(columns: int) -> None:
    x, y = numbers()
    y = y[:, 0] if columns == 1 else y
    fitted = regressor(epochs=60).fit(x, y)
    assert fitted.predict(x).shape == y.shape
    assert fitted.score(x, y) > 0.8


def test_a_prediction_depends_on_its_row_alone() -> None:
    x, y = blobs(300)
    fitted = classifier().fit(x, y)
    whole = fitted.predict_proba(x)
    assert np.allclose(np.concatenate([fitted.predict_proba(row[None]) for row in x[:20]]), whole[:20], rtol=1e-9)
    assert np.allclose(fitted.predict_proba(x[::-1]), whole[::-1], rtol=1e-9)


def test_predictions_use_the_training_sets_moments() -> None:
    x, y = blobs()
    fitted, other = classifier().fit(x, y), classifier(normalize=False).fit(x, y)
    loaded = copy.deepcopy(other)
    loaded.weights_ = fitted.weights_
    loaded._opened = None
    assert np.allclose(loaded.predict_proba(standard(x)), fitted.predict_proba(x), atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [(), 8, np.int64(8), [8, 4], fixed, with_dropout, nn.Sequential(nn.Linear(6, 3)), OwnNetwork, OwnNetwork()],
    ids=["linear", "one", "numpys", "list", "fixed", "shaped", "module", "own class", "own module"],
)
def test_a_network_is_sizes_or_what_builds_it(network: Any) -> None:
    x, y = blobs()
    fitted = clone(classifier(model=network)).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    assert again.module_.state_dict().keys() == fitted.weights_.keys()
    assert clone(fitted).partial_fit(x, y, classes=np.unique(y)).weights_.keys() == fitted.weights_.keys()


@pytest.mark.parametrize(
    ("model", "shape"), [("dense", None), ("dense", (1, 2, 3)), ("conv", (1, 2, 3))], ids=["rows", "flat", "pictures"]
)
def test_a_name_whose_sizes_follow_from_the_data_has_those_of_the_estimators(model: str, shape: Any) -> None:
    x, y = blobs()
    fitted = classifier(model=model, sample_shape=shape).fit(x, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict_proba(x).shape == (len(x), 3)
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    if model == "dense" and shape is None:
        assert fitted.weights_sha256_ == classifier(model=(128, 64)).fit(x, y).weights_sha256_
    targets = np.stack([x[:, 0], x[:, 1]], axis=1)
    regressor = LockstepRegressor(model, sample_shape=shape, epochs=1, workers=0).fit(x, targets)
    assert regressor.predict(x).shape == (len(x), 2)


def test_a_network_may_be_a_function_in_a_file() -> None:
    x, y = blobs()
    path = Path(__file__).with_name("own_network.py")
    assert (
        classifier(model=f"{path}:fixed").fit(x, y).weights_sha256_ == classifier(model=fixed).fit(x, y).weights_sha256_
    )


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"model": (8, 0)}, ModelError, r"model = \(8, 0\): expected the sizes of hidden layers, as \(100,\)"),
        ({"model": unusual}, ModelError, "needs inputs: expected a function of the numbers of inputs and outputs"),
        ({"model": list}, ModelError, r"returned \[\]: expected a Module"),
        ({"model": "mpl"}, ModelError, "did you mean 'mlp'"),
        ({"model": "linear"}, ModelError, "expected a model with 6 inputs, or model = 'dense', which takes any number"),
        ({"model": "conv"}, ModelError, r"model = 'conv' with samples of shape \(6,\): expected pictures"),
        ({"activation": "rlu"}, JobError, "activation = 'rlu' .did you mean 'relu'"),
        ({"sample_shape": (2, 2)}, JobError, r"sample_shape = \(2, 2\) has 4 values: expected 6"),
        ({"lr": -1.0}, JobError, "lr = -1.0: expected a number > 0"),
        ({"optimizer": "adams"}, JobError, "optimizer = 'adams' .*: expected one of"),
        ({"workers": -1}, JobError, "workers = -1: expected a whole number >= 0"),
        ({"monitor": "test_loss"}, JobError, "monitor = 'test_loss': expected loss, val_loss or the like"),
        ({"monitor": "val_loss"}, JobError, "without a validation set"),
    ],
)
def test_what_cannot_be_is_named(changed: dict[str, Any], error: type[LockstepError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        classifier(**changed).fit(*blobs())
    assert "\n" not in str(caught.value)


def test_a_regressor_learns_targets_of_any_scale_with_its_defaults() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(300, 5))
    y = np.stack([1e7 + 30 * np.sin(x[:, 0]) + 20 * x[:, 1], 2e-5 * (x[:, 2] + np.abs(x[:, 3]))], axis=1)
    fitted = LockstepRegressor(epochs=20).fit(x[:240], y[:240])
    assert fitted.score(x[240:], y[240:]) > 0.8
    # Steps of the batch that 240 rows have, with the bits of a batch that is given.
    given = LockstepRegressor(epochs=20, global_batch=32).fit(x[:240], y[:240])
    assert (given.weights_sha256_, given.n_iter_) == (fitted.weights_sha256_, 20)
    plain = LockstepRegressor(epochs=20, normalize=False).fit(x[:240], y[:240, 1] * 1e5)
    assert np.abs(plain.predict(x[240:]) - plain._outputs(x[240:])[:, 0]).max() == 0


def test_a_regressor_continues_with_the_scale_of_its_first_targets() -> None:
    x, y = numbers()
    whole = regressor(epochs=2).fit(x, 1000 + 50 * y)
    parts = regressor().partial_fit(x, 1000 + 50 * y).partial_fit(x, 1000 + 50 * y)
    assert parts.weights_sha256_ == whole.weights_sha256_
    assert np.array_equal(parts.predict(x), whole.predict(x))


def test_small_data_lowers_the_batch_and_numpys_numbers_are_numbers() -> None:
    x, y = blobs(9)
    changed = {"lr": np.float32(0.01), "epochs": np.int64(3), "global_batch": 200, "keep_best": np.True_}
    fitted = classifier(**changed).fit(x, y)
    assert fitted.n_iter_ == 3
    assert fitted.global_batch == 200
    with pytest.raises(JobError, match="micro_batches = 300 is more than global_batch = 200"):
        classifier(global_batch=200, micro_batches=300).fit(x, y)


@pytest.mark.parametrize(
    ("batch", "shape", "expected"), [(32, None, 1), (300, None, 2), (5000, None, 8), (32, (1, 2, 3), 2), (8, (6,), 1)]
)
def test_micro_batches_are_wide_if_they_are_not_given(batch: int, shape: tuple[int, ...] | None, expected: int) -> None:
    x, y = blobs(300)
    values = {"global_batch": batch, "sample_shape": shape, "model": nn.Sequential(nn.Flatten(), nn.Linear(6, 3))}
    one, other = (classifier(micro_batches=count, **values).fit(x, y) for count in (None, expected))
    assert one.weights_sha256_ == other.weights_sha256_
    if expected > 1:
        assert classifier(micro_batches=1, **values).fit(x, y).weights_sha256_ != one.weights_sha256_


def test_patience_watches_the_training_loss_without_a_validation_set() -> None:
    x, y = blobs()
    fitted = classifier(epochs=50, patience=2, min_delta=10.0).fit(x, y)
    assert fitted.n_iter_ == 3
    kept = classifier(epochs=50, patience=2, validation_split=0.2, lr=0.5, keep_best=True).fit(x, y)
    losses = [epoch["val_loss"] for epoch in kept.history_]
    assert kept.loss_ == kept.history_[int(np.argmin(losses))]["loss"]


def test_random_state_is_the_seed_or_where_it_is_drawn_from() -> None:
    x, y = blobs()
    digests = [classifier(random_state=seed).fit(x, y).weights_sha256_ for seed in (0, 1, np.int64(1))]
    assert digests[0] != digests[1] == digests[2]
    drawn = [classifier(random_state=np.random.RandomState(3)).fit(x, y).weights_sha256_ for _ in range(2)]
    assert drawn[0] == drawn[1] not in digests


def test_warm_start_begins_with_the_last_weights() -> None:
    x, y = blobs()
    fitted = classifier(warm_start=True, optimizer="sgd", epochs=1).fit(x, y)
    first, weights = fitted.loss_, fitted.weights_
    assert fitted.fit(x, y).loss_ < first
    assert classifier(optimizer="sgd", epochs=1).fit(x, y).loss_ == first
    assert all(not np.array_equal(weights[name], array) for name, array in fitted.weights_.items())


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_so_many_passes_are_as_many_epochs(optimizer: str, schedule: str) -> None:
    x, y = blobs()
    values = {"model": with_dropout, "optimizer": optimizer, "schedule": schedule, "epochs": 3, "global_batch": 50}
    whole, parts = classifier(**values).fit(x, y), classifier(**values)
    for _ in range(3):
        parts.partial_fit(x, y, classes=["low", "middle", "high"])
    assert all(np.array_equal(parts.weights_[name], array) for name, array in whole.weights_.items())
    assert parts.n_iter_ == 3
    assert parts.loss_ == pytest.approx(whole.history_[-1]["loss"], rel=1e-6)
    assert parts.weights_sha256_ == whole.weights_sha256_
    for name in ("epoch", "accuracy", "weights_sha256"):
        assert [epoch[name] for epoch in parts.history_] == [epoch[name] for epoch in whole.history_]


@pytest.mark.parametrize("monitor", [None, "val_accuracy"])
def test_a_stream_goes_on_after_a_fit_with_a_validation_set(monitor: str | None) -> None:
    x, y = blobs()
    fitted = classifier(epochs=2, validation_split=0.2, keep_best=True, monitor=monitor).fit(x, y)
    assert len(fitted.partial_fit(x, y).history_) == 3
    assert "val_loss" not in fitted.history_[-1]


def test_a_stream_goes_on_after_a_pickle_and_after_a_fit() -> None:
    x, y = blobs()
    parts = [slice(0, 50), slice(50, 60), slice(60, 120)]
    one, other = classifier(), classifier()
    for part in parts:
        one.partial_fit(x[part], y[part], classes=["low", "middle", "high"])
        other = pickle.loads(pickle.dumps(other.partial_fit(x[part], y[part], classes=["low", "middle", "high"])))
    assert np.array_equal(one.predict_proba(x), other.predict_proba(x))
    fitted = classifier().fit(x, y)
    before = {name: array.copy() for name, array in fitted.weights_.items()}
    loss = fitted.loss_
    fitted.partial_fit(x[:50], y[:50])
    assert all(not np.array_equal(before[name], array) for name, array in fitted.weights_.items())
    assert fitted.loss_ < 1.2 * loss
    assert fitted.n_iter_ == 4
    assert [epoch["epoch"] for epoch in fitted.history_] == [1, 2, 3, 4]
    assert fitted.history_[-1]["weights_sha256"] == fitted.weights_sha256_ != fitted.history_[-2]["weights_sha256"]
    assert fitted.workers_ == 0


def test_the_first_part_decides_how_columns_are_scaled() -> None:
    x, y = blobs()
    x[60:] *= 100
    parts = classifier().partial_fit(x[:60], y[:60], classes=np.unique(y)).partial_fit(x[60:], y[60:])
    first = column_moments(x[:60])
    fixed = classifier(normalize=False).partial_fit(scaled(x[:60], first), y[:60], classes=np.unique(y))
    fixed.partial_fit(scaled(x[60:], first), y[60:])
    assert parts.weights_sha256_ == fixed.weights_sha256_
    assert np.array_equal(parts.predict_proba(x), fixed.predict_proba(scaled(x, first)))


def test_the_first_part_decides_how_images_are_scaled() -> None:
    x, y = blobs()
    images = {"sample_shape": (1, 2, 3), "model": nn.Sequential(nn.Flatten(), nn.Linear(6, 3))}
    parts = classifier(**images).partial_fit(x, y, classes=np.unique(y)).partial_fit(100 * x, y)
    mean, std = float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))
    fixed = classifier(normalize=False, **images)
    for part in (x, 100 * x):
        fixed.partial_fit((part - mean) / std, y, classes=np.unique(y))
    assert np.allclose(parts.predict_proba(x), fixed.predict_proba((x - mean) / std), atol=1e-5)


def test_columns_of_unequal_scale_are_learned_from() -> None:
    x, y = load_wine(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x, y, random_state=0, stratify=y)
    ours = np.mean([LockstepClassifier(random_state=n).fit(train, y_train).score(test, y_test) for n in range(4)])
    theirs = [MLPClassifier(random_state=n) for n in range(4)]
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        assert ours > np.mean([each.fit(train, y_train).score(test, y_test) for each in theirs])
    assert ours > 0.95


def test_a_weight_is_as_many_copies() -> None:
    x, y = blobs()
    weights = np.arange(120) % 4
    weighted = classifier().fit(x, y, sample_weight=2 * weights)
    assert weighted.weights_sha256_ == classifier().fit(x.repeat(weights, axis=0), y.repeat(weights)).weights_sha256_
    part = classifier().partial_fit(x, y, classes=np.unique(y), sample_weight=weights)
    assert part.weights_sha256_ == weighted.history_[0]["weights_sha256"]
    x, y = numbers()
    fitted = regressor().fit(x, y, sample_weight=weights / 2)
    assert (
        fitted.weights_sha256_ == regressor().fit(x.repeat(weights, axis=0), y.repeat(weights, axis=0)).weights_sha256_
    )
    assert regressor().partial_fit(x, y, weights).weights_sha256_ == fitted.history_[0]["weights_sha256"]


def test_rare_classes_may_count_as_much_as_others() -> None:
    x, y = blobs(300)
    kept = (y != "high") | (np.arange(300) % 10 == 2)
    x, y = x[kept], y[kept]
    counts = {name: int((y == name).sum()) for name in np.unique(y)}
    balanced = classifier(class_weight="balanced").fit(x, y)
    weights = {name: len(y) / (3 * count) for name, count in counts.items()}
    assert classifier(class_weight=weights).fit(x, y).weights_sha256_ == balanced.weights_sha256_
    ones = np.ones(len(y))
    assert balanced.fit(x, y, sample_weight=ones).weights_sha256_ == balanced.weights_sha256_
    rare, plain = x[y == "high"], classifier().fit(x, y)
    assert balanced.predict_proba(rare)[:, 0].mean() > 1.5 * plain.predict_proba(rare)[:, 0].mean()
    stream = classifier(class_weight={"high": 3}).partial_fit(x, y, classes=np.unique(y))
    assert stream.weights_sha256_ != classifier().partial_fit(x, y, classes=np.unique(y)).weights_sha256_
    with pytest.raises(ValueError, match="class_weight = 'balanced' of a part of the data: expected a dict"):
        balanced.partial_fit(x, y)


def test_copies_are_not_in_the_validation_set() -> None:
    x, y = blobs()
    with pytest.raises(ValueError, match=r"weights with validation_split = 0.2: expected one of both"):
        classifier(validation_split=0.2).fit(x, y, sample_weight=np.ones(120))


def test_a_part_may_lack_the_last_class_and_has_no_other() -> None:
    x, y = blobs()
    part = classifier().partial_fit(x[y != "middle"], y[y != "middle"], classes=["low", "middle", "high"])
    assert part.predict_proba(x).shape == (120, 3)
    with pytest.raises(ValueError, match=r"y has 'other': expected one of .'high', 'low', 'middle'."):
        part.partial_fit(x[:2], ["other", "low"])
    with pytest.raises(ValueError, match="the first call of partial_fit got no classes"):
        classifier().partial_fit(x, y)


def test_a_stream_that_diverges_names_the_layer() -> None:
    x, y = numbers()
    stream = regressor(optimizer="sgd", lr=1e20)
    with pytest.raises(DivergedError, match="is not finite"):
        stream.partial_fit(x, y)


def test_a_pickle_holds_arrays_and_names_nothing_that_runs() -> None:
    x, y = blobs()
    fitted = classifier().fit(x, y)
    data = pickle.dumps(fitted, protocol=2)  # in which all that it names stands in one place
    named = {str(argument) for code, argument, _ in pickletools.genops(data) if code.name == "GLOBAL"}
    assert (
        named
        == {
            "lockstep.sklearn.estimators LockstepClassifier",
            "lockstep.sklearn.training Stream",
            "copy_reg _reconstructor",
            "__builtin__ object",
            "numpy ndarray",
            "numpy dtype",
            "numpy._core.multiarray _reconstruct",
            "numpy._core.multiarray scalar",
            "_codecs encode",
        }
        & named
    )
    assert "lockstep.sklearn.estimators LockstepClassifier" in named
    again = pickle.loads(data)
    assert again._opened is None
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))


GRID = {"lockstepclassifier__lr": [0.001, 0.01, 0.1], "lockstepclassifier__model": [(), (8,)]}


def searched(search: type, workers: int, **values: Any) -> Any:
    """Return what a search found, without times."""
    x, y = blobs()
    pipeline = make_pipeline(StandardScaler(), classifier(workers=workers))
    found = search(pipeline, GRID, cv=3, n_jobs=1, **values).fit(x, y)
    results = {name: list(map(str, each)) for name, each in found.cv_results_.items() if "time" not in name}
    return results, found.best_estimator_[-1].weights_sha256_


@pytest.mark.parametrize(
    ("search", "values"), [(GridSearchCV, {}), (HalvingGridSearchCV, {"random_state": 0, "min_resources": 40})]
)
def test_a_search_finds_the_same_for_any_number_of_workers(search: type, values: dict[str, Any]) -> None:
    alone, three = (searched(search, workers, **values) for workers in (0, 3))
    assert alone == three
    assert len(set(alone[0]["mean_test_score"])) > 1


@pytest.mark.slow
def test_processes_of_a_search_find_the_same() -> None:
    x, y = blobs()
    grid = {"lr": [0.001, 0.1]}
    one, two = (GridSearchCV(classifier(), grid, cv=3, n_jobs=jobs).fit(x, y) for jobs in (1, 2))
    assert one.cv_results_["split0_test_score"].tolist() == two.cv_results_["split0_test_score"].tolist()
    assert one.best_estimator_.weights_sha256_ == two.best_estimator_.weights_sha256_


def test_epochs_are_reported_without_a_test_set_which_an_estimator_does_not_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    classifier(epochs=2, verbose=True).fit(*blobs())
    regressor(epochs=1, verbose=True, validation_split=0.2).fit(*numbers())
    shown = capsys.readouterr().out
    assert [line.split()[0:2] for line in shown.splitlines()] == [["epoch", "1/2"], ["epoch", "2/2"], ["epoch", "1/1"]]
    assert "test" not in shown

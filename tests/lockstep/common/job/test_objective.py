"""What a loss compares, what it counts, and what a model's output has to be for it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.dataset import Dataset
from lockstep.common.data.records import as_records, labels_with
from lockstep.common.errors import DataError, ModelError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import OwnCode
from lockstep.common.job.tally import Tally

REGRESSION = Objective(Job(loss="mse"))
CLASSES = Dataset(np.zeros((2, 4), np.float32), np.zeros(2, np.int64), 3)
PLACES = Dataset(np.zeros((2, 4), np.int32), np.zeros((2, 4), np.int64), 3)
NUMBERS = Dataset(np.zeros((4, 5), np.float32), np.array([[1, 0], [3, 0], [1, 0], [3, 8]], np.float32), 0)


def test_classes_are_counted_one_a_sample() -> None:
    objective, outputs = Objective(Job(label_smoothing=0.5)), Tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    targets = objective.targets(np.array([1, 0, 0]))
    loss = objective.test_loss(outputs, targets)[0]
    # -log of 1 / (1 + 1/e), of 1 / (1 + 1/e³) and of 1 / (1 + e²).
    assert loss.item() == pytest.approx(np.log1p(np.exp([-1, -3, 2])).sum(), rel=1e-6)
    assert objective.tally(loss.data, outputs.data, targets) == Tally(loss.item(), 3, metrics=(2, 3))
    assert objective.training_loss(outputs, targets)[0].item() > loss.item()  # its labels are smoothed


def test_of_sequences_every_place_is_a_target() -> None:
    logits, labels = np.zeros((2, 3, 4), np.float32), np.array([[0, 1, 2], [3, 0, 0]])
    logits[0, 1, 1] = 5.0
    objective, outputs = Objective(), Tensor(logits, requires_grad=True)
    targets = objective.targets(labels)
    loss = objective.training_loss(outputs, targets)[0]
    flat = Tensor(logits.reshape(6, 4), requires_grad=True)
    expected = objective.training_loss(flat, labels.reshape(6))[0]
    loss.backward()
    expected.backward()
    assert loss.data.tobytes() == expected.data.tobytes()
    assert outputs.grad is not None
    assert flat.grad is not None
    assert outputs.grad.tobytes() == flat.grad.tobytes()
    # Of equal scores the first class is taken: right are the zeros, and the one that stands out.
    assert objective.tally(loss.data, outputs.data, targets) == Tally(loss.item(), 6, metrics=(4, 6))


def test_numbers_are_counted_one_by_one_and_none_is_right() -> None:
    outputs = Tensor([[1.0, 2.0], [0.0, 0.0]])
    targets = REGRESSION.targets(np.array([[1.0, 4.0], [3.0, 0.0]], np.float32))
    loss = REGRESSION.training_loss(outputs, targets)[0]
    assert loss.item() == 13.0
    assert REGRESSION.tally(loss.data, outputs.data, targets) == Tally(13.0, 4)


def test_integers_are_numbers_too() -> None:
    targets = REGRESSION.targets(np.array([3, 1]))
    assert targets.dtype == np.float32
    assert targets.tolist() == [[3.0], [1.0]]


@pytest.mark.parametrize(
    ("objective", "data", "fitting", "other", "told"),
    [
        (Objective(), CLASSES, (2, 3), (2, 5), r"expected \(2, 3\), one number for each of 3 classes"),
        (Objective(), PLACES, (2, 4, 3), (2, 3), r"expected \(2, 4, 3\), one number for each of 3 classes"),
        (REGRESSION, NUMBERS, (2, 2), (2, 1), r"expected \(2, 2\), one number for each of 2 targets, as loss = 'mse'"),
        (REGRESSION, CLASSES, (2, 1), (2,), r"expected \(2, 1\), one number for each of 1 targets"),
    ],
)
def test_the_models_output_has_to_fit(
    objective: Objective, data: Dataset, fitting: tuple[int, ...], other: tuple[int, ...], told: str
) -> None:
    objective.check_fit(data, fitting)
    with pytest.raises(ModelError, match=told):
        objective.check_fit(data, other)


def test_classes_have_to_be_integers() -> None:
    REGRESSION.check_labels(NUMBERS)
    Objective().check_labels(CLASSES)
    with pytest.raises(DataError, match=r"real numbers, and loss = 'cross-entropy' needs classes.*or loss = 'mse'"):
        Objective().check_labels(NUMBERS)


def test_classes_with_names_are_not_numbers() -> None:
    Objective().check_labels(CLASSES, ("cat", "dog", "owl"))
    REGRESSION.check_labels(CLASSES)
    with pytest.raises(DataError, match=r"3 classes with names \('cat', …\), and loss = 'mse' needs numbers"):
        REGRESSION.check_labels(CLASSES, ("cat", "dog", "owl"))
    with pytest.raises(DataError, match=r"expected loss = 'cross-entropy'$"):
        REGRESSION.check_labels(CLASSES, ("1", "2", "owl"))
    with pytest.raises(DataError, match=r"or a table packed with --task numbers$"):
        REGRESSION.check_labels(CLASSES, ("-1", "2.5", "3"))


def test_who_answers_with_the_mean_is_wrong_by_the_variance() -> None:
    assert Objective().guess(CLASSES) is None
    # Of the columns 1, 3, 1, 3 and 0, 0, 0, 8: variances 1 and 12.
    assert REGRESSION.guess(NUMBERS) == 6.5


@pytest.mark.parametrize(
    ("images", "labels", "classes", "told"),
    [
        (np.full((2, 4), -1, np.int32), np.zeros(2, np.int64), 3, "token -1 in sample 0: expected integers from 0"),
        (np.zeros((2, 4), np.int32), np.full((2, 4), 3), 3, r"label 3 at index 0: expected an integer in \[0, 3\)"),
        (
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.float32),
            0,
            r"shape \(2,\): expected float32 and \(n, targets\)",
        ),
        (np.zeros((2, 4), np.float32), np.array([[0], [np.inf]], np.float32), 0, "label 1 holds an infinity or NaN"),
        (np.zeros((2, 4, 4), np.int32), np.zeros(2, np.int64), 3, "images of dtype 'int32': expected uint8 or float32"),
    ],
)
def test_samples_and_labels_have_to_fit(images: NDArray[Any], labels: NDArray[Any], classes: int, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Dataset(images, labels, classes)


PIXELS = Dataset(np.zeros((2, 1, 2, 3), np.uint8), np.array([[[0, 1, 255], [2, 2, 0]]] * 2), 256)


def test_of_images_every_pixel_is_a_target_and_an_ignored_one_counts_for_nothing() -> None:
    objective = Objective(Job(ignore_index=255, class_weights=(1.0, 2.0, 0.5)))
    objective.check_labels(PIXELS)
    objective.check_fit(PIXELS, (2, 3, 2, 3))
    targets = objective.targets(PIXELS.labels)
    scores = np.zeros((2, 3, 2, 3), np.float32)
    scores[:, 2] = 1.0
    loss, weight = objective.training_loss(Tensor(scores), targets)
    tally = objective.tally(loss.data, scores, targets, weight)
    # Of each image: 0, 1, 2, 2 and 0 are counted, and both places of class 2 are right.
    assert (tally.count, tally.ignored, tally.metrics, tally.weight) == (12, 2, (4, 10), 2 * (1 + 2 + 0.5 + 0.5 + 1))
    assert tally.divisor == 10.0
    wrong, right = np.log(2 + np.e), np.log(2 + np.e) - 1
    assert tally.loss == pytest.approx((4 * wrong + 1 * right) / 5, rel=1e-6)


def test_an_ignored_label_is_never_right() -> None:
    objective = Objective(Job(ignore_index=1))
    tally = objective.tally(0.0, np.array([[0, 1], [0, 1], [1, 0]], np.float32), np.array([1, 0, 0]))
    assert (tally.metrics, tally.count, tally.ignored) == ((1, 2), 3, 1)


def test_an_ignored_label_that_nobody_has_spoken_of_is_named() -> None:
    data = Dataset(np.zeros((3, 4), np.float32), np.array([0, -100, 1]), 2)
    with pytest.raises(DataError, match=r"label -100 at index 1: .* or ignore_index = -100, if such targets are not"):
        Objective().check_labels(data)
    Objective(Job(ignore_index=-100)).check_labels(data)


def test_several_labels_each_hold_or_do_not() -> None:
    objective = Objective(Job(loss="bce"))
    data = Dataset(np.zeros((2, 4), np.float32), np.array([[1, 0, 1], [0, 0, 1]]), 2)
    objective.check_labels(data)
    objective.check_fit(data, (2, 3))
    targets, outputs = objective.targets(data.labels), np.array([[2, 2, 2], [-1, -1, 0.5]], np.float32)
    loss, weight = objective.training_loss(Tensor(outputs), targets)
    expected = np.log1p(np.exp(np.array([[-2, 2, -2], [-1, -1, -0.5]]))).sum()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert objective.tally(loss.data, outputs, targets, weight) == Tally(loss.item(), 6, metrics=(5, 6))
    with pytest.raises(DataError, match=r"the label 3 at index 1: expected 0 or 1 for each of several labels"):
        objective.check_labels(Dataset(np.zeros((2, 4), np.float32), np.array([[1, 0], [3, 0]]), 4))


def test_the_weights_of_samples_are_those_of_their_targets() -> None:
    labels = labels_with({"": np.array([[0, 1], [1, 1]])}, np.array([2.0, 0.5]))
    data = Dataset(np.zeros((2, 2), np.int32), labels, 2)
    assert (data.targets, data.values.tolist()) == (2, [[0, 1], [1, 1]])
    objective = Objective()
    targets = objective.targets(labels)
    outputs = np.zeros((2, 2, 2), np.float32)
    loss, weight = objective.training_loss(Tensor(outputs), targets)
    tally = objective.tally(loss.data, outputs, targets, weight)
    assert (tally.weight, tally.count, tally.metrics) == (5.0, 4, (1, 4))
    assert tally.loss == pytest.approx(np.log(2), rel=1e-6)


def test_weights_are_one_for_each_output() -> None:
    with pytest.raises(ModelError, match="class_weights has 2 numbers: expected 3, one for each output"):
        Objective(Job(class_weights=(1.0, 2.0))).check_fit(CLASSES, (2, 3))


def test_a_dictionary_of_targets_is_for_a_loss_of_ones_own() -> None:
    labels = as_records({"box": np.ones((2, 4), np.float32), "kind": np.array([0, 1])})

    def loss(outputs: Tensor, targets: dict[str, NDArray[Any]]) -> tuple[Tensor, int]:
        return (outputs.sum(axis=1) * Tensor(targets["box"].sum(axis=1))).sum(), 3

    objective = Objective(Job(loss="mine.py:loss"), OwnCode(loss=loss))
    total, weight = objective.training_loss(Tensor(np.ones((2, 3), np.float32)), objective.targets(labels))
    assert (total.item(), weight) == (24.0, 3.0)
    assert objective.tally(total.data, np.ones((2, 3)), objective.targets(labels), weight) == Tally(24.0, 2, 0, 3.0)


def test_a_count_that_is_none_is_refused() -> None:
    objective = Objective(Job(loss="mine.py:loss"), OwnCode(loss=lambda outputs, targets: (outputs.sum(), -1)))
    with pytest.raises(ModelError, match=r"mine.py:loss returned the count -1.0: expected a finite number"):
        objective.training_loss(Tensor([[1.0]]), np.zeros(1, np.int64))


def test_classes_of_a_sequence_may_be_the_last_axis_or_the_one_before() -> None:
    labels, scores = np.array([[0, 1, 2, 1], [2, 0, 0, 1]]), np.arange(24, dtype=np.float32).reshape(2, 4, 3) % 5
    objective, data = Objective(), Dataset(np.zeros((2, 4), np.int32), labels, 3)
    objective.check_fit(data, (2, 4, 3))
    objective.check_fit(data, (2, 3, 4))
    targets = objective.targets(labels)
    last, before = (objective.training_loss(Tensor(each), targets)[0] for each in (scores, scores.swapaxes(1, 2)))
    assert last.item() == pytest.approx(before.item())
    assert objective.correct(scores, targets) == objective.correct(scores.swapaxes(1, 2), targets)


WEIGHTS = np.array([2.0, 0.5, 1.0, 0.0])


def test_weights_of_samples_are_those_of_each_of_their_numbers() -> None:
    labels = labels_with({"": NUMBERS.labels}, WEIGHTS)
    targets, outputs = REGRESSION.targets(labels), np.full((4, 2), 2.0, np.float32)
    loss, weight = REGRESSION.training_loss(Tensor(outputs), targets)
    assert loss.item() == (WEIGHTS[:, np.newaxis] * np.square(outputs - NUMBERS.labels)).sum()
    assert REGRESSION.tally(loss.data, outputs, targets, weight) == Tally(loss.item(), 8, 0, 7.0)
    # As if each sample were there as often as it weighs.
    weighted = Dataset(NUMBERS.images, labels, 0)
    repeated = NUMBERS.labels.repeat([4, 1, 2, 0], axis=0)
    expected = REGRESSION.guess(Dataset(np.zeros((7, 5), np.float32), repeated, 0))
    assert expected == pytest.approx(np.var(repeated, axis=0).mean())
    assert REGRESSION.guess(weighted) == pytest.approx(expected)


def test_the_mean_that_r2_is_measured_against_is_that_of_each_number() -> None:
    far = NUMBERS.labels + np.array([0, 100], np.float32)
    assert REGRESSION.guess(Dataset(NUMBERS.images, far, 0)) == 6.5


@pytest.mark.parametrize("class_weights", [(), (1.0, 3.0)])
def test_weights_of_samples_do_not_count_where_a_label_is_ignored(class_weights: tuple[float, ...]) -> None:
    objective = Objective(Job(ignore_index=9, class_weights=class_weights))
    targets = objective.targets(labels_with({"": np.array([0, 9, 1, 9])}, np.array([2.0, 0.5, 1.0, 4.0])))
    outputs = np.zeros((4, 2), np.float32)
    loss, weight = objective.training_loss(Tensor(outputs), targets)
    expected = 2.0 + (class_weights[1] if class_weights else 1.0)
    assert weight == expected
    assert loss.item() == pytest.approx(expected * np.log(2), rel=1e-6)
    tally = objective.tally(loss.data, outputs, targets, weight)
    assert (tally.count, tally.ignored, tally.metrics) == (4, 2, (1, 2))


@pytest.mark.parametrize("name", ["mse", "l1", "smooth-l1", "bce"])
def test_numbers_of_each_pixel_are_compared_with_the_outputs_in_their_places(name: str) -> None:
    objective, places = Objective(Job(loss=name)), np.arange(12).reshape(2, 2, 3)
    kind = np.int64 if name == "bce" else np.float32
    data = Dataset(np.zeros((2, 1, 2, 3), np.uint8), (places % 2).astype(kind), 2 if name == "bce" else 0)
    objective.check_fit(data, (2, 2, 3))
    targets, outputs = objective.targets(data.labels), (places / 8 - 0.5).astype(np.float32)
    loss, weight = objective.training_loss(Tensor(outputs), targets)
    away = outputs - places % 2
    sums = {
        "mse": np.square(away).sum(),
        "l1": np.abs(away).sum(),
        "smooth-l1": np.where(np.abs(away) < 1, np.square(away) / 2, np.abs(away) - 0.5).sum(),
        "bce": np.log1p(np.exp(np.where(places % 2, -outputs, outputs))).sum(),
    }
    assert loss.item() == pytest.approx(sums[name], rel=1e-6)
    right = (int(np.count_nonzero((outputs > 0) == (places % 2))), 12) if name == "bce" else ()
    assert objective.tally(loss.data, outputs, targets, weight) == Tally(loss.item(), 12, metrics=right)


def test_of_images_an_answer_is_right_in_its_place_alone() -> None:
    objective, labels = Objective(), np.arange(12).reshape(2, 2, 3) % 5
    scores = np.moveaxis(np.eye(5, dtype=np.float32)[labels], -1, 1)
    assert objective.correct(scores, objective.targets(labels)) == 12
    assert objective.correct(scores[..., ::-1], objective.targets(labels)) == np.count_nonzero(
        labels == labels[..., ::-1]
    )


def test_what_a_label_weighs_where_it_holds() -> None:
    objective = Objective(Job(loss="bce", class_weights=(2.0, 0.5)))
    outputs = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32)
    loss, weight = objective.training_loss(Tensor(outputs), objective.targets(np.array([[1, 0], [0, 1]])))
    holds, not_ = (np.log1p(np.exp(sign * outputs.astype(np.float64))) for sign in (-1, 1))
    assert loss.item() == pytest.approx(2 * holds[0, 0] + not_[0, 1] + not_[1, 0] + 0.5 * holds[1, 1], rel=1e-6)
    assert weight is None


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (lambda outputs, targets: 1 / 0, "raised ZeroDivisionError: .*: expected a function of outputs"),
        (lambda outputs, targets: (outputs, 1), r"returned losses of shape \(1, 2\): expected their sum"),
        (lambda outputs, targets: (3.0, 1), r"returned 3\.0 as the sum of the losses: expected a tensor"),
        (lambda outputs, targets: (outputs.sum(), np.inf), "returned the count inf: expected a finite number"),
    ],
)
def test_a_loss_of_ones_own_that_is_none_is_named(own: Any, text: str) -> None:
    objective = Objective(Job(loss="mine.py:loss"), OwnCode(loss=own))
    with pytest.raises(ModelError, match=f"^mine.py:loss {text}"):
        objective.training_loss(Tensor([[1.0, 2.0]]), np.zeros(1, np.int64))


def test_a_loss_of_ones_own_may_count_nothing() -> None:
    objective = Objective(Job(loss="mine.py:loss"), OwnCode(loss=lambda outputs, targets: (outputs.sum(), 0)))
    assert objective.training_loss(Tensor([[1.0, 2.0]]), np.zeros(1, np.int64))[1] == 0.0


def test_rows_of_one_hot_classes_are_told_how_to_become_classes() -> None:
    own = Objective(Job(model="mine.py:net"))
    rows = Dataset(np.zeros((2, 4), np.float32), np.array([[0, 0, 1], [1, 0, 0]]), 2)
    with pytest.raises(ModelError, match=r"change the last layer; for one-hot rows, give \.argmax\(axis=1\)"):
        own.check_fit(rows, (2, 3))
    column = Dataset(np.zeros((2, 4), np.float32), np.array([[0], [1]]), 2)
    with pytest.raises(ModelError, match=r"or, as the labels are a column, \(n, 1\), give labels\[:, 0\]$"):
        Objective().check_fit(column, (2, 2))
    for data, shape in ((PLACES, (2, 3)), (rows, (2, 3, 4)), (CLASSES, (2, 4))):
        with pytest.raises(ModelError, match=r"change the last layer$"):
            own.check_fit(data, shape)


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 3, 4)])
def test_weights_of_classes_are_as_many_wherever_the_classes_are(shape: tuple[int, ...]) -> None:
    Objective(Job(class_weights=(1.0, 2.0, 3.0))).check_fit(PLACES, shape)
    with pytest.raises(ModelError, match="class_weights has 4 numbers: expected 3, one for each output"):
        Objective(Job(class_weights=(1.0, 2.0, 3.0, 4.0))).check_fit(PLACES, shape)

"""What of the data is a finding and what is not, on both sides of each limit; without a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.checking.checkup.data import (
    LEAST_OF_A_CLASS,
    check_balance,
    check_classes,
    check_features,
    check_labels,
    check_loss,
    check_samples,
)
from lockstep.checking.checkup.target import ExaminedData
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.sampler import Sampler
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import pack

Array = NDArray[Any]


def examined(images: Array, labels: Array | None = None, **values: Any) -> ExaminedData:
    """Return samples that reach a model as they are, in one batch, with those labels; without these, of two classes."""
    labels = np.arange(len(images)) % 2 if labels is None else labels
    images = images if images.dtype == np.int32 else images.astype(np.float32)
    is_regression = labels.dtype.kind == "f"
    made = labels.astype(np.float32).reshape(len(labels), -1) if is_regression else labels.astype(np.int64)
    part = Dataset(images, made, 0 if is_regression else int(made.max()) + 1)
    given: dict[str, Any] = {"loss": "mse" if is_regression else "cross-entropy", "normalize": False, **values}
    job = Job(global_batch=len(images), micro_batches=1, **given)
    return ExaminedData(job, TrainTest("arrays", part, part))


#: The column `paid` is the target in other words; it has three inputs before it, or one.
CLIENTS = "age,income,town,paid,leaves\n" + "".join(
    f"{18 + row % 60},{20_000 + 900 * (row * 7 % 50)},{('Bern', 'Genf', 'Zug')[row % 3]},{5 - row % 2 * 2},"
    f"{('no', 'yes')[row % 2]}\n"
    for row in range(300)
)


def clients(folder: Path, rows: str = CLIENTS, **options: Any) -> ExaminedData:
    """Return a table as a job has it."""
    pytest.importorskip("pyarrow")
    source = folder / "clients.csv"
    source.write_text(rows)
    packed = pack(str(source), folder / "data", PackOptions(target=("leaves",), **options))
    job = Job(data=str(packed.folder), global_batch=240, micro_batches=1)
    return ExaminedData(job, load(job.data))


def test_columns_are_called_by_their_names(tmp_path: Path) -> None:
    examined = clients(tmp_path, one_hot=("town",))
    (leak,) = check_features(examined)
    assert leak.what == "column 'paid' is the target in other words"
    assert (
        leak.change
        == "leave the column out (--drop paid, in Python drop=['paid']), if it is not known when you predict"
    )
    assert [examined.named(feature) for feature in (1, 3, 5, 6)] == [
        "column 'income'",
        "column 'town', category 'Genf',",
        "column 'paid'",
        "feature 6",
    ]


@pytest.mark.parametrize("leaves", [("no", "later", "yes"), (1.5, 70, 22.25), ("yes", "no", "yes")])
def test_a_column_of_texts_that_is_the_target_is_found_with_all_its_categories(tmp_path: Path, leaves: Any) -> None:
    lines = CLIENTS.splitlines()
    rows = [f"{line.rsplit(',', 2)[0]},{leaves[place % 3]}\n" for place, line in enumerate(lines[1:])]
    examined = clients(tmp_path, "age,income,town,leaves\n" + "".join(rows), one_hot=("town",))
    found = [finding.what for finding in check_features(examined)]
    assert found == ["column 'town' is the target in other words"]


def test_a_column_with_one_number_is_found_with_it_although_it_has_become_0(tmp_path: Path) -> None:
    lines = CLIENTS.splitlines()
    same = "".join(f"{line},{7 if place else 'floor'}\n" for place, line in enumerate(lines))
    (constant,) = check_features(clients(tmp_path, same, drop=("paid",)))
    assert constant.what == "column 'floor' is 7 in all samples"


def test_columns_that_were_not_standardized_are_found_by_name(tmp_path: Path) -> None:
    found = check_samples(clients(tmp_path, standardize=False, drop=("paid",)))
    assert [finding.kind for finding in found] == ["scale"]
    assert found[0].what == "the columns are not scaled: column 'income' is far from the others"
    assert "column 'age' has mean" in found[0].evidence


def test_columns_that_were_standardized_or_are_alike_need_no_scaling(tmp_path: Path) -> None:
    assert check_samples(clients(tmp_path, drop=("paid",))) == []
    (tmp_path / "alike").mkdir()
    # The place of a category is no size.
    assert check_samples(clients(tmp_path / "alike", standardize=False, columns=("age", "town"))) == []


def test_classes_are_called_by_their_names() -> None:
    train, test = np.array([1] * 60 + [0]), np.array([0, 2])
    assert [finding.what for finding in check_balance(train, test, ("cat", "dog", "ox"))] == [
        "class 'ox' is in the test set and not in the training set",
        "nearly all training samples are of class 'dog'",
    ]
    (untested,) = check_balance(np.arange(60) % 2, np.zeros(60, np.int64), ("cat", "dog"))
    assert untested.evidence.endswith("class 'dog' would have 30")


@pytest.mark.parametrize(
    ("train", "test", "is_sequence", "text"),
    [
        ([0, 1], [0, 1], False, ""),
        ([], [], False, ""),
        ([[0, 1]], [[0, 1]], True, ""),
        ([[0, 1]], [0, 1], False, r"the training labels are rows and not numbers: their shape is (1, 2)"),
        ([0, 1], [[0, 1]], False, "the test labels are rows and not numbers: their shape is (1, 2)"),
        (np.eye(2)[[0, 1, 1]], [0, 1], False, "the training labels are rows and not numbers: their shape is (3, 2)"),
        (
            [[0.7], [20.1]],
            [[0.5]],
            False,
            (
                "the training labels are rows of numbers, and loss = 'cross-entropy' compares classes: their shape is "
                "(2, 1), their dtype 'float64', and they are not one-hot"
            ),
        ),
        ([[0], [2]], [[0]], False, "the training labels are a column and not a list of numbers: their shape is (2, 1)"),
        ([0.0], [0], False, "the training labels are not whole numbers: their dtype is 'float64'"),
        ([0], [False], False, "the test labels are not whole numbers: their dtype is 'bool'"),
        ([0], np.array([1], np.uint8), False, ""),
        ([2, -1, -3], [0], False, "a training label is out of range: label -3 at index 2"),
        ([0], [0, -1], False, "a test label is out of range: label -1 at index 1"),
    ],
)
def test_labels_are_whole_numbers_from_0(train: Any, test: Any, is_sequence: bool, text: str) -> None:
    first, second = (np.array(each, None if len(each) else np.int64) for each in (train, test))
    found = check_labels(first, second, is_sequence=is_sequence)
    assert [str(finding).partition(";")[0] for finding in found] == ([text] if text else [])


@pytest.mark.parametrize(
    ("train", "test", "outputs", "text"),
    [
        ([0, 1, 2], [0], 3, ""),
        ([0], [0, 1, 2], 3, ""),
        ([1, 2, 3], [1], 3, "labels are out of range: 1 to 3, and the model has 3 outputs: label 3 needs 4 outputs"),
        ([1], [3], 3, "labels are out of range: 1 to 3, and the model has 3 outputs: label 3 needs 4 outputs"),
        ([0, 3], [1], 3, "labels are out of range: 0 to 3, and the model has 3 outputs: label 3 needs 4 outputs"),
        ([1, 4], [2], 3, "labels are out of range: 1 to 4, and the model has 3 outputs: label 4 needs 5 outputs"),
        ([2], [0, 3], 3, "labels are out of range: 0 to 3, and the model has 3 outputs: label 3 needs 4 outputs"),
        ([0], [0], 1, ""),
        ([0], [1], 3, "the model has 3 outputs for 2 classes: the largest label is 1"),
        ([], [1, 2], 2, "labels are out of range: 1 to 2, and the model has 2 outputs: label 2 needs 3 outputs"),
        ([1, 2], [], 2, "labels are out of range: 1 to 2, and the model has 2 outputs: label 2 needs 3 outputs"),
    ],
)
def test_there_are_as_many_outputs_as_classes(train: list[int], test: list[int], outputs: int, text: str) -> None:
    found = check_classes(np.array(train, np.int64), np.array(test, np.int64), outputs)
    assert [str(finding).partition(";")[0] for finding in found] == ([text] if text else [])
    assert ["pass labels - 1" in str(finding) for finding in found] == ["1 to 3" in text or "1 to 2" in text] * len(
        found
    )


@pytest.mark.parametrize(
    ("train", "test", "texts"),
    [
        ([0] * 9 + [1], [0, 1], []),
        ([0] * 19 + [1], [0, 1], ["nearly all training samples are of class 0: 19 of 20"]),
        ([2] * 19 + [0], [0], ["nearly all training samples are of class 2: 19 of 20"]),
        ([0] * 9, [0], []),
        ([0, 1], [0], []),
        (
            [1, 1, 5, 5],
            [0, 1, 3, 7],
            ["class 0 is in the test set and not in the training set: 3 of 4 classes of the test set have no t"],
        ),
        ([0, 1], [0] * 39, []),
        (
            [0, 1],
            [0] * 40,
            ["class 1 is in the training set and not in the test set: 1 of 2 classes have no test sample; by its sha"],
        ),
        (
            [0, 1, 3],
            [0] * 60,
            ["class 1 is in the training set and not in the test set: 2 of 3 classes have no test s"],
        ),
        ([0, 1, 3], [0, 2] * 60, ["class 2 is in the test set and not in the training set: 1 of 2 classes"]),
        ([1] * 20, [0, 1], ["class 0 is in the test set and", "nearly all training samples are of class 1: 20 of 20"]),
    ],
)
def test_classes_are_in_the_training_set_and_none_has_nearly_all(
    train: list[int], test: list[int], texts: list[str]
) -> None:
    found = check_balance(np.array(train), np.array(test))
    assert [str(each)[: len(text)] for each, text in zip(found, texts, strict=True)] == texts
    # Weights of classes are what the finding advises.
    weighted = check_balance(np.array(train), np.array(test), may_dominate=True)
    assert [each.kind for each in weighted] == [each.kind for each in found if "nearly all" not in each.what]


#: Half of the samples at -1, and half at 1: their mean is 0 and their deviation 1.
SIGNS = np.tile([-1.0, 1.0], 8).reshape(4, 4)


@pytest.mark.parametrize(
    ("scale", "shift", "is_found"),
    [
        *((0.021, 0.0, False), (0.019, 0.0, True), (9.9, 0.0, False), (10.1, 0.0, True)),
        *((1.0, 9.9, False), (1.0, 10.1, True), (1.0, -9.9, False), (1.0, -10.1, True)),
    ],
)
def test_samples_have_a_mean_near_0_and_a_deviation_near_1(scale: float, shift: float, is_found: bool) -> None:
    found = check_samples(examined(scale * SIGNS.reshape(4, 1, 2, 2) + shift))
    assert [finding.kind for finding in found] == ["data"] * is_found
    assert [f"mean {shift:.4g} and deviation {scale:.4g}" in finding.evidence for finding in found] == [True] * is_found
    assert ["normalize = false passes them" in finding.cause for finding in found] == [True] * is_found


def test_samples_that_are_all_the_same_are_found() -> None:
    (finding,) = check_samples(examined(np.full((8, 3), 0.25)))
    assert (finding.what, finding.evidence) == ("all samples are the same", "each value is 0.25")


def test_samples_that_are_normalised_and_yet_far_from_the_rest_are_found() -> None:
    images = np.random.default_rng(0).normal(size=(4000, 1))
    assert check_samples(examined(images, normalize=True)) == []
    job = Job(global_batch=4, micro_batches=1)
    # Those of the first step, to which all others are like one another.
    images[Sampler(4000, 4, 1, job.seed).indices(0, 0)] += 100.0
    (finding,) = check_samples(ExaminedData(job, examined(images).data))
    assert finding.cause == "these samples are far from the rest of the training set"


def test_tokens_need_no_size() -> None:
    assert check_samples(examined(np.full((4, 3), 1000, np.int32), np.arange(4) % 2)) == []


@pytest.mark.parametrize(("size", "is_found"), [(99.0, False), (101.0, True)])
def test_no_feature_is_much_larger_than_the_median(size: float, is_found: bool) -> None:
    # A feature that does not vary counts for nothing.
    images = 0.09 * np.column_stack([*(np.tile([-1.0, 1.0], 8),) * 2, size * np.repeat([-1.0, 1.0], 8), np.zeros(16)])
    found = check_samples(examined(images, np.arange(16) // 2 % 2))
    assert [finding.evidence for finding in found] == [
        "feature 2 has deviation 9.09, the median feature 0.09"
    ] * is_found


def test_features_are_looked_at_of_rows_alone() -> None:
    rng = np.random.default_rng(3)
    images, labels = rng.normal(size=(24, 4)), np.arange(24) % 2
    images[:, 1], images[:, 2] = 0.5, labels
    assert [finding.what for finding in check_samples(examined(images, labels))] == ["feature 1 is 0.5 in all samples"]
    assert check_samples(examined(images.reshape(24, 1, 2, 2), labels)) == []


def test_a_constant_feature_is_found_unless_it_is_0() -> None:
    images = np.random.default_rng(3).normal(size=(24, 4))
    images[:, 0], images[:, 3] = 0.0, 7.0
    (finding,) = check_features(examined(images))
    assert (finding.what, finding.evidence.split()[0]) == ("feature 3 is 7 in all samples", "24")
    images[23, 3] = 7.5
    assert check_features(examined(images)) == []


def leaking(rows: int, classes: int, values: Array) -> ExaminedData:
    labels = np.arange(rows) % classes
    images = np.column_stack([np.random.default_rng(3).normal(size=rows), values[labels], values[labels]])
    return examined(images, labels)


@pytest.mark.parametrize(
    ("rows", "classes", "values", "is_found"),
    [
        (20, 3, [5.0, 2.0, 9.0], True),
        (19, 3, [5.0, 2.0, 9.0], False),
        (20, 3, [5.0, 2.0, 5.0], False),  # two classes share a value
        (20, 1, [5.0], False),
        (20, 2, [0.0, 1.0], True),
    ],
)
def test_a_feature_with_one_value_for_each_class_is_the_target(
    rows: int, classes: int, values: list[float], is_found: bool
) -> None:
    found = [each for each in check_features(leaking(rows, classes, np.array(values))) if each.kind == "leak"]
    assert [(each.what, each.evidence) for each in found] == [
        ("feature 1 is the target in other words", f"it alone gives the target of all {rows} training samples")
    ] * is_found


ROWS = np.arange(60)

FINER = {
    "two values for each class": (ROWS % 6, True),
    "one row has the value of another class": (np.where(ROWS == 0, 1, ROWS % 6), False),
    "a number of its own for each row": (ROWS, False),
    "values between bounds": (100 * (ROWS % 3) + ROWS, True),
    "one row is beyond its bounds": (np.where(ROWS == 0, 130, 100 * (ROWS % 3) + ROWS), False),
}


@pytest.mark.parametrize(("column", "is_found"), FINER.values(), ids=FINER)
def test_a_feature_with_more_values_than_classes_may_be_the_target(column: Array, is_found: bool) -> None:
    noise = np.random.default_rng(3).normal(size=60)
    found = check_features(examined(np.column_stack([noise, column.astype(float)]), ROWS % 3))
    assert [each.what for each in found] == ["feature 1 is the target in other words"] * is_found


def test_a_class_of_few_rows_may_be_beyond_a_bound_by_chance() -> None:
    labels = (ROWS < LEAST_OF_A_CLASS - 1).astype(int)
    assert check_features(examined(np.column_stack([ROWS[::-1], ROWS]).astype(float), labels)) == []


@pytest.mark.parametrize(("noise", "is_found"), [(0.002, True), (0.01, False)])
@pytest.mark.parametrize("sign", [-3.0, 2.0])
def test_a_feature_on_a_line_with_a_number_is_the_target(noise: float, sign: float, is_found: bool) -> None:
    rng = np.random.default_rng(3)
    targets, images = rng.normal(size=400), rng.normal(size=(400, 3))
    images[:, 2] = sign * targets + 40 + abs(sign) * noise * rng.normal(size=400)
    found = check_features(examined(images, targets))
    assert [finding.what for finding in found] == ["feature 2 is the target in other words"] * is_found
    assert check_features(examined(images, np.column_stack([targets, targets]))) == []
    assert check_features(examined(np.column_stack([images, np.zeros(400)]), np.full(400, 2.0))) == []


def test_rows_beyond_the_first_are_not_looked_at() -> None:
    images = np.random.default_rng(3).normal(size=(20_001, 2))
    images[:, 1] = 7.0
    images[20_000] = 1.0
    (finding,) = check_features(examined(images))
    assert finding.evidence.startswith("20,000 training samples")
    images[19_999] = 1.0
    assert check_features(examined(images)) == []


@pytest.mark.parametrize(
    ("labels", "is_found"),
    [
        (np.arange(100) % 20, True),
        (np.arange(105) % 21, False),
        (np.arange(99) % 20, False),
        (np.arange(100) % 3, True),
        (np.arange(100) % 2, False),
        (np.arange(100) % 3 + 1, False),
        (np.arange(100) % 3 * 2, False),
        (np.arange(100) % 3 + 0.5, False),
    ],
)
def test_targets_that_look_like_classes_are_found(labels: Array, is_found: bool) -> None:
    found = check_loss(examined(np.zeros((len(labels), 2)), labels.astype(float)))
    assert [finding.kind for finding in found] == ["loss"] * is_found
    for finding in found:
        most = int(labels.max())
        assert finding.what.startswith(f"the targets look like {most + 1} classes")
        assert finding.evidence == f"all {len(labels)} are whole numbers from 0 to {most}"


def test_targets_that_are_all_the_same_are_found_in_their_units() -> None:
    labels = np.full((30, 1), 3000.0)
    (found,) = check_loss(examined(np.zeros((30, 2)), labels, target_scale=(2000.0, 50.0)))
    assert (found.what, found.evidence[:3]) == ("all targets are the same: 3000", "30 ")
    labels[29] = 3001.0
    assert check_loss(examined(np.zeros((30, 2)), labels, target_scale=(2000.0, 50.0))) == []


def test_classes_and_several_numbers_do_not_look_like_classes() -> None:
    labels = np.arange(100) % 3
    assert check_loss(examined(np.zeros((100, 2)), labels)) == []
    assert check_loss(examined(np.zeros((100, 2)), np.column_stack([labels, labels]).astype(float))) == []

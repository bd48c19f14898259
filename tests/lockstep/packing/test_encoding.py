"""The scale of a column is that of a plain computation over the raw values: in several blocks, with values missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep.common.data.columns import Column, samples_of
from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.packing.options import PackOptions

pa = pytest.importorskip("pyarrow")

from lockstep.packing.encoding import BLOCK_ROWS  # noqa: E402  # what may be missing
from lockstep.packing.pack_table import pack_frame  # noqa: E402

#: Three blocks, the last one short.
ROWS = 2 * BLOCK_ROWS + 3000
rng = np.random.default_rng(7)
#: Rises from block to block: their means differ by more than the rows of each.
RISING = 101.0 + np.arange(ROWS) + rng.normal(0, 3, ROWS)
#: Every seventh value is missing in the first block, and every third after it.
GAPS = np.where(np.arange(ROWS) % np.where(np.arange(ROWS) < BLOCK_ROWS, 7, 3) == 1, np.nan, RISING)
#: What is predicted: each with another mean and another deviation.
TARGETS = {"price": 5e5 + 20.0 * RISING, "year": 1950.0 + rng.normal(0, 8, ROWS)}


def packed(folder: Path, values: NDArray[np.float64], **options: Any) -> tuple[Column, NDArray[Any], NDArray[Any]]:
    """Return the column of values as its manifest has it, its samples, and the labels of all targets."""
    table = pa.table({"a": pa.array(values, from_pandas=True), **TARGETS})
    # A table of its own to test with: so all rows are of the training set, in order.
    chosen = PackOptions(target=tuple(TARGETS), **options)
    pack_frame((table, table.slice(0, 50)), folder, chosen)
    (column,) = read_manifest(folder).columns
    train = load(str(folder)).train
    return column, train.images[:][:, 0], train.labels


def test_mean_and_deviation_are_those_of_all_blocks(tmp_path: Path) -> None:
    column, samples, labels = packed(tmp_path / "new", RISING)
    assert [column.mean, column.std] == pytest.approx([RISING.mean(), RISING.std()], rel=1e-6)
    assert column.missing is None
    np.testing.assert_allclose(samples, (RISING - RISING.mean()) / RISING.std(), rtol=1e-4, atol=1e-6)
    for number, (target, values) in enumerate(
        zip(read_manifest(tmp_path / "new").targets, TARGETS.values(), strict=True)
    ):
        assert [target.mean, target.std] == pytest.approx([values.mean(), values.std()])
        np.testing.assert_allclose(labels[:, number], (values - values.mean()) / values.std(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("standardize", [True, False], ids=["scaled", "as it is"])
@pytest.mark.parametrize("rule", ["mean", 0.0, -40.0])
def test_what_is_missing_becomes_the_value_of_the_rule(rule: Any, standardize: bool, tmp_path: Path) -> None:
    column, samples, _ = packed(tmp_path / "new", GAPS, missing=rule, standardize=standardize)
    fill = float(np.nanmean(GAPS)) if rule == "mean" else rule
    filled = np.where(np.isnan(GAPS), fill, GAPS)
    mean, std = (filled.mean(), filled.std()) if standardize else (0.0, 1.0)
    # A prediction uses these three.
    assert column.missing == pytest.approx(fill, rel=1e-6, abs=1e-3)
    assert [column.mean, column.std] == pytest.approx([mean, std], rel=1e-6)
    np.testing.assert_allclose(samples, (filled - mean) / std, rtol=1e-4, atol=1e-5)


def test_targets_that_are_not_scaled_keep_their_units(tmp_path: Path) -> None:
    _, _, labels = packed(tmp_path / "new", RISING, standardize=False)
    np.testing.assert_allclose(labels, np.stack(list(TARGETS.values()), axis=1), rtol=1e-6)
    assert [(target.mean, target.std) for target in read_manifest(tmp_path / "new").targets] == [(0.0, 1.0)] * 2


FAR_FIRST = np.concatenate([[-999_999_999.0], rng.random(ROWS - 1)])
FAR_FROM_0 = 1e9 + rng.random(ROWS)
TINY = 1e-308 * (1.0 + rng.random(ROWS))


@pytest.mark.parametrize("values", [FAR_FIRST, FAR_FROM_0, TINY], ids=["far first", "far from 0", "tiny"])
def test_values_keep_their_digits_whatever_is_next_to_them(values: NDArray[np.float64], tmp_path: Path) -> None:
    column, samples, _ = packed(tmp_path / "new", values)
    exact = values.astype(np.longdouble)
    expected = ((exact - exact.mean()) / exact.std()).astype(np.float64)
    np.testing.assert_allclose(samples, expected, rtol=1e-6, atol=1e-6)
    assert len(np.unique(samples)) > 0.99 * len(np.unique(expected.astype(np.float32)))
    # What reads the manifest has the same samples, bit for bit.
    assert samples_of(values[:, np.newaxis], [column])[:, 0].tobytes() == samples.tobytes()


@pytest.mark.parametrize("value", [0.1, -1e-308, 1e30, 0.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_equal_values_become_0_whatever_their_sum_is_rounded_to(value: float, gaps: bool, tmp_path: Path) -> None:
    values = np.where(gaps & (np.arange(ROWS) % 5 == 2), np.nan, np.full(ROWS, value))
    column, samples, _ = packed(tmp_path / "new", values, **({"missing": "mean"} if gaps else {}))
    assert (column.mean, column.std) == (value, 1.0)
    assert not samples.any()

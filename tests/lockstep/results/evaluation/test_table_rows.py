"""Rows become samples as the training set's did, and a value of another kind is refused by row and column."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.columns import Column, ColumnKind
from lockstep.common.data.folder import FolderManifest, Reading, read_manifest
from lockstep.common.data.source import load
from lockstep.packing.options import PackOptions

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")

from lockstep.packing.pack_table import pack_frame  # noqa: E402  # what may be missing
from lockstep.results.evaluation.table_rows import TableRows  # noqa: E402

ROWS = 40
LARGE = 2**53
TRAINED = pa.table(
    {
        "area": [50.5 + row % 7 for row in range(ROWS)],
        "day": pa.array(np.array("2024-01-01", "datetime64[us]") + np.arange(ROWS) * 86_400_000_000),
        "new": [row % 2 == 0 for row in range(ROWS)],
        "town": ["Bern", "Zug"] * (ROWS // 2),
        "code": pa.array([LARGE + row % 4 for row in range(ROWS)], pa.int64()),
        "owner": pa.array([LARGE + row % 3 for row in range(ROWS)], pa.int64()),
    }
)
OPTIONS = PackOptions(target=("owner",), categories=("code",), task="classes")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> FolderManifest:
    folder = tmp_path_factory.mktemp("packed") / "new"
    pack_frame((TRAINED, TRAINED), folder, OPTIONS)
    stored = load(str(folder)).train
    samples, labels, left_out = rows(read_manifest(folder)).test_set(TRAINED)
    assert not left_out
    assert samples.tobytes() == np.asarray(stored.images[:]).tobytes()
    assert labels[:, 0].tolist() == stored.labels.tolist()
    return read_manifest(folder)


def rows(manifest: FolderManifest) -> TableRows:
    return TableRows(manifest, Reading())


def samples_and_labels(found: tuple[Any, Any, int]) -> tuple[bytes, bytes]:
    return found[0].tobytes(), found[1].tobytes()


def test_numbers_that_float64_does_not_hold_are_names_of_their_own(manifest: FolderManifest, tmp_path: Path) -> None:
    (code,) = (column for column in manifest.columns if column.name == "code")
    assert code.categories == [str(LARGE + number) for number in range(4)]
    assert manifest.class_names == [str(LARGE + number) for number in range(3)]
    expected = rows(manifest).test_set(TRAINED)
    codes = TRAINED.column("code").to_pylist()
    at = TRAINED.schema.get_field_index("code")
    others = {
        "decimals": pa.array([Decimal(each) for each in codes], pa.decimal128(20, 2)),
        "unsigned": pa.array(codes, pa.uint64()),
        "texts": pa.array(list(map(str, codes))),
        "a dictionary": pa.array(codes, pa.int64()).dictionary_encode(),
    }
    for kind, column in others.items():
        found = rows(manifest).test_set(TRAINED.set_column(at, "code", column))
        assert samples_and_labels(found) == samples_and_labels(expected), kind
    csv.write_csv(TRAINED, str(tmp_path / "same.csv"))
    found = rows(manifest).test_set(tmp_path / "same.csv")
    assert samples_and_labels(found) == samples_and_labels(expected)


DAY = np.datetime64("2024-01-01", "us")
#: The column, its values, and what is wrong with the second of them.
ODD: dict[str, tuple[str, Any, str]] = {
    "a number beyond float32": ("area", [50.5, 1e300], "1e+300 is 5.1e+299 deviations of the training set from its"),
    "an infinite one": ("area", [50.5, float("inf")], "is infinite"),
    "a missing one": ("area", [50.5, None], "is missing"),
    "a date for a number": ("area", ["50.5", "2024-01-01"], "'2024-01-01' is not a number, as all values were"),
    "true for a number": ("area", ["50.5", "true"], "'true' is not a number"),
    "a number for a date": ("day", ["2024-01-01", "7"], "'7' is not a date such as 2024-12-31"),
    "a number for a truth": ("new", ["true", "1"], "'1' is not true or false"),
    "a new name": ("town", ["Bern", "Uri"], "'Uri' did not occur in training: expected one of Bern, Zug"),
    "a new number": ("code", [LARGE, LARGE + 5], f"'{LARGE + 5}' did not occur in training"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_a_column_is_does_not_depend_on_the_other_rows(manifest: FolderManifest, odd: str) -> None:
    name, values, text = ODD[odd]
    at = TRAINED.schema.get_field_index(name)
    for given, wrong in ((values, [1]), (values[1:], [0])):
        table = TRAINED.slice(0, len(given)).set_column(at, name, pa.array(given))
        ((samples, problems),) = rows(manifest).samples(table)
        assert [row for row, problem in enumerate(problems) if problem] == wrong
        assert f"row {wrong[0] + 1}, column {name!r}: {text}" in problems[wrong[0]]
        assert samples.shape == (len(given) - 1, 4 + 4)


def test_a_name_that_is_new_is_told_with_some_of_those_that_are_known() -> None:
    names = [f"town {number:02}" for number in range(41)]
    column = Column(name="town", kind=ColumnKind.CATEGORY, categories=names)
    text = TableRows._new_name(column, "Uri")
    assert text == f"'Uri' did not occur in training: expected one of {', '.join(names[:12])}, … (41 in all)"


@pytest.mark.parametrize(
    ("name", "column"),
    [("area", pa.array([DAY])), ("area", pa.array([True])), ("day", pa.array([5.0])), ("new", pa.array([1.0]))],
)
def test_a_column_that_is_of_another_kind_by_its_type_is_refused(
    manifest: FolderManifest, name: str, column: Any
) -> None:
    table = TRAINED.slice(0, 1).set_column(TRAINED.schema.get_field_index(name), name, column)
    ((_, problems),) = rows(manifest).samples(table)
    assert "as all values were in training" in problems[0]

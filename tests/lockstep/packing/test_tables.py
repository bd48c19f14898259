"""Tables become scaled numbers and named classes; what is wrong with one is named by row and column."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.packing.test_arrays import sizes

pa = pytest.importorskip("pyarrow")
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")

ROWS = 2500
rng = np.random.default_rng(0)
COLUMNS: dict[str, Any] = {
    "rooms": rng.integers(1, 9, ROWS),
    "area": np.round(rng.normal(90, 20, ROWS), 2),
    "built": rng.integers(1_600_000_000, 1_600_001_000, ROWS),
    "town": rng.choice(["Zug", "Bern", "Aarau"], ROWS),
    "price": np.round(rng.normal(500_000, 90_000, ROWS)),
}


def table(**changed: Any) -> Any:
    return pa.table(COLUMNS | changed)


def written(folder: Path, name: str, **changed: Any) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        csv.write_csv(table(**changed), path)
    else:
        parquet.write_table(table(**changed), path, row_group_size=700)
    return path


def packed(source: Path, **options: Any) -> Packed:
    return pack(str(source), source.parent / "new", PackOptions(**options))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_are_scaled_over_the_training_set_and_texts_coded_by_the_alphabet(name: str, tmp_path: Path) -> None:
    found = packed(written(tmp_path, name), target=("price",))
    assert (sizes(found), found.manifest.classes, found.manifest.train.info.sample_shape) == ((2000, 500), 0, (4,))
    data, manifest = load(str(tmp_path / "new")), read_manifest(tmp_path / "new")
    samples = data.train.images[:].astype(np.float64)
    np.testing.assert_allclose(samples.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(samples.std(axis=0), 1, atol=1e-4)
    assert [column.name for column in manifest.columns] == ["rooms", "area", "built", "town"]
    assert manifest.columns[3].categories == ["Aarau", "Bern", "Zug"]
    # Back again: every row is there once, its numbers and its text.
    both = np.concatenate([data.train.images[:], data.test.images[:]]).astype(np.float64)
    raw = both * [column.std for column in manifest.columns] + [column.mean for column in manifest.columns]
    target = manifest.targets[0]
    prices = np.concatenate([data.train.labels, data.test.labels])[:, 0].astype(np.float64) * target.std + target.mean
    codes = np.searchsorted(manifest.columns[3].categories, COLUMNS["town"])
    expected = np.stack([COLUMNS["rooms"], COLUMNS["area"], COLUMNS["built"], codes, COLUMNS["price"]], axis=1)
    rows = np.concatenate([raw, prices[:, np.newaxis]], axis=1)
    order, wanted = (np.lexsort(np.round(each[:, [1, 4]]).T) for each in (rows, expected))
    np.testing.assert_allclose(rows[order], expected[wanted], rtol=1e-4, atol=1)
    # Times of one hour keep their seconds, which float32 has not at that size.
    assert np.abs(raw[:, 2] - np.round(raw[:, 2])).max() < 0.01


def test_csv_and_parquet_of_one_table_are_one_dataset(tmp_path: Path) -> None:
    digests = set()
    for number, name in enumerate(["t.csv", "t.parquet"]):
        pack(str(written(tmp_path, name)), tmp_path / str(number), PackOptions(target=("town",)))
        digests.add(load(str(tmp_path / str(number))).digest)
    assert len(digests) == 1


def test_a_folder_of_parts_is_one_table(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        parquet.write_table(table().slice(number * 900, 900), parts / f"part-{number}.parquet")
    packed(parts, target=("town",))
    whole = pack(str(written(tmp_path, "t.parquet")), tmp_path / "whole", PackOptions(target=("town",)))
    assert load(str(tmp_path / "new")).digest == load(str(whole.folder)).digest


@pytest.mark.parametrize(
    ("changed", "options", "names"),
    [
        ({}, {"target": ("town",)}, ("Aarau", "Bern", "Zug")),
        ({}, {"target": ("rooms",)}, tuple("12345678")),
        ({"rooms": np.arange(ROWS) % 4}, {"target": ("rooms",)}, ()),
        ({"rooms": np.arange(ROWS) % 2 == 0}, {"target": ("rooms",)}, ()),
        ({"rooms": [10.0, 9.0] * (ROWS // 2)}, {"target": ("rooms",)}, ("9", "10")),
        ({"rooms": np.arange(ROWS)}, {"target": ("rooms",), "task": "classes"}, ()),
    ],
)
def test_classes_have_the_names_of_their_values(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, Any], names: tuple[str, ...]
) -> None:
    found = packed(written(tmp_path, "t.parquet", **changed), **options)
    data, column = load(str(tmp_path / "new")), (COLUMNS | changed)[options["target"][0]]
    assert data.class_names == names
    assert found.manifest.classes == len(set(np.asarray(column).tolist()))
    labels = np.sort(np.concatenate([data.train.labels, data.test.labels]))
    np.testing.assert_array_equal(labels, np.sort(np.unique(column, return_inverse=True)[1]))


def test_many_whole_numbers_are_a_regression_unless_it_is_said(tmp_path: Path) -> None:
    source = written(tmp_path, "t.csv")
    assert packed(source, target=("price",), columns=("rooms", "area")).manifest.train.info.sample_shape == (2,)
    assert load(str(tmp_path / "new")).train.classes == 0
    two = pack(str(source), tmp_path / "two", PackOptions(target=("price", "area"), standardize=False))
    assert load(str(two.folder)).train.labels.shape == (2000, 2)
    few = pack(str(source), tmp_path / "few", PackOptions(target=("rooms",), task="numbers", standardize=False))
    assert set(load(str(few.folder)).train.labels[:, 0].tolist()) == set(range(1, 9))


MISSING = [None if number % 10 == 3 else float(number % 7) for number in range(ROWS)]
TOWNS = [None if number % 10 == 4 else "AB"[number % 2] for number in range(ROWS)]


def test_missing_values_follow_the_rule(tmp_path: Path) -> None:
    source = written(tmp_path, "t.csv", rooms=MISSING, town=TOWNS)
    dropped = pack(str(source), tmp_path / "dropped", PackOptions(target=("price",), missing="drop"))
    assert sizes(dropped) == (1600, 400)
    assert "500 rows with a missing value were left out (--missing drop)" in dropped.notes
    for rule in ("mean", 0.0):
        folder = tmp_path / f"rule-{rule}"
        pack(str(source), folder, PackOptions(target=("price",), missing=rule, standardize=rule == "mean"))
        data, manifest = load(str(folder)), read_manifest(folder)
        rooms = data.train.images[:, 0]
        assert len(data.train) == 2000
        assert np.isfinite(data.train.images[:]).all()
        if rule == "mean":
            assert np.count_nonzero(np.abs(rooms) < 1e-6) > 150
            known = [value for value in MISSING if value is not None]
            assert manifest.columns[0].missing == pytest.approx(np.mean(known), abs=0.1)
        else:
            assert (manifest.columns[0].missing, set(rooms.tolist())) == (0.0, set(range(7)))
        assert manifest.columns[3].categories == ["", "A", "B"]


TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no target": (
        "a,b\n1,2\n",
        {"target": ()},
        "which column is to be predicted? expected --target COLUMN, one of a, b",
    ),
    "unknown target": ("rooms,price\n1,2\n", {"target": ("pric",)}, "no column 'pric' (did you mean 'price'?)"),
    "unknown column": ("a,b\n1,2\n", {"columns": ("c",)}, "no column 'c': expected one of a, b"),
    "ragged": ("a,b,c\n1,2,3\n4,5,6\n7,8\n", {}, "row 4 has 2 values: expected 3, as the header"),
    "missing": (
        "a,b,c\n1,2,3\n4,,6\n",
        {"target": ("c",)},
        "row 3, column 'b': is missing: expected a value, or a rule:",
    ),
    "missing target": ("a,b\n1,2\n4,\n", {}, "row 3, column 'b': is missing: expected a value, or --missing drop"),
    "NaN": ("a,b\n1,2\nNaN,3\n", {}, "row 3, column 'a': is missing"),
    "infinite": ("a,b\n1,2\ninf,3\n", {}, "row 3, column 'a': is not a finite number"),
    "infinite, with a rule": ("a,b\n1,2\ninf,3\n", {"missing": "mean"}, "row 3, column 'a': is not a finite number"),
    "one class": ("a,b\n1,x\n2,x\n", {}, "column 'b' has one class only, 'x': expected at least two"),
    "texts as numbers": ("a,b\n1,x\n2,y\n", {"task": "numbers"}, "column 'b' has texts"),
    "digits as classes": ("a,b\n1,1.5\n2,2.5\n", {"task": "classes"}, "column 'b' has numbers with digits after"),
    "twice": ("a,a\n1,2\n", {"target": ("a",)}, "two columns are called 'a'"),
    "both": ("a,b\n1,2\n", {"columns": ("a", "b")}, "column 'b' is to be learned from and predicted"),
    "nothing to learn from": ("b\n1\n2\n", {}, "has no column besides what is to be predicted"),
    "empty": ("", {}, "is empty: expected a header and rows"),
    "no rows": ("a,b\n", {}, "no rows are left to learn from"),
    "all dropped": ("a,b\n,1\n,2\n", {"missing": "drop"}, "no rows are left to learn from"),
    "no test set": ("a,b\n1,0\n2,1\n3,0\n4,1\n", {}, "the test set is empty"),
    "a text late": (
        "a,b\n" + "".join(f"{n},{n}\n" for n in range(2000)) + "oops,1\n",
        {},
        "row 2002, column 'a': 'oops' is",
    ),
    "a text very late": (
        "a,b\n" + "".join(f"{n},{'9' * 60}\n" for n in range(40_000)) + "oops,1\n",
        {},
        "row 40002, column 'a': 'oops' is not a number, as in the rows before",
    ),
    "names": ("a,b\n" + "".join(f"name {n},{n}\n" for n in range(1200)), {}, "has more than 1,000 different texts"),
}


@pytest.mark.parametrize(("text", "options", "told"), TEXTS.values(), ids=TEXTS)
def test_what_is_wrong_is_one_line_and_leaves_nothing(
    tmp_path: Path, text: str, options: dict[str, Any], told: str
) -> None:
    source = tmp_path / "t.csv"
    source.write_text(text)
    with pytest.raises(DataError, match=re.escape(told)) as raised:
        packed(source, **{"target": ("b",), **options})
    assert str(raised.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.arrow"):
        (tmp_path / name).write_bytes(b"\xff\xfe" + bytes(200))
        with pytest.raises(DataError, match=re.escape(name)):
            packed(tmp_path / name, target=("b",))
    source = written(tmp_path, "lists.parquet", rooms=[[1, 2]] * ROWS)
    with pytest.raises(DataError, match=r"column 'rooms' is of type list<.*say which columns to learn from"):
        packed(source, target=("price",))
    assert packed(source, target=("price",), columns=("area",)).manifest.train.info.sample_shape == (1,)


def test_a_table_of_its_own_to_test_with(tmp_path: Path) -> None:
    source, test = written(tmp_path, "t.csv"), tmp_path / "test.parquet"
    parquet.write_table(table().slice(0, 300), test)
    found = packed(source, target=("town",), test=test)
    assert (sizes(found), len(found.notes)) == ((2500, 300), 1)
    parquet.write_table(table().drop(["area"]), test)
    with pytest.raises(DataError, match=re.escape("test.parquet: no column 'area'")):
        pack(str(source), tmp_path / "newer", PackOptions(target=("town",), test=test))

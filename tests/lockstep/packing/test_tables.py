"""Tables become scaled numbers and named classes; a fault in one is named by row and column."""

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.columns import ColumnKind
from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.common.runtime.environment import child_environment
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.pack import pack
from lockstep.packing.tables import Values, ahead
from tests.lockstep.packing.test_arrays import sizes

pa = pytest.importorskip("pyarrow")
pack_frame = pytest.importorskip("lockstep.packing.pack_table").pack_frame
table_sources = pytest.importorskip("lockstep.packing.table_sources")
BLOCK, open_table = table_sources.BLOCK, table_sources.open_table
csv, parquet = pytest.importorskip("pyarrow.csv"), pytest.importorskip("pyarrow.parquet")

#: So many that the training set has more than one block of rows that are scaled at once.
ROWS = 12_500
rng = np.random.default_rng(0)
COLUMNS: dict[str, Any] = {
    "rooms": rng.integers(1, 9, ROWS),
    # Larger towards the end: the blocks of rows have other means.
    "area": np.round(rng.normal(90, 20, ROWS) + np.arange(ROWS) / 200, 2),
    "built": rng.integers(1_600_000_000, 1_600_001_000, ROWS),
    "town": rng.choice(["Zug", "Bern", "Aarau"], ROWS),
    # No two are the same, so that each row is found again.
    "price": 250_000.0 + 40 * rng.permutation(ROWS),
}


def table(**changed: Any) -> Any:
    return pa.table(COLUMNS | changed)


def written(folder: Path, name: str, **changed: Any) -> Path:
    path = folder / name
    if name.endswith(".csv"):
        csv.write_csv(table(**changed), path)
    else:
        parquet.write_table(table(**changed), path, row_group_size=3500)
    return path


def packed(source: Path, **options: Any) -> Packed:
    return pack(str(source), source.parent / "new", PackOptions(**options))


def packed_again(source: Path, options: PackOptions) -> Packed:
    return pack(str(source), source.parent / "again", options)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_columns_are_scaled_over_the_training_set_and_texts_coded_by_the_alphabet(name: str, tmp_path: Path) -> None:
    found = packed(written(tmp_path, name), target=("price",), one_hot=())
    assert (sizes(found), found.manifest.classes, found.manifest.train.info.sample_shape) == ((10_000, 2500), 0, (4,))
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
        parquet.write_table(table().slice(number * 4500, 4500), parts / f"part-{number}.parquet")
    packed(parts, target=("town",))
    whole = pack(str(written(tmp_path, "t.parquet")), tmp_path / "whole", PackOptions(target=("town",)))
    assert load(str(tmp_path / "new")).digest == load(str(whole.folder)).digest


@pytest.mark.parametrize(
    ("changed", "options", "names"),
    [
        ({}, {"target": ("town",)}, ("Aarau", "Bern", "Zug")),
        ({}, {"target": ("rooms",)}, tuple("12345678")),
        ({"rooms": np.arange(ROWS) % 4}, {"target": ("rooms",)}, ()),
        ({"rooms": np.arange(ROWS) % 2 == 0}, {"target": ("rooms",)}, ("false", "true")),
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
    assert load(str(two.folder)).train.labels.shape == (10_000, 2)
    few = pack(str(source), tmp_path / "few", PackOptions(target=("rooms",), task="numbers", standardize=False))
    assert set(load(str(few.folder)).train.labels[:, 0].tolist()) == set(range(1, 9))


MISSING = [None if number % 10 == 3 else float(101 + number % 7) for number in range(ROWS)]
TOWNS = [None if number % 10 == 4 else "AB"[number % 2] for number in range(ROWS)]


def test_missing_values_follow_the_rule(tmp_path: Path) -> None:
    source = written(tmp_path, "t.csv", rooms=MISSING, town=TOWNS)
    dropped = pack(str(source), tmp_path / "dropped", PackOptions(target=("price",), missing="drop"))
    assert sizes(dropped) == (8000, 2000)
    assert "2,500 rows with a missing value were left out (--missing drop)" in dropped.notes
    answered = pack(str(source), tmp_path / "answered", PackOptions(target=("town",), missing="mean"))
    assert sizes(answered) == (9000, 2250)
    note = "1,250 rows with a missing value to predict were left out (other values are filled)"
    assert note in answered.notes
    assert load(str(answered.folder)).class_names == ("A", "B")
    for rule in ("mean", 0.0):
        folder = tmp_path / f"rule-{rule}"
        pack(str(source), folder, PackOptions(target=("price",), missing=rule, standardize=rule == "mean"))
        data, manifest = load(str(folder)), read_manifest(folder)
        rooms = data.train.images[:, 0]
        assert len(data.train) == 10_000
        assert np.isfinite(data.train.images[:]).all()
        if rule == "mean":
            assert np.count_nonzero(np.abs(rooms) < 1e-6) > 750
            known = [value for value in MISSING if value is not None]
            assert manifest.columns[0].missing == pytest.approx(np.mean(known), abs=0.1)
        else:
            assert (manifest.columns[0].missing, set(rooms.tolist())) == (0.0, {0, *range(101, 108)})
        assert manifest.columns[3].categories == ["", "A", "B"]


TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no target": (
        "a,b\n1,2\n",
        {"target": ()},
        "which column is to be predicted? expected --target COLUMN, one of a, b",
    ),
    "no target, and long names": (
        f"{'n' * 90},b\n1,2\n",
        {"target": ()},
        f"expected --target COLUMN, one of {'n' * 19}…{'n' * 19}, b",
    ),
    "unknown target": ("rooms,price\n1,2\n", {"target": ("pric",)}, "no column 'pric' (did you mean 'price'?)"),
    "missing text": (
        "a,b\nx,2\n,4\ny,3\nx,4\n",
        {},
        "row 3, column 'a': is missing: expected a value, or a rule: --missing drop, or --missing mean, which makes",
    ),
    "one class": ("a,b\n1,x\n2,x\n", {}, "column 'b' has one class only, 'x': expected at least two"),
    "texts as numbers": (
        "a,b\n1,x\n2,y\n",
        {"task": "numbers"},
        "column 'b' has texts, of which no number can be predicted: expected --task classes",
    ),
    "digits as classes": ("a,b\n1,1.5\n2,2.5\n", {"task": "classes"}, "column 'b' has numbers with digits after"),
    "both": ("a,b\n1,2\n", {"columns": ("a", "b")}, "column 'b' is to be learned from and predicted"),
    "nothing to learn from": ("b\n1\n2\n", {}, "has no column besides the target"),
    "empty": ("", {}, "is empty: expected a header and rows"),
    "no rows": ("a,b\n", {}, "no rows are left to learn from"),
    "all dropped": ("a,b\n,1\n,2\n", {"missing": "drop"}, "no rows are left to learn from"),
    "a text very late": (
        "a,b\n" + "".join(f"{n},{'9' * 60}\n" for n in range(40_000)) + "oops,1\n",
        {},
        "row 40002, column 'a': 'oops' is not a number, as 40,000 of the 40,001 values in the column are",
    ),
    "names": (
        "a,b\n" + "".join(f"name {n},{n}\n" for n in range(1200)),
        {},
        "row 1002, column 'a': 'name 1000'",
    ),
    "a column twice": ("a,b\n1,2\n", {"columns": ("a", "a")}, "--columns a,a: names 'a' twice: expected once"),
    "unknown columns of several options": (
        "age,b,c\n1,2,3\n",
        {"target": ("c",), "drop": ("agee", "x"), "one_hot": ("agee", "y")},
        "no columns 'agee' (did you mean 'age'?), 'x' and 'y': expected one of age, b, c",
    ),
    "unknown columns that are near": (
        "age,price,c\n1,2,3\n",
        {"target": ("c",), "drop": ("agee",), "numbers": ("prise",)},
        "no columns 'agee' (did you mean 'age'?) and 'prise' (did you mean 'price'?)",
    ),
    "many unknown columns": (
        "a,b\n1,2\n",
        {"drop": tuple(f"x{n}" for n in range(15))},
        "'x10', 'x11' and 3 more: expected one of a, b",
    ),
    "columns learned from and predicted": (
        "a,b,c\n1,2,3\n",
        {"target": ("a", "b"), "columns": ("a", "b", "c")},
        "columns 'a' and 'b' are to be learned from and predicted",
    ),
    "texts in several columns": (
        "a,b,c,d\n" + "1,2,3,0\n2,3,4,1\n" * 10 + "x,?,5,0\n3,4,y,1\n",
        {"target": ("d",)},
        "--drop a to leave the column out, or --categories a if its values are names; columns 'b' and 'c' are refused",
    ),
    "missing values in several columns": (
        "a,b,c\n1,2,0\n,3,1\n3,,1\n4,,0\n",
        {"target": ("c",)},
        "--missing drop, --missing mean or --missing 0; column 'b' is refused too",
    ),
    "a target of categories": ("a,b\n1,2\n", {"categories": ("b",)}, "'b' is to be predicted: expected --task classes"),
    "inputs of a dropped column": ("a,b,c\n1,2,3\n", {"one_hot": ("c",), "drop": ("c",)}, "'c' is not learned from"),
    "kinds of dropped columns": (
        "a,b,c,d\n1,2,3,4\n",
        {"target": ("d",), "numbers": ("a", "c"), "drop": ("a", "c")},
        "--numbers a,c: columns 'a' and 'c' are not learned from: expected some of those that are",
    ),
    "two kinds": ("a,b\n1,2\n", {"one_hot": ("a",), "numbers": ("a",)}, "--one-hot a and --numbers a: expected one"),
    "a number for nothing": ("a,b\n1,2\n", {"missing": 1e39}, "--missing 1e+39 is larger than float32 holds"),
    "names as numbers": ("a,b\nx,1\ny,2\n", {"numbers": ("a",)}, "row 2, column 'a': 'x' is not a number: give --na x"),
    "half of the texts": (
        "a,b\n" + "1,0\n2,1\nx,0\ny,1\n" * 10,
        {},
        "row 4, column 'a': 'x' is not a number, as 20 of the 40 values in the column are",
    ),
    "most values, of few texts": (
        "a,b\n" + "7,0\n7,1\n7,0\n" * 10 + "u,0\nv,1\nw,0\nx,1\n",
        {},
        "row 32, column 'a': 'u' is not a number, as 30 of the 34 values in the column are",
    ),
    "most texts, of few values": (
        "a,b\n" + "x,0\nx,1\n" * 20 + "1,0\n2,1\n3,0\n",
        {},
        "row 2, column 'a': 'x' is not a number, as 3 of the 43 values in the column are",
    ),
    "numbers with thousands": (
        "a;b\n" + "1,5;0\n2,25;1\n" * 10 + "1.234;0\n",
        {"decimal": ","},
        "row 22, column 'a': '1.234' is not a number: write it plainly, like 1234,5; or give --drop a",
    ),
    "quoted flags": ("a b,y\n1,0\n-,1\n2,0\n", {"target": ("y",)}, "--drop 'a b' to leave the column out"),
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


def test_a_few_numbers_among_names_are_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "x,0\ny,1\nz,0\n1,1\n" * 10)
    packed(tmp_path / "t.csv", target=("b",))
    assert read_manifest(tmp_path / "new").columns[0].categories == ["1", "x", "y", "z"]


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.arrow"):
        (tmp_path / name).write_bytes(b"\xff\xfe" + bytes(200))
        with pytest.raises(DataError, match=re.escape(name)):
            packed(tmp_path / name, target=("b",))
    source = written(tmp_path, "lists.parquet", rooms=[[1, 2]] * ROWS)
    with pytest.raises(DataError, match=r"column 'rooms' is of type list<.*; --drop rooms leaves it out"):
        packed(source, target=("price",))
    both = written(tmp_path, "both.parquet", rooms=[[1, 2]] * ROWS, town=[["x"]] * ROWS)
    with pytest.raises(DataError, match=r"columns 'rooms' and 'town' are of type list<.*, list<.*; --drop rooms,town"):
        packed(both, target=("price",))
    assert packed(source, target=("price",), drop=("rooms", "town", "built")).manifest.train.info.sample_shape == (1,)


def test_a_parquet_file_that_is_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    # Most of a file is one stretch of compressed numbers, which the middle is in.
    values = pa.table({"a": rng.normal(size=4000), "y": np.arange(4000) % 2})
    for number in range(2):
        parquet.write_table(values, parts / f"{number}.parquet", compression="gzip", use_dictionary=False)
    content = bytearray((parts / "1.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    (parts / "1.parquet").write_bytes(content)
    with pytest.raises(DataError) as raised:
        packed(parts, target=("y",))
    assert str(raised.value).startswith(f"{parts / '1.parquet'}: cannot be read (")
    assert str(raised.value).endswith("): expected a Parquet file")
    assert list(tmp_path.iterdir()) == [parts]


def test_a_table_of_its_own_to_test_with(tmp_path: Path) -> None:
    source, test = written(tmp_path, "t.csv"), tmp_path / "test.parquet"
    parquet.write_table(table().slice(0, 300), test)
    found = packed(source, target=("town",), test=test)
    assert (sizes(found), len(found.notes)) == ((ROWS, 300), 1)
    parquet.write_table(table().drop(["area"]), test)
    with pytest.raises(DataError, match=re.escape("test.parquet: no column 'area'")):
        pack(str(source), tmp_path / "newer", PackOptions(target=("town",), test=test))


def test_what_each_column_was_taken_for_is_shown(tmp_path: Path) -> None:
    codes, is_new = [f"{number % 12:03d}" for number in range(ROWS)], np.arange(ROWS) % 2 == 0
    towns = [{"Zug": "Zug, Baar"}.get(town, town) for town in COLUMNS["town"]]
    source = written(tmp_path, "t.csv", code=codes, new=is_new, rooms=MISSING, town=towns)
    found = packed(source, target=("price",), missing="mean", one_hot=("town",), drop=("built",))
    assert [line.split(maxsplit=1) for line in found.columns] == [
        ["rooms", "number              101 to 107; 1,250 missing: --missing mean"],
        ["area", f"number              {COLUMNS['area'].min():g} to {COLUMNS['area'].max():g}"],
        ["town", "category, one-hot   Aarau, Bern, 'Zug, Baar'"],
        ["code", "category, codes     000, 001, 002, 003, 004, 005, … (12)"],
        ["new", "true or false       false to true"],
        ["price", f"number, to predict  {COLUMNS['price'].min():g} to {COLUMNS['price'].max():g}"],
        ["built", "left out            --drop"],
    ]
    assert list(found.lines())[2:9] == list(found.columns)


#: The first whole number that float64 does not hold.
BIG = 2**53 + 1


@pytest.mark.parametrize(
    ("values", "options", "advice"),
    [
        ([BIG + row for row in range(60)], {}, "--categories id, or --drop id"),
        ([BIG + row for row in range(ROWS)], {}, "--categories id, or --drop id"),
        ([-BIG - row for row in range(60)], {}, "--categories id, or --drop id"),
        ([BIG + row for row in range(60)], {"target": ("id",), "task": "numbers"}, "--task classes"),
        ([BIG + row for row in range(60)], {"categories": ("id",)}, None),
        ([2**53 - 1 - row for row in range(60)], {}, None),
        ([1e20 * row for row in range(60)], {}, None),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_whole_numbers_that_lose_digits_are_noted(
    tmp_path: Path, name: str, values: list[float], options: dict[str, Any], advice: str | None
) -> None:
    rows = {"id": values, "area": COLUMNS["area"][: len(values)], "price": COLUMNS["price"][: len(values)]}
    write = csv.write_csv if name.endswith(".csv") else parquet.write_table
    write(pa.table(rows), tmp_path / name)
    notes = [note for note in packed(tmp_path / name, **{"target": ("price",), **options}).notes if "2^53" in note]
    told = f"'id' has whole numbers above 2^53, whose last digits are lost; if they are names, give {advice}"
    assert notes == ([] if advice is None else [told])


def test_blanks_around_the_names_of_columns_are_ignored_in_each_source(tmp_path: Path) -> None:
    plain = table().slice(0, 300)
    padded = plain.rename_columns([f" {name}\t" for name in plain.column_names])
    csv.write_csv(padded, tmp_path / "t.csv")
    parquet.write_table(padded, tmp_path / "t.parquet")
    options = PackOptions(target=("price",), drop=("built",))
    digests = {load(str(pack_frame(plain, tmp_path / "plain", options).folder)).digest}
    for name in ("t.csv", "t.parquet"):
        digests.add(load(str(pack(str(tmp_path / name), tmp_path / f"{name}.data", options).folder)).digest)
    digests.add(load(str(pack_frame(padded, tmp_path / "frame", options).folder)).digest)
    assert len(digests) == 1
    with pytest.raises(DataError, match="two columns are called 'price'"):
        pack_frame(plain.append_column("price ", plain["price"]), tmp_path / "two", options)


def test_a_wide_table_is_shown_in_part(tmp_path: Path) -> None:
    many = {f"x{number}": COLUMNS["area"] for number in range(40)}
    found = packed(written(tmp_path, "t.parquet", **many), target=("price",))
    assert (len(found.columns), found.columns[-1]) == (31, "  … and 15 more")


@pytest.mark.parametrize(
    ("texts", "options", "inputs"),
    [
        (2, {}, 1),
        (3, {}, 3),
        (100, {}, 100),
        (101, {}, 1),
        (101, {"one_hot": ("code",)}, 101),
        (3, {"one_hot": ()}, 1),
        (2, {"one_hot": ("code",)}, 2),
    ],
)
def test_a_few_texts_are_an_input_each_and_many_are_codes_unless_an_option_decides(
    texts: int, options: dict[str, Any], inputs: int, tmp_path: Path
) -> None:
    source = written(tmp_path, "t.csv", code=[f"c{number % texts}" for number in range(ROWS)])
    found = packed(source, target=("price",), columns=("area", "code"), **options)
    assert found.manifest.train.info.sample_shape == (1 + inputs,)
    assert [column.one_hot for column in found.manifest.columns] == [False, inputs > 1]
    again = PackOptions.recorded(found.manifest.origin)
    assert packed_again(source, again).manifest.digest() == found.manifest.digest()


def test_the_command_that_packs_a_table_again_names_the_options_that_were_given() -> None:
    several = PackOptions(target=("net, in EUR", "rent"), drop=("a,b", "c")).origin("t.csv").pack_command("new")
    assert several.endswith(""" --target 'net, in EUR' --target rent --drop '"a,b",c'""")
    assert "--one-hot" not in PackOptions(target=("price",)).origin("t.csv").pack_command("new")


def test_a_category_may_have_an_input_for_each_text(tmp_path: Path) -> None:
    source = written(tmp_path, "t.csv", town=TOWNS)
    found = packed(source, target=("price",), columns=("area", "town", "rooms"), one_hot=("town",), missing=0.0)
    data = load(str(found.folder))
    assert found.manifest.train.info.sample_shape == (5,)
    inputs = data.train.images[:, 1:4]
    np.testing.assert_array_equal(inputs.sum(axis=1), 1)
    assert set(inputs.ravel().tolist()) == {0.0, 1.0}
    assert [column.one_hot for column in found.manifest.columns] == [False, True, False]
    nothing = np.concatenate([inputs, data.test.images[:, 1:4]])[:, 0]
    assert nothing.sum() == TOWNS.count(None)


def dictionary(indices: list[int | None], values: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(values))


#: Columns of two values, of which every third row has the first, and the names of the classes that they are.
KEPT: dict[str, tuple[Any, tuple[str, ...]]] = {
    "categories of integers": (dictionary([0, 1, 1] * 20, [10, 9, 8]), ("9", "10")),
    "categories of dates": (
        dictionary([1, 0, 0] * 20, pa.array([19000, 18000], pa.date32())), ("2019-04-14", "2022-01-08")
    ),
    "unused categories": (dictionary([2, 0, 0] * 20, ["x", "y", "z"]), ("x", "z")),
    "truths": (pa.array([True, False, False] * 20), ("false", "true")),
    "dates": (pa.array([19000, 18000, 18000] * 20, pa.date32()), ("2019-04-14", "2022-01-08")),
    "nanoseconds": (
        pa.array([1, 1_577_880_000_000_000_123] * 30, pa.timestamp("ns")), ("1970-01-01", "2020-01-01 12:00:00")
    ),
    "far dates": (pa.array([10**12, 0, 0] * 20, pa.timestamp("s")), ("1970-01-01", "33658-09-27 01:46:40")),
    "dates beyond all": (pa.array([9 * 10**15, 0] * 30, pa.timestamp("s")), ("1970-01-01", "9000000000000000000000")),
    "days of long ago": (pa.array([-719162, 0, 0] * 20, pa.date32()), ("0001-01-01", "1970-01-01")),
    "milliseconds": (pa.array([0, 86_400_000] * 30, pa.date64()), ("1970-01-01", "1970-01-02")),
    "codes": (pa.array(["007", "7", "7"] * 20), ("007", "7")),
    "codes with zeros in a fraction": (pa.array(["00.5", "01", "01"] * 20), ()),
    "views of texts": (pa.array(["x", "z"] * 30, pa.string_view()), ("x", "z")),
}  # fmt: skip


@pytest.mark.parametrize(("column", "names"), KEPT.values(), ids=KEPT)
def test_classes_keep_the_names_of_typed_values(column: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    table = pa.table({"a": np.arange(60.0), "y": column})
    found = pack_frame(table, tmp_path / "new", PackOptions(target=("y",)))
    assert tuple(found.manifest.class_names) == names
    assert found.manifest.classes == len(names)
    # As a column that is learned from, without a target of classes.
    again = pack_frame(table, tmp_path / "again", PackOptions(target=("a",)))
    categories = again.manifest.columns[0].categories
    assert categories == (list(names) if pa.types.is_dictionary(column.type) or pa.types.is_string(column.type)
                          or pa.types.is_string_view(column.type) else [])  # fmt: skip


def test_a_null_among_the_texts_of_a_dictionary_is_missing(tmp_path: Path) -> None:
    table = pa.table({"a": dictionary([0, 1, None] * 20, ["x", None]), "y": np.arange(60) % 2})
    with pytest.raises(DataError, match=r"row 2, column 'a': is missing"):
        pack_frame(table, tmp_path / "new", PackOptions(target=("y",)))
    found = pack_frame(table, tmp_path / "new", PackOptions(target=("y",), missing="mean"))
    assert found.manifest.columns[0].categories == ["", "x"]
    dropped = pack_frame(table, tmp_path / "dropped", PackOptions(target=("y",), missing="drop", test_split=0.5))
    assert (sizes(dropped), dropped.manifest.columns[0].categories) == ((10, 10), ["x"])


@pytest.mark.parametrize("texts", [[], ["3"], ["4", "3", "3"]])
def test_a_missing_text_is_nothing_whatever_texts_there_are(texts: list[str]) -> None:
    found = Values(np.array([-1, *range(len(texts)), -1]), pa.array(texts, pa.string()))
    nothing = [np.nan]
    numbers = np.array([*nothing, *map(float, texts), *nothing])
    np.testing.assert_array_equal(found.numbers(ColumnKind.NUMBER, "."), numbers)
    np.testing.assert_array_equal(found.codes(["3", "4"]), numbers - 3)
    np.testing.assert_array_equal(found.codes(["", "3", "4"]), np.nan_to_num(numbers - 2))


@pytest.mark.parametrize("name", ["id", "__index_level_0__"])
def test_the_index_of_a_pandas_frame_is_not_learned_from(name: str, tmp_path: Path) -> None:
    metadata = {b"pandas": f'{{"index_columns": ["{name}", {{"kind": "range"}}]}}'.encode()}
    table = pa.table({"a": np.arange(60.0), "y": np.arange(60) % 2, name: np.arange(60)}).replace_schema_metadata(
        metadata
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    for number, source in enumerate([table, str(tmp_path / "t.parquet")]):
        packer = pack if isinstance(source, str) else pack_frame
        found = packer(source, tmp_path / str(number), PackOptions(target=("y",)))
        assert [column.name for column in found.manifest.columns] == ["a"]
        assert found.columns[-1].split(maxsplit=1) == [name, "left out           the index of a pandas frame"]
        asked = packer(source, tmp_path / f"{number}-asked", PackOptions(target=("y",), columns=(name,)))
        assert [column.name for column in asked.manifest.columns] == [name]


def test_numbers_that_float32_does_not_hold_once_scaled_are_refused(tmp_path: Path) -> None:
    tiny = pa.table({"a": np.arange(60) * 1e-30, "y": np.arange(60) % 2})
    large = pa.table({"a": np.full(60, 1e30), "y": np.arange(60) % 2})
    with pytest.raises(DataError, match=r"column 'a' has values that are .*e\+58 deviations of the training set"):
        pack_frame((tiny, large), tmp_path / "new", PackOptions(target=("y",)))
    assert list(tmp_path.iterdir()) == []


def test_large_numbers_of_both_signs_are_packed_to_be_opened(tmp_path: Path) -> None:
    for standardize in (True, False):
        folder = tmp_path / str(standardize)
        table = pa.table({"a": [1.7e38, -1.7e38] * 30, "y": [1.7e38, -1.7e38] * 30})
        pack_frame(table, folder, PackOptions(target=("y",), task="numbers", standardize=standardize))
        assert np.isfinite(load(str(folder)).train.images[:]).all()
        assert np.isfinite(load(str(folder)).train.labels).all()


def test_a_table_is_read_from_its_source_once(tmp_path: Path) -> None:
    class Once:
        """Gives its rows once, and other rows after that."""

        def __init__(self, *tables: Any) -> None:
            self.tables = list(tables)

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self.tables.pop(0).__arrow_c_stream__()

    first = pa.table({"a": ["x", "z"] * 30, "y": np.arange(60) % 2})
    # The first time for the schema.
    pack_frame(Once(first, first, first.slice(0, 50)), tmp_path / "new", PackOptions(target=("y",)))
    pack_frame(first, tmp_path / "other", PackOptions(target=("y",)))
    assert digests(tmp_path / "new") == digests(tmp_path / "other")
    assert not (tmp_path / "new" / "scratch").exists()


def digests(folder: Path) -> Any:
    manifest = read_manifest(folder)
    return manifest.columns, manifest.targets, manifest.train, manifest.test


def test_the_next_batch_is_made_while_one_is_used() -> None:
    is_made = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        is_made.set()
        yield 2
        raise DataError("no third one")

    values = ahead(numbers())
    assert next(values) == 1
    assert is_made.wait(60.0)
    assert next(values) == 2
    with pytest.raises(DataError, match="no third one"):
        next(values)


def test_texts_that_were_seen_before_are_only_counted(tmp_path: Path) -> None:
    # Three batches, of which the last one has a text that is not a date.
    days = [f"2020-01-{day:02}" for day in range(1, 29)] * 1500
    looked, count = 0, len(days)

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal looked
        looked += event == "call" and frame.f_code.co_name == "kinds_of"

    frame = pa.table({"day": days, "y": np.arange(count) % 2})
    sys.setprofile(look)
    try:
        pack_frame(frame, tmp_path / "new", PackOptions(target=("y",)))
    finally:
        sys.setprofile(None)
    assert looked == 1
    days[-7] = "on Monday"
    told = f"row {count - 6}, column 'day': 'on Monday' is not a date, as {count - 1:,} of the {count:,} values"
    with pytest.raises(DataError, match=told):
        pack_frame(frame.set_column(0, "day", pa.array(days)), tmp_path / "other", PackOptions(target=("y",)))


PACK = """
import sys
from pathlib import Path

from lockstep.packing.options import PackOptions
from lockstep.packing.pack import pack

pack("t.csv", Path("new"), PackOptions(target=("y",), missing="mean", na=("-9",)))
assert "pandas" not in sys.modules
"""


def test_a_table_is_packed_without_importing_pandas(tmp_path: Path) -> None:
    days, count = [f"2020-01-{day:02}" for day in range(1, 29)] * 100, 2800
    texts = {"town": ["Bern", "Zug", "", "NA"] * 700, "price": ["1.5", "", "-9", "2"] * 700}
    csv.write_csv(pa.table({"day": days, "y": np.arange(count) / 7, **texts}), tmp_path / "t.csv")
    # Found before the real one, if there is one.
    (tmp_path / "pandas.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", PACK], cwd=tmp_path, capture_output=True, text=True, env=child_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


class TestManyBlocks:
    """CSV files of more than a block."""

    #: So many that they are three blocks.
    COUNT = 5 * BLOCK // 2 // 20

    def texts(self, **changed: dict[int, str]) -> Any:
        drawn = np.random.default_rng(1).normal(size=(2, self.COUNT))
        columns = {"a": np.round(drawn[0], 5), "y": np.round(drawn[1], 5), "n": 7 + 3 * np.arange(self.COUNT) % 5000}
        found = {name: list(map(str, values.tolist())) for name, values in columns.items()}
        for name, values in changed.items():
            for row, text in values.items():
                found[name][row] = text
        return pa.table(found)

    def packed(self, folder: Path, table: Any, **options: Any) -> Any:
        csv.write_csv(table, folder / "t.csv", csv.WriteOptions(quoting_style="none"))
        given = PackOptions(target=("y",), **options)
        assert (folder / "t.csv").stat().st_size > 2 * BLOCK
        pack(str(folder / "t.csv"), folder / "of-csv", given)
        # A frame of texts stays texts.
        pack_frame(table, folder / "of-frame", given)
        assert digests(folder / "of-csv") == digests(folder / "of-frame")
        return load(str(folder / "of-csv"))

    @pytest.mark.parametrize(
        ("changed", "options"),
        [
            ({}, {}),
            ({"a": {-3: "NA", 40: ""}, "n": {-1: "null"}}, {"missing": "mean"}),
            ({"a": {-3: "-9"}, "n": {-2: "-9"}}, {"missing": "drop", "na": ("-9",)}),
            ({"a": {-3: " 0012.5", -9: "+1e2"}}, {}),
        ],
    )
    def test_the_samples_are_those_of_the_texts(self, changed: Any, options: dict[str, Any], tmp_path: Path) -> None:
        data = self.packed(tmp_path, self.texts(**changed), **options)
        assert len(data.train.images) + len(data.test.images) == self.COUNT - 2 * ("na" in options)

    @pytest.mark.parametrize("name", ["a", "y"])
    def test_a_text_far_down_is_named_with_its_row_and_the_share_of_numbers(self, name: str, tmp_path: Path) -> None:
        table = self.texts(**{name: {self.COUNT - 5: "much"}})
        csv.write_csv(table, tmp_path / "t.csv", csv.WriteOptions(quoting_style="none"))
        row = self.COUNT - 5 + 2
        told = f"row {row}, column '{name}': 'much' is not a number, as {self.COUNT - 1:,} of the {self.COUNT:,} values"
        with pytest.raises(DataError, match=told):
            pack(str(tmp_path / "t.csv"), tmp_path / "new", PackOptions(target=("y",)))

    def test_rows_are_counted_over_all_blocks(self, tmp_path: Path) -> None:
        csv.write_csv(self.texts(), tmp_path / "t.csv", csv.WriteOptions(quoting_style="none"))
        table, rows = open_table(tmp_path / "t.csv", lambda size: None, PackOptions()), 0
        for _, row, batch in table.record_batches(["a", "y"]):
            assert row == rows + 2
            rows += batch.num_rows
        assert rows == self.COUNT

    def test_a_row_with_a_value_too_many_far_down_is_named(self, tmp_path: Path) -> None:
        csv.write_csv(self.texts(), tmp_path / "t.csv", csv.WriteOptions(quoting_style="none"))
        with (tmp_path / "t.csv").open("a") as file:
            file.write("1,2,3,4\n")
        with pytest.raises(DataError, match=rf"#{self.COUNT + 2}\b"):
            pack(str(tmp_path / "t.csv"), tmp_path / "new", PackOptions(target=("y",)))

"""Tables as people have them: each kind of mess is one dataset in every form, or one line with what to type."""

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.options import PackOptions, Spelling
from lockstep.packing.pack import pack, plan_lines

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
pack_table = pytest.importorskip("lockstep.packing.pack_table")
opened_frame = pytest.importorskip("lockstep.packing.table_sources").opened_frame

rng = np.random.default_rng(0)
#: The values of forty rows, as a file has them, and the row that a mess is in, from 0.
CLEAN = {
    "a": [f"{value:.2f}" for value in rng.normal(size=40)],
    "town": rng.choice(["Bern", "Zug"], 40).tolist(),
    "y": [f"{value:.1f}" for value in rng.normal(size=40)],
}
AT = 7

Table = dict[str, list[str]]


class Objects:
    """A frame as pandas has it if a column has objects of several types: Arrow does not take it, but gives columns."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = list(columns)
        self.values = columns

    def __getitem__(self, name: str) -> list[Any]:
        return self.values[name]

    def __len__(self) -> int:
        return len(self.values["y"])

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        raise pa.ArrowInvalid("Could not convert '-' with type str: tried to convert to double")


@dataclass(frozen=True)
class Mess:
    """What is wrong with a table, and what is expected of it."""

    #: The values of columns that differ.
    changed: Table = field(default_factory=dict)
    #: The column and the value that are refused, and the options that help, as the message has to name them.
    column: str = ""
    value: str = ""
    fix: dict[str, Any] = field(default_factory=dict)
    #: How the message goes on after the row and the column, if not with the value and a kind.
    told: str = "{value!r} is not a number"
    row: int = AT


def one(column: str, value: str) -> Table:
    return {column: [*CLEAN[column][:AT], value, *CLEAN[column][AT + 1 :]]}


def refused(column: str, value: str, told: str = "{value!r} is not a number", **fix: Any) -> Mess:
    return Mess(one(column, value), column, value, fix, told)


COMMAS = {name: [value.replace(".", ",") for value in CLEAN[name]] for name in ("a", "y")}
MESSES: dict[str, Mess] = {
    "a dash": refused("a", "-", na=["-"], missing="mean"),
    "a question mark": refused("a", "?", na=["?"], missing="mean"),
    "a word": refused("a", "n/a!", na=["n/a!"], missing="mean"),
    "a thousand": refused("a", "1,234.5", drop=["a"]),
    "a currency": refused("a", "$5", drop=["a"]),
    "a percentage": refused("a", "5%", drop=["a"]),
    "a date among numbers": refused("a", "2020-01-02", drop=["a"]),
    "a time of day": refused("a", "12:30", drop=["a"]),
    "a date of some country": refused("a", "01/02/2020", drop=["a"]),
    "a word among real targets": refused("y", "unknown", na=["unknown"], missing="drop"),
    "a word among names of classes": refused("y", "unknown", task="classes"),
    "an infinite number": refused("a", "inf", "inf is infinite", na=["inf"], missing="mean"),
    "a number beyond float64's half": refused("a", "1e+300", "1e+300 is larger", na=["1e+300"], missing="mean"),
    "a number beyond float32": refused("a", "8e+38", "8e+38 is larger", na=["8e+38"], missing="mean"),
    "a target beyond float32": refused("y", "1e+300", "1e+300 is larger", na=["1e+300"], missing="drop"),
    "nothing": refused("a", "", "is missing", missing="mean"),
    "nothing to predict": refused("y", "", "is missing", missing="drop"),
    "names of rows": Mess(
        {"id": [f"p{row}" for row in range(40)]}, "id", "p0", {"drop": ["id"]}, "{value!r} is one of 40", row=0
    ),
    "decimal commas": Mess(COMMAS, "a", COMMAS["a"][0], {"decimal": ","}, row=0),
    "a number among names": Mess(
        {"town": ["1", "2", "3", "other"] * 10}, "town", "other", {"categories": ["town"]}, row=3
    ),
    "an impossible date": Mess(
        {"a": ["2021-02-28", "2021-02-30"] * 20}, "a", "2021-02-30", {"drop": ["a"]}, "{value!r} is not a date", row=1
    ),
    "blanks": Mess({"town": [f" {town} " for town in CLEAN["town"]]}),
    "words for nothing": Mess(one("a", "NA") | one("town", "null"), fix={"missing": "drop"}),
    "codes with zeros": Mess({"town": ["007", "123", "040", "999"] * 10}),
    "true and false": Mess({"town": ["true", "false"] * 20}),
    "dates": Mess({"a": [f"2024-02-{1 + row % 28:02d}" for row in range(40)]}),
    "a category to predict": Mess({"y": CLEAN["town"]}, fix={"one_hot": ["town"]}),
}


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def typed(values: list[str], *, is_mixed: bool) -> list[Any]:
    """Return values as a program has them: numbers, unless one is a text and `is_mixed` is not given."""
    numbers = [number(value) for value in values]
    is_codes = any(value.startswith("0") and value.isdigit() for value in values)
    if set(values) == {"true", "false"}:
        return [value == "true" for value in values]
    if not is_codes and (is_mixed or all(each is not None for each in numbers if values[numbers.index(each)])):
        return [each if each is not None else (text or None) for each, text in zip(numbers, values, strict=True)]
    return [text or None for text in values]


def forms(table: Table, folder: Path) -> Iterator[tuple[Any, Spelling, int]]:
    """Return a table as files and as frames, each with how its options are spelled, and the number of its first row."""
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([list(table), *zip(*table.values(), strict=True)])
    yield folder / "t.csv", Spelling.FLAGS, 2
    arrow = pa.table({name: typed(values, is_mixed=False) for name, values in table.items()})
    parquet.write_table(arrow, folder / "t.parquet")
    yield folder / "t.parquet", Spelling.FLAGS, 1
    yield arrow, Spelling.PYTHON, 1
    yield arrow.to_reader(), Spelling.PYTHON, 1
    yield Objects({name: typed(values, is_mixed=True) for name, values in table.items()}), Spelling.PYTHON, 1


def packed(source: Any, folder: Path, **given: Any) -> str:
    """Pack a source, and return the digest of the dataset."""
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    options = PackOptions(target=("y",), **lists)
    if isinstance(source, Path):
        pack(str(source), folder, options)
    else:
        pack_table.pack_frame(source, folder, options)
    return load(str(folder)).digest


@pytest.mark.parametrize("mess", MESSES.values(), ids=MESSES)
def test_a_mess_is_one_dataset_in_every_form_or_one_line_with_what_to_type(mess: Mess, tmp_path: Path) -> None:
    digests = set()
    for index, (source, spelled, first) in enumerate(forms(CLEAN | mess.changed, tmp_path)):
        folder = tmp_path / str(index)
        if mess.column:
            with pytest.raises(DataError) as raised:
                packed(source, folder, spelled=spelled)
            text = str(raised.value)
            assert f"row {first + mess.row}, column {mess.column!r}: {mess.told.format(value=mess.value)}" in text
            for name, value in mess.fix.items():
                assert spelled(name, value) in text
            assert text.isprintable()
            assert not folder.exists()
        if not (mess.column and isinstance(source, pa.RecordBatchReader)):
            digests.add(packed(source, folder, spelled=spelled, **mess.fix))
    assert len(digests) == 1


def text_of(table: Table, delimiter: str = ",", end: str = "\n") -> str:
    rows = io.StringIO()
    csv.writer(rows, delimiter=delimiter, lineterminator=end).writerows(
        [list(table), *zip(*table.values(), strict=True)]
    )
    return rows.getvalue()


TEXT, NAMED = text_of(CLEAN), {name.replace("a", "ä"): values for name, values in CLEAN.items()}
LINES = TEXT.splitlines(keepends=True)
#: The bytes of files that are the clean table, and the options without which they are not.
BYTES: dict[str, tuple[bytes, dict[str, Any]]] = {
    "a mark of UTF-8": (TEXT.encode("utf-8-sig"), {}),
    "UTF-16": (TEXT.encode("utf-16"), {}),
    "UTF-16 of the other order": (b"\xfe\xff" + TEXT.encode("utf-16-be"), {}),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "UTF-32": (TEXT.encode("utf-32"), {}),
    "UTF-32 without a mark": (TEXT.encode("utf-32-le"), {"encoding": "utf-32-le"}),
    "line ends of Windows": (text_of(CLEAN, end="\r\n").encode(), {}),
    "line ends of old": (text_of(CLEAN, end="\r").encode(), {}),
    "semicolons": (text_of(CLEAN, ";").encode(), {}),
    "tabs": (text_of(CLEAN, "\t").encode(), {}),
    "bars": (text_of(CLEAN, "|").encode(), {}),
    "another separator": (text_of(CLEAN, ":").encode(), {"delimiter": ":"}),
    "semicolons and decimal commas": (text_of(CLEAN, ";").replace(".", ",").encode(), {"decimal": ","}),
    "blanks after separators": (TEXT.replace(",", ", ").encode(), {}),
    "empty lines": (("\n" + "\n".join(LINES) + "\n\n").encode(), {}),
    "a separator at the end": (text_of(CLEAN | {"": [""] * 40}).encode(), {}),
    "the index of a frame": (text_of({"": list(map(str, range(40)))} | CLEAN).encode(), {}),
    "everything in quotes": ("\n".join(f'"{line.strip()}"'.replace(",", '","') for line in LINES).encode(), {}),
    "a compressed file": (gzip.compress(TEXT.encode()), {}),
}


@pytest.mark.parametrize(("content", "options"), BYTES.values(), ids=BYTES)
def test_files_of_other_forms_are_the_same_dataset(content: bytes, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "clean.csv").write_text(TEXT)
    name = "t.csv.gz" if content.startswith(b"\x1f\x8b") else "t.csv"
    (tmp_path / name).write_bytes(content)
    if options:
        with pytest.raises(DataError):
            packed(tmp_path / name, tmp_path / "without")
    clean = packed(tmp_path / "clean.csv", tmp_path / "clean")
    assert packed(tmp_path / name, tmp_path / "new", **options) == clean


FAR_DOWN = "".join([*LINES, *LINES[1:] * 100]) + "1.5,Zürich,2.5\n"
LATIN = "is not UTF-8: --encoding cp1252, if it should read"
BROKEN: dict[str, tuple[bytes, str]] = {
    "a header in Latin-1": (text_of(NAMED).encode("latin-1"), f"line 1: byte 0xe4 {LATIN} 'ä'"),
    "a value in Latin-1": (
        TEXT.replace("Zug", "Zürich").encode("latin-1"), f"line 2: byte 0xfc {LATIN} 'Zürich'"
    ),
    "a value in Latin-1, far down": (
        FAR_DOWN.encode("latin-1"), f"line 4042: byte 0xfc {LATIN} 'Zürich'"
    ),
    "UTF-16 without a mark": (TEXT.encode("utf-16-be"), "or the name of another encoding, as --encoding utf-16-le"),
    "zero bytes": (b"PK\x03\x04" + bytes([0, 0, 8, 1, 2, 3]) * 9,
                   "has zero bytes, as no CSV file in UTF-8 has: expected texts with a header"),
    "a quote that is not closed": (TEXT.replace("Zug", '"Zug', 1).encode(), 'a quote (") is not closed'),
    "a quote in the last column": ((TEXT + '1.5,Zug,"2\n' + "".join(LINES[1:])).encode(),
                                   'row 42: a quote (") is not closed'),
    "a quote before megabytes": ((TEXT + '1.5,"Zug,2\n' + "".join(LINES[1:]) * 5000).encode(),
                                 'row 42: a quote (") is not closed'),
    "a row of megabytes": (f"{TEXT}1.5,{'Zug' * 2 * 10**6},2\n".encode(), "t.csv: cannot be read ("),
    "a value too few": ((TEXT + "1.5,Zug\n").encode(), "#42"),
    "a text that is too long": (TEXT.replace("Zug", "Zug" * 500).encode(), "is a text of 1,500 characters"),
    "a name that is too long": (TEXT.replace("town", "town" * 500).encode(), "a column's name has 2,000 characters"),
    "line ends alone": (b"\n\n", "expected a CSV file with a header"),
    "no header": ("".join(LINES[1:]).replace("Bern", "1").replace("Zug", "2").encode(),
                  "if row 1 is not a header, write one first"),
    "a header with one name twice": (TEXT.replace("town", "a").encode(), "two columns are called 'a'"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_cannot_be_read_is_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError) as raised:
        packed(tmp_path / "t.csv", tmp_path / "new")
    assert told in str(raised.value)
    assert str(raised.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_a_long_list_of_columns_can_be_opened_again(tmp_path: Path) -> None:
    table = {f"a column with the number {number}": CLEAN["a"] for number in range(60)} | CLEAN
    (tmp_path / "t.csv").write_text(text_of(table))
    assert packed(tmp_path / "t.csv", tmp_path / "new", columns=list(table)[:-1])


def test_a_line_end_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    for name, content in (("a\nb.csv", "a,y\n"), ("a\nb.parquet", "no"), ("a\nc.csv", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError) as raised:
            packed(tmp_path / name, tmp_path / "new")
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("rows", [1, 2000])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_compressed_file_that_is_damaged_is_one_line(rows: int, is_cut: bool, tmp_path: Path) -> None:
    content = gzip.compress("".join([LINES[0], *LINES[1:] * rows]).encode())
    for at in range(12, len(content), 1 + len(content) // 20):
        damaged = content[:at] if is_cut else content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        (tmp_path / "t.csv.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.csv\.gz: ") as raised:
            packed(tmp_path / "t.csv.gz", tmp_path / "new")
        assert str(raised.value).isprintable()
        assert [path.name for path in tmp_path.iterdir()] == ["t.csv.gz"]


def test_whole_numbers_beyond_64_bits_are_numbers(tmp_path: Path) -> None:
    values = {"a": [2**70, *range(39)], "y": list(map(float, CLEAN["y"]))}
    (tmp_path / "t.csv").write_text(text_of({name: list(map(str, column)) for name, column in values.items()}))
    assert packed(Objects(values), tmp_path / "0") == packed(tmp_path / "t.csv", tmp_path / "1")


def test_a_frame_whose_rows_are_not_computed_is_refused_with_what_to_do(tmp_path: Path) -> None:
    class LazyFrame:
        def collect(self) -> None: ...

    with pytest.raises(
        DataError, match=r"the LazyFrame has no rows yet: expected a data frame; call .collect\(\) first"
    ):
        packed(LazyFrame(), tmp_path / "new")


@pytest.mark.parametrize("rest", [([1.0, 2.0],), (np.ones(2), np.ones(2))])
def test_a_frame_and_its_target_apart_are_refused_with_what_puts_them_together(
    tmp_path: Path, rest: tuple[Any, ...]
) -> None:
    frame = pa.table({"a": [1.0, 2.0]})
    with pytest.raises(
        DataError, match=r"a Table and a .*: expected two data frames, .* x\.assign\(target=y\), target="
    ):
        pack_table.pack_frame((frame, *rest), tmp_path / "new", PackOptions(target=("y",)))


def test_one_row_is_refused_with_what_makes_a_frame_of_it(tmp_path: Path) -> None:
    text = r"the dict has no columns: expected a data frame; pandas.DataFrame\(\[row\]\) makes one of one row"
    with pytest.raises(DataError, match=text):
        opened_frame({"a": 1.0, "b": "north"}, lambda _: None, PackOptions(target=("y",)))


def test_a_table_without_rows_is_not_damaged(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"a": pa.array([], pa.float64()), "y": pa.array([], pa.float64())}), tmp_path / "t.parquet"
    )
    with pytest.raises(DataError, match="no rows are left to learn from: expected some"):
        packed(tmp_path / "t.parquet", tmp_path / "new")


def test_a_table_without_a_row_to_test_with_is_refused_by_a_dry_run_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("".join(LINES[:3]))
    text = "the test set is empty, because 20% of 2 rows is none: expected more rows, or a larger --test-split"
    with pytest.raises(DataError, match=text):
        packed(tmp_path / "t.csv", tmp_path / "new")
    with pytest.raises(DataError, match=text):
        plan_lines(str(tmp_path / "t.csv"), PackOptions(target=("y",)))


@pytest.mark.parametrize(
    ("values", "is_noted"), [(["1.036", "7"], True), (["1.036", "7.5", "8"], False), (["1.036", "2.036"], False)]
)
def test_points_that_may_separate_thousands_are_noted(values: list[str], is_noted: bool, tmp_path: Path) -> None:
    table = CLEAN | {"a": (values * 40)[:40]}
    (tmp_path / "t.csv").write_text(text_of(table, ";"))
    lines = plan_lines(str(tmp_path / "t.csv"), PackOptions(target=("y",)))
    assert any("'a' has 1.036 among whole numbers, and is read with a fraction" in line for line in lines) == is_noted
    (tmp_path / "t.csv").write_text(text_of(table))
    assert not any(
        "among whole numbers" in line for line in plan_lines(str(tmp_path / "t.csv"), PackOptions(target=("y",)))
    )

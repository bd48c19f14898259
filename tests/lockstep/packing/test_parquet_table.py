"""A Parquet file of some kilobytes does not take gigabytes: what its pages say of themselves is read first."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.common.errors import DataError
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.packing.peaks import MOST_KB, peak_of

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

from lockstep.packing.parquet_table import _CompactReader, rows_at_once  # noqa: E402  # what may be missing

ROWS = 16_384


def texts(length: int, rows: int = ROWS) -> Any:
    """Return a table with two different texts of that length, and a target."""
    names = pa.array(["x" * length, "x" * (length - 1)])
    places = pa.array(np.arange(rows, dtype=np.int32) % 2)
    return pa.table({"text": pa.DictionaryArray.from_arrays(places, names), "y": np.arange(rows) % 2})


def written(path: Path, table: Any, **options: Any) -> int:
    parquet.write_table(table, path, compression="zstd", store_schema=False, **options)
    return rows_at_once(path, parquet.ParquetFile(path).metadata, ["text", "y"], ROWS)


def test_texts_that_are_long_are_decoded_a_few_at_once(tmp_path: Path) -> None:
    assert written(tmp_path / "short.parquet", texts(100)) == ROWS
    assert written(tmp_path / "long.parquet", texts(250_000)) < 100
    plain = pa.table({"text": texts(20_000).column("text").cast(pa.string()), "y": np.arange(ROWS) % 2})
    shared = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    assert written(tmp_path / "shared.parquet", plain, **shared) < 1000


def test_other_columns_do_not_count(tmp_path: Path) -> None:
    written(path := tmp_path / "long.parquet", texts(250_000))
    assert rows_at_once(path, parquet.ParquetFile(path).metadata, ["y"], ROWS) == ROWS


def test_a_page_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bytes of file become pages of 70,\d+,\d+ bytes: expected at most 67,108,864"):
        written(tmp_path / "page.parquet", texts(35_000_000, 4))
    assert written(tmp_path / "page.parquet", texts(20_000_000, 4)) == 1


def test_rows_out_of_nothing_are_refused(tmp_path: Path) -> None:
    count = 3_000_000
    table = pa.table({"x": np.zeros(count), "y": np.arange(count) // (count // 2)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"a.parquet: has 3,000,000 rows in [\d,]+ bytes: expected at most 64 for each"):
        pack(str(tmp_path / "a.parquet"), tmp_path / "new", PackOptions(target=("y",)))


def test_a_footer_that_lies_about_pages_is_not_believed(tmp_path: Path) -> None:
    written(path := tmp_path / "a.parquet", texts(1000))
    content = bytearray(path.read_bytes())
    content[4:12] = bytes([0x15, 0x04, 0x15, 0x80, 0x80, 0x80, 0x80, 0x08])  # a dictionary's page of 2**30 bytes
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: (damaged at byte|[\d,]+ bytes of file become pages of)"):
        rows_at_once(path, parquet.ParquetFile(path).metadata, ["text", "y"], ROWS)


@given(st.binary(max_size=200))
def test_whatever_stands_where_a_header_should_be_ends(data: bytes) -> None:
    reader = _CompactReader(data)
    try:
        fields = reader.struct()
    except (IndexError, ValueError):
        return
    assert reader.at <= len(data)
    assert all(isinstance(number, int) for number in fields)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_a_file_that_took_gigabytes_takes_little(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", texts(250_000, 1600))
    told, peak = peak_of(tmp_path, "pack", "a.parquet", "new", "--target", "y")
    assert told.startswith(("packed 1,280 samples", "error: a.parquet"))
    assert peak < MOST_KB

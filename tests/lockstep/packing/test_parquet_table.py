"""A Parquet file of some kilobytes, whose texts are long or whose rows are out of nothing, does not take gigabytes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.errors import DataError
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.packing.peaks import MOST_KB, peak_of

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_rows_out_of_nothing_are_refused(tmp_path: Path) -> None:
    count = 3_000_000
    table = pa.table({"x": np.zeros(count), "y": np.arange(count) // (count // 2)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"a.parquet: has 3,000,000 rows in [\d,]+ bytes: expected at most 64 for each"):
        pack(str(tmp_path / "a.parquet"), tmp_path / "new", PackOptions(target=("y",)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_a_text_that_all_rows_share_is_in_memory_once(tmp_path: Path) -> None:
    places = pa.array(np.arange(16_384, dtype=np.int32) % 2)
    texts = pa.DictionaryArray.from_arrays(places, pa.array(["x" * 250_000, "x" * 249_999]))
    table = pa.table({"text": texts, "y": np.arange(16_384) % 2})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", store_schema=False)
    told, peak = peak_of(tmp_path, "pack", "a.parquet", "new", "--target", "y")
    assert "is a text of 250,000 characters: expected at most 1,024 of a category" in told
    assert peak < MOST_KB


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_texts_of_any_encoding_are_the_same_dataset(encoding: str, tmp_path: Path) -> None:
    table = pa.table({"town": ["Bern", "Zug", None, " Zug"] * 20, "y": np.arange(80) % 2})
    digests = set()
    for name, options in {"a": {}, "b": {"use_dictionary": False, "column_encoding": {"town": encoding}}}.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet", **options)
        found = pack(str(tmp_path / f"{name}.parquet"), tmp_path / name, PackOptions(target=("y",), missing="mean"))
        digests.add(found.manifest.digest())
    assert len(digests) == 1

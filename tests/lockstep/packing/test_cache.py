"""A table where a dataset is expected is packed once; other bytes or other options make another folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lockstep import doctor, nn
from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.cache import DatasetCache, digest_of, is_to_be_packed
from lockstep.packing.options import PackOptions, Watch
from tests.lockstep.tiny_data import write_tiny

pytest.importorskip("pyarrow")

ROWS = "a,b,kind\n" + "".join(f"{number % 7},{number},{'xy'[number % 2]}\n" for number in range(50))


@dataclass
class Shown:
    """What a person sees."""

    packed: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @contextmanager
    def progress(self, what: str) -> Iterator[Watch]:
        self.packed.append(what)
        yield lambda share: None

    def cache(self, folder: Path) -> DatasetCache:
        return DatasetCache(folder=folder, progress=self.progress, say=self.said.append)


def packed(source: Path, shown: Shown, loss: str = "cross-entropy", **options: Any) -> str:
    given = PackOptions(**{"target": ("kind",), **options})
    return shown.cache(source.parent / "cache").packed(str(source), given, loss)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path / "rows.csv"


def test_it_is_packed_once(table: Path) -> None:
    shown = Shown()
    first = packed(table, shown)
    assert Path(first).parent == table.parent / "cache"
    assert Path(first).name.startswith("rows-")
    assert shown.said[0] == f"packed 40 samples to train on and 10 to test with into {first}"
    table.touch()
    assert packed(table, shown) == first
    assert len(shown.packed) == 1


def test_a_source_that_changed_later_is_noticed(table: Path) -> None:
    folder, cache = Path(packed(table, Shown(), drop=("a",), test_split=0.3)), Shown().cache(table.parent / "cache")
    origin = read_manifest(folder).origin
    table.touch()
    assert not cache.has_changed(folder, origin)
    table.write_text(ROWS.replace(",10,", ",11,", 1))
    assert cache.has_changed(folder, origin)
    # Nothing is claimed of a folder that a person has packed, of another version's, or without the source.
    assert not Shown().cache(table.parent).has_changed(folder, origin)
    assert not cache.has_changed(folder, msgspec.structs.replace(origin, version="0.1"))
    table.unlink()
    assert not cache.has_changed(folder, origin)


def test_other_bytes_or_options_are_another_dataset(table: Path) -> None:
    shown = Shown()
    folders = [packed(table, shown), packed(table, shown, columns=("a",)), packed(table, shown, test_split=0.3)]
    table.write_text(ROWS.replace("y", "z"))
    folders.append(packed(table, shown))
    assert len(set(folders)) == len(shown.packed) == 4


def test_with_mean_squared_error_few_integers_are_numbers(table: Path) -> None:
    shown = Shown()
    classes = packed(table, shown, target=("a",))
    numbers = packed(table, shown, loss="mse", target=("a",))
    assert [read_manifest(Path(folder)).classes for folder in (classes, numbers)] == [7, 0]
    assert packed(table, shown, loss="mse", target=("a",), task="numbers") == numbers
    assert packed(table, shown, loss="mse", target=("a",), task="classes") not in (classes, numbers)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (("c",), r"rows.csv: the target 'c' is numeric, .* expected --loss mse, or --task classes$"),
        (("a", "c"), r"rows.csv: the target 'a', 'c' is numeric, .* expected --loss mse, or one --target$"),
    ],
)
def test_numbers_need_mean_squared_error(table: Path, target: tuple[str, ...], told: str) -> None:
    table.write_text("a,b,c\n" + "".join(f"{number % 7},{number},{number / 3}\n" for number in range(50)))
    for _ in ("packed now", "packed before"):
        with pytest.raises(DataError, match=told):
            packed(table, Shown(), target=target)
    assert packed(table, Shown(), loss="mse", target=target)


def test_the_same_bytes_elsewhere_are_the_same_dataset(table: Path) -> None:
    other = table.parent / "elsewhere" / "rows.csv"
    other.parent.mkdir()
    other.write_text(ROWS)
    assert Path(packed(table, Shown())).name == Path(packed(other, Shown())).name


def test_what_needs_no_packing_stays_what_it_is(tmp_path: Path) -> None:
    shown, tiny = Shown(), write_tiny(tmp_path)
    cache = shown.cache(tmp_path)
    for source in ("mnist", str(tiny), "gone", str(tmp_path)):
        assert not is_to_be_packed(source)
        assert cache.packed(source, PackOptions(), "mse") == source
    with pytest.raises(
        DataError, match=r"--target, --test-split with data 'mnist': expected a .csv, a .parquet, a folder"
    ):
        cache.packed("mnist", PackOptions(target=("x",), test_split=0.1), "mse")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "one.png").touch()
    with pytest.raises(DataError, match=r"flat: is a folder with one\.png: expected a folder inside it for the pict"):
        cache.packed(str(tmp_path / "flat"), PackOptions(size=(8, 8)), None)
    assert shown.packed == []


@pytest.mark.parametrize(
    ("source", "options"),
    [("gone.csv", PackOptions()), ("gone.parquet", PackOptions(target=("x",))), ("gone", PackOptions(target=("x",)))],
)
def test_a_source_that_does_not_exist_is_reported_as_such(tmp_path: Path, source: str, options: PackOptions) -> None:
    with pytest.raises(DataError, match=rf"{source}: does not exist: expected a .csv, a .parquet, a folder"):
        DatasetCache(folder=tmp_path).packed(str(tmp_path / source), options, "mse")


def test_arrays_without_a_test_set_are_packed_as_pack_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20) % 2
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    assert is_to_be_packed(str(tmp_path / "rows.npz"))
    cache = DatasetCache(folder=tmp_path / "datasets")
    data = load(cache.packed(str(tmp_path / "rows.npz"), PackOptions(test_split=0.25), "cross-entropy"))
    assert (len(data.train), len(data.test)) == (15, 5)
    told = r"has no test set: .* run `lockstep pack \S+rows.npz rows.data`"
    with pytest.raises(DataError, match=told):
        load(str(tmp_path / "rows.npz"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert doctor(nn.Linear(3, 2), tmp_path / "rows.npz", global_batch=8, epochs=1).subject.endswith("rows.npz")


def test_a_mistake_leaves_nothing_in_the_cache(table: Path) -> None:
    with pytest.raises(DataError, match="no column 'kinds'"):
        packed(table, Shown(), target=("kinds",))
    assert list((table.parent / "cache").rglob("*-*")) == []


def test_the_digest_is_of_names_of_both_tables_and_of_options(tmp_path: Path) -> None:
    for folder, names in (("one", ("cat", "dog")), ("other", ("ape", "bee"))):
        for name, content in zip(names, ("a picture", "another"), strict=True):
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "1.png").write_text(content)
    # The names of folders are the classes.
    assert digest_of(tmp_path / "one", PackOptions()) != digest_of(tmp_path / "other", PackOptions())
    table, tested = tmp_path / "train.csv", tmp_path / "test.csv"
    digests = set()
    for content in ("a\n1\n", "a\n2\n"):
        table.write_text("a\n1\n")
        tested.write_text(content)
        digests.add(digest_of(table, PackOptions(test=tested)))
    digests.add(digest_of(table, PackOptions()))
    digests.add(digest_of(table, PackOptions(target=("a",))))
    assert len(digests) == 4

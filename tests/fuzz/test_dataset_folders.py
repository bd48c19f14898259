"""The files of a dataset folder, damaged: it is refused by a typed error, or read as it claims to be."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.data.folder import MANIFEST, check_folder, load_folder
from lockstep.common.data.npy import DATA_OFFSET
from lockstep.common.errors import DataError
from tests.fuzz.bar import amounts, bear, examine
from tests.fuzz.mutation import damaged, tokens_of
from tests.fuzz.tape import Tape
from tests.lockstep.common.data.folders import write_folder

SAMPLES, LABELS = np.arange(60, dtype=np.float32).reshape(20, 3), np.arange(20) % 3
FILES = ("train-samples.npy", "train-labels.npy", "test-samples.npy", "test-labels.npy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders") / "whole"
    return write_folder(folder, (SAMPLES, LABELS), (SAMPLES[:5], LABELS[:5]), 3, ("a", "b", "c"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "folder"))


def read_all(folder: Path) -> None:
    """Read all that a folder says it has."""
    data = load_folder(folder, is_checked=True)
    for part in (data.train, data.test):
        # A label that is changed in a block of its own is found by its digest, as samples are.
        assert len(part.images[:]) == len(part.labels)
    check_folder(folder)


@amounts("dataset folders")
def test_a_damaged_folder_is_refused_or_read(cases: int, whole: Path, folder: Path) -> None:
    contents = {name: (whole / name).read_bytes() for name in (MANIFEST, *FILES)}
    words = tokens_of(contents[MANIFEST].decode())

    def make(tape: Tape) -> tuple[str, bytes]:
        name = tape.choose((MANIFEST, MANIFEST, *FILES))
        data = contents[name]
        if name == MANIFEST and tape.happens():
            at = tape.below(len(words))
            return name, "".join([*words[:at], tape.choose(words), *words[at + 1 :]]).encode()
        if name != MANIFEST and tape.happens():
            # The header, which is short, and not the spaces after it.
            return name, damaged(tape, data[:130]) + data[130:]
        return name, damaged(tape, data, list(contents.values()))

    def check(case: tuple[str, bytes]) -> None:
        name, data = case
        (folder / name).write_bytes(data)
        try:
            with contextlib.suppress(DataError):
                read_all(folder)
        finally:
            (folder / name).write_bytes(contents[name])

    examine(cases, make, check)


def claiming(folder: Path, **changed: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, value in changed.items():
        at, _, key = name.partition("__")
        manifest["train"]["info" if at == "info" else at] = (
            manifest["train"]["info"] | {key: value} if at == "info" else value
        )
    (folder / MANIFEST).write_text(json.dumps(manifest))


LIES: dict[str, dict[str, object]] = {
    "very many samples": {"info__samples": 2**32 - 1},
    "very large ones": {"info__sample_shape": [2**40, 2**40, 2**40]},
    "none": {"info__sample_shape": [0], "samples": []},
    "no digests": {"samples": []},
    "very many digests": {"samples": ["0" * 64] * 5000},
    "tokens": {"info__images_dtype": "<i4"},
    "floats as labels": {"info__labels_dtype": "<f4"},
    "labels of rows": {"info__label_shape": [2**40]},
}


@pytest.mark.parametrize("changed", LIES.values(), ids=LIES)
def test_a_manifest_that_lies_is_refused(folder: Path, changed: dict[str, object]) -> None:
    claiming(folder, **changed)

    def explode() -> None:
        with pytest.raises(DataError) as caught:
            read_all(folder)
        assert str(caught.value).isprintable()

    bear(explode)


def test_objects_are_not_unpickled(folder: Path) -> None:
    path = folder / "train-samples.npy"
    data = path.read_bytes()
    path.write_bytes(data[:DATA_OFFSET].replace(b"'<f4'", b"'|O' ") + data[DATA_OFFSET:])

    def explode() -> None:
        with pytest.raises(DataError, match="expected plain numbers"):
            read_all(folder)

    bear(explode)

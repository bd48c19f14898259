"""A run in one file: it is read as its folder is, says nothing of the machine, and hostile ones are refused."""

import hashlib
import json
import os
import shutil
import socket
import stat
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lockstep import load_run
from lockstep.api.run import Run
from lockstep.cli.main import run
from lockstep.common.errors import FileFormatError, LockstepError, UsageError
from lockstep.runs.shared_run import MOST_TIMES, opened_run, share, unpacked_runs
from tests.lockstep.small_runs import small_run
from tests.lockstep.tiny_data import tiny_arrays


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return small_run(tmp_path, epochs=2)


@pytest.fixture
def file(done: Run, tmp_path: Path) -> Path:
    share(done.folder, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def test_a_file_is_read_as_the_folder_is(done: Run, file: Path, tmp_path: Path) -> None:
    samples = tiny_arrays()[1][0]
    expected = done.predict(samples)
    shutil.rmtree(done.folder)
    (tmp_path / "tiny.npz").unlink()
    loaded = load_run(file)
    assert loaded.result.weights_sha256 == done.weights_sha256
    assert loaded.history == done.history
    np.testing.assert_array_equal(loaded.predict(samples), expected)
    assert loaded.folder.is_relative_to(unpacked_runs())


def test_the_same_run_gives_the_same_file(done: Run, file: Path, tmp_path: Path) -> None:
    share(done.folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    assert not list(tmp_path.glob(".again*"))


def test_a_file_has_no_paths_and_no_machines(done: Run, file: Path, tmp_path: Path) -> None:
    ledger = done.folder / "ledger.jsonl"
    host = socket.gethostname()
    begun, *rest = ledger.read_text().splitlines(keepends=True)
    worker = json.dumps({"kind": "worker", "rank": 0, "host": host, "pid": 7})
    left = json.dumps({"kind": "left", "rank": 0, "why": f"worker 0 (host {host}, pid 7) is gone"})
    ledger.write_text("".join([begun, worker, "\n", *rest, left, "\n"]))
    share(done.folder, file)
    shared = opened_run(file)
    texts = {path.name: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    names = {"job.toml", "receipt.json", "result.json", "ledger.jsonl", "metrics.jsonl", "weights.safetensors"}
    assert set(texts) == names
    for text in texts.values():
        assert str(tmp_path).encode() not in text
    assert b'"host":"host-1"' in texts["ledger.jsonl"]
    assert b"worker 0 (host host-1, pid 7) is gone" in texts["ledger.jsonl"]


def test_the_digests_of_a_file_are_those_of_the_folder(done: Run, file: Path) -> None:
    one, other = (json.loads((folder / "receipt.json").read_text()) for folder in (done.folder, opened_run(file)))
    for receipt, folder in ((one, done.folder), (other, opened_run(file))):
        for subject in receipt.pop("subject"):
            data = (folder / subject["name"]).read_bytes()
            assert subject["digest"] == {"sha256": hashlib.sha256(data).hexdigest()}
    source = other["predicate"]["data"]["origin"].pop("source")
    assert os.path.basename(one["predicate"]["data"]["origin"].pop("source")) == source
    assert one == other


def test_sharing_code_names_the_flag_by_which_others_agree_to_it(
    done: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def same(sample, rng):\n    return sample\n")
    command = ["train", "--data", "tiny.npz", "--model", "linear", "--steps", "1", "--workers", "0", "--no-picture"]
    assert run([*command, "--set", "transform=own.py:same", "--run-dir", "code"]) == 0
    capsys.readouterr()
    for folder, told in ((str(done.folder), []), ("code", ["--trust-model"])):
        assert run(["export", folder, f"{folder}.zip"]) == 0
        assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == told


def test_a_run_that_has_not_finished_is_not_shared(done: Run, tmp_path: Path) -> None:
    (done.folder / "result.json").unlink()
    again = f"lockstep train --resume {done.folder}"
    with pytest.raises(UsageError, match=f"is not finished: resume it with `{again}`, and share it then"):
        share(done.folder, tmp_path / "run.zip")
    (done.folder / "job.toml").unlink()
    with pytest.raises(UsageError, match="holds no finished run"):
        share(done.folder, tmp_path / "run.zip")
    assert not (tmp_path / "run.zip").exists()


def test_a_folder_that_does_not_exist_is_named(done: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write '.*nowhere/run\.zip': .*: expected a file in a folder that"):
        share(done.folder, tmp_path / "nowhere" / "run.zip")


def _entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


HOSTILE: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "a path that leads up": (lambda it: it.writestr("run/../../evil", "x"), "is not a record of a run"),
    "a path from the root": (lambda it: it.writestr("/etc/job.toml", "x"), "is not a record of a run"),
    "a path that leads up in the model": (lambda it: it.writestr("run/model/../../x", "x"), "is not a record of a run"),
    "a backslash": (lambda it: it.writestr("run/model/..\\x.py", "x"), "is not a record of a run"),
    "another file": (lambda it: it.writestr("run/.bashrc", "x"), "is not a record of a run"),
    "a link": (lambda it: it.writestr(_entry("run/ledger.jsonl", stat.S_IFLNK | 0o777), "/etc/passwd"), "but a link"),
    "a pipe": (lambda it: it.writestr(_entry("run/ledger.jsonl", stat.S_IFIFO), "x"), "is not a regular file"),
    "two runs": (lambda it: it.writestr("other/job.toml", "x"), "it has the folders 'other', 'run', and not one"),
    "a name twice": (lambda it: it.writestr("run/job.toml", "x"), "of which"),
    "a bomb": (
        lambda it: it.writestr("run/model/zeros.py", bytes(10**7), zipfile.ZIP_DEFLATED),
        f"more than {MOST_TIMES} times as many",
    ),
    "another packing": (lambda it: it.writestr("run/model/a.py", "x", zipfile.ZIP_BZIP2), "packed in a way that runs"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(
    file: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add, expected = HOSTILE[name]
    with zipfile.ZipFile(file, "a") as archive:
        add(archive)
    with pytest.raises(FileFormatError, match=expected):
        opened_run(file)
    assert run(["ledger", str(file)]) != 0
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert expected in told
    assert not unpacked_runs().exists() or not list(unpacked_runs().iterdir())
    assert not (tmp_path / "evil").exists()


def test_damaged_files_are_refused_and_nothing_is_left(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(60, len(whole), max(1, len(whole) // 40)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        # Some bits decide nothing, as those of the time of an entry.
        with suppress(LockstepError):
            opened = opened_run(file)
            assert opened == file or (opened / "job.toml").is_file()
    assert [each for each in unpacked_runs().iterdir() if len(each.name) != 32] == []


def test_another_file_is_not_a_run(done: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    assert opened_run(tmp_path / "text") == tmp_path / "text"
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(FileFormatError, match="it is empty: expected a file that `lockstep export` has written"):
        opened_run(tmp_path / "empty.zip")

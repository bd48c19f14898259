"""What comes is written where it belongs, checked before it has its name, and found again after a restart."""

import errno
import hashlib
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import FilePart, RunFile, RunFiles
from lockstep.ps.standby.mirror import Mirror, MirrorRecord
from lockstep.ps.standby.source import MOST_DIGESTED
from lockstep.ps.standby.storage import MIRROR, MirrorStorage, bytes_of, is_intact
from tests.lockstep.ps.standby.folders import MirroredFolder

TERM = Term(run="r", number=4, server="s")


def part(name: str, data: bytes, *, version: str = "1", start: int = 0) -> tuple[FilePart, Vector]:
    told = FilePart(
        name=name, version=version, start=start, size=len(data), digest=hashlib.sha256(data).hexdigest(), term=TERM
    )
    return told, np.frombuffer(data + bytes(-len(data) % 4), "<f4")


def listed(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_part_is_intact_if_its_bytes_have_the_digest() -> None:
    told, data = part("receipt.json", b"hello")
    assert bytes_of(told, data) == b"hello"
    assert is_intact(told, data)
    assert not is_intact(told, data[:1])
    assert not is_intact(msgspec.structs.replace(told, digest="0" * 64), data)
    whole, data = part("receipt.json", b"12345678")
    assert is_intact(whole, data)


def test_lines_go_to_their_place_and_other_files_beside_it_until_they_are_complete(tmp_path: Path) -> None:
    storage = MirrorStorage(tmp_path)
    storage.store(*part("ledger.jsonl", b"one\n", version=""))
    storage.store(*part("ledger.jsonl", b"two\n", version="", start=4))
    storage.store(*part("model/net/parts.py", b"x = 1"))
    storage.store(*part("model/net/parts.py", b"\n", start=5))
    assert listed(tmp_path) == {"ledger.jsonl": b"one\ntwo\n", "model/net/.parts.py.partial": b"x = 1\n"}
    version = hashlib.sha256(b"x = 1\n").hexdigest()
    assert storage.complete(RunFile(name="model/net/parts.py", size=6, version=version)) == ""
    assert listed(tmp_path) == {"ledger.jsonl": b"one\ntwo\n", "model/net/parts.py": b"x = 1\n"}
    assert (tmp_path / "ledger.jsonl").stat().st_mode & 0o133 == 0


def test_what_was_there_of_another_version_is_gone_with_the_first_part(tmp_path: Path) -> None:
    storage = MirrorStorage(tmp_path)
    storage.store(*part("receipt.json", b"longer than the other"))
    storage.store(*part("receipt.json", b"short"))
    assert listed(tmp_path) == {".receipt.json.partial": b"short"}


def test_what_the_system_writes_in_pieces_is_whole(tmp_path: Path) -> None:
    def two_bytes(descriptor: int, data: bytes, place: int) -> int:
        return os.pwrite(descriptor, data[:2], place)

    storage = MirrorStorage(tmp_path, two_bytes)
    storage.store(*part("receipt.json", b"hello"))
    storage.store(*part("receipt.json", b" again", start=5))
    assert listed(tmp_path) == {".receipt.json.partial": b"hello again"}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / "ledger.jsonl").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        MirrorStorage(tmp_path).store(*part("ledger.jsonl", b"x\n", version=""))
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("name", "data", "size", "version", "fault"),
    [
        ("receipt.json", b"[]", 2, "0" * 64, f"its SHA-256 is {hashlib.sha256(b'[]').hexdigest()[:12]}…"),
        ("data.npz", bytes(3), MOST_DIGESTED + 1, "1-2-3", f"it has 3 bytes, not {MOST_DIGESTED + 1}"),
        ("checkpoints/step-00000003.safetensors", b"torn", 4, "1" * 64, "has no seal"),
    ],
)
def test_what_is_not_what_was_offered_is_removed_and_reported(
    tmp_path: Path, name: str, data: bytes, size: int, version: str, fault: str
) -> None:
    storage = MirrorStorage(tmp_path)
    storage.store(*part(name, data))
    text = storage.complete(RunFile(name=name, size=size, version=version))
    assert text.startswith(f"{name!r} is not what the server said that it is (")
    assert fault in text
    assert text.endswith("): what is here of it stays")
    assert listed(tmp_path) == {}


def test_a_checkpoint_that_has_gone_before_it_was_complete_is_reported(tmp_path: Path) -> None:
    file = RunFile(name="checkpoints/step-00000003.safetensors", size=4, version="1" * 64)
    assert f"cannot be read ({os.strerror(errno.ENOENT)})" in MirrorStorage(tmp_path).complete(file)


def test_a_checkpoint_with_another_seal_is_not_the_one_that_was_offered(tmp_path: Path) -> None:
    folder = MirroredFolder(tmp_path)
    path = folder.checkpoint(3, "0" * 64)
    path = folder.checkpoint(3, seal := hashlib.sha256(path.read_bytes()).hexdigest())
    name, data = "checkpoints/step-00000003.safetensors", path.read_bytes()
    for version, fault in (("1" * 64, "it has another seal"), (seal, "")):
        folder.storage.store(*part(name, data))
        assert fault in folder.storage.complete(RunFile(name=name, size=len(data), version=version))
        assert listed(folder.there) == ({} if fault else {name: data})


def test_a_file_gets_its_name_once_it_outlives_a_loss_of_power_and_the_name_then_does_too(tmp_path: Path) -> None:
    synced: list[tuple[str, list[str]]] = []

    def sync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        (name,) = (path.name for path in (tmp_path, *tmp_path.iterdir()) if os.path.samestat(path.stat(), found))
        synced.append((name, sorted(listed(tmp_path))))

    storage = MirrorStorage(tmp_path, sync=sync)
    storage.store(*part("receipt.json", b"{}"))
    assert storage.complete(RunFile(name="receipt.json", size=2, version=version(b"{}"))) == ""
    assert synced == [(".receipt.json.partial", [".receipt.json.partial"]), (tmp_path.name, ["receipt.json"])]


def test_a_file_that_the_disk_does_not_keep_does_not_get_its_name(tmp_path: Path) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    storage = MirrorStorage(tmp_path, sync=fail)
    (tmp_path / "receipt.json").write_bytes(b"[]")
    storage.store(*part("receipt.json", b"{}"))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        storage.complete(RunFile(name="receipt.json", size=2, version=version(b"{}")))
    assert (tmp_path / "receipt.json").read_bytes() == b"[]"


def test_a_long_file_is_known_by_its_length(tmp_path: Path) -> None:
    for size in (MOST_DIGESTED, MOST_DIGESTED + 1):
        (tmp_path / "data.npz").write_bytes(bytes(size))
        fault = MirrorStorage(tmp_path).fault_in("data.npz", "1-2-3")
        assert bool(fault) is (size == MOST_DIGESTED)
    assert MirrorStorage(tmp_path).fault_in("receipt.json", "1") == "it is not there"


def test_removing_and_cutting_what_is_not_there_is_nothing(tmp_path: Path) -> None:
    storage = MirrorStorage(tmp_path)
    (tmp_path / "ledger.jsonl").write_bytes(b"one\ntwo\n")
    (tmp_path / "receipt.json").write_bytes(b"{}")
    storage.cut("ledger.jsonl", 4)
    storage.cut("metrics.jsonl", 4)
    storage.remove(("result.json", "receipt.json"))
    assert listed(tmp_path) == {"ledger.jsonl": b"one\n"}


def record(**files: tuple[str, ...]) -> MirrorRecord:
    offer = RunFiles(
        term=TERM, run="r", step=3, steps=9, files=[], kept={}, electors=[], standbys=(), options=RunOptions()
    )
    named = {f"{name}.json": versions for name, versions in files.items()}
    return MirrorRecord(lines={"ledger.jsonl": 4}, files=named, offer=offer)


def version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("text", [None, b"{", b"{}"])
def test_without_a_record_a_standby_begins_with_nothing(tmp_path: Path, text: bytes | None) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"one\n")
    if text is not None:
        (tmp_path / MIRROR).write_bytes(text)
    assert MirrorStorage(tmp_path).restore() == Mirror()


def test_what_was_written_down_is_found_again_and_what_was_not_done_is_done(tmp_path: Path) -> None:
    storage, versions = MirrorStorage(tmp_path), (version(b"old"), version(b"new"))
    storage.keep(record(receipt=versions, result=versions, terms=versions))
    (tmp_path / "ledger.jsonl").write_bytes(b"one\ntwo\n")
    (tmp_path / "checkpoints" / "kept").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000003.safetensors").write_bytes(b"x")
    for name, data in (("receipt", b"old"), ("result", b"new"), ("terms", b"other")):
        (tmp_path / f"{name}.json").write_bytes(data)
    mirror = storage.restore()
    assert (mirror.term, mirror.lines) == (TERM, {"ledger.jsonl": 4})
    assert mirror.files == {"receipt.json": versions[0], "result.json": versions[1]}
    assert not mirror.has_been_whole
    assert (tmp_path / "ledger.jsonl").read_bytes() == b"one\n"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["kept"]
    (tmp_path / "terms.json").write_bytes(b"old")
    assert storage.restore().has_been_whole


@pytest.mark.parametrize("lines", [None, b"one"])
def test_lines_that_are_missing_are_not_led_from(tmp_path: Path, lines: bytes | None) -> None:
    """Where the power failed, the record may be on the disk and the end of the lines not."""
    storage = MirrorStorage(tmp_path)
    storage.keep(record())
    if lines is not None:
        (tmp_path / "ledger.jsonl").write_bytes(lines)
    mirror = storage.restore()
    assert (mirror.lines, mirror.has_been_whole) == ({}, False)
    assert (tmp_path / "ledger.jsonl").exists() is (lines is not None)
    assert lines is None or (tmp_path / "ledger.jsonl").read_bytes() == lines


def test_a_mirror_is_concluded_without_what_is_not_known_to_be_right(tmp_path: Path) -> None:
    storage = MirrorStorage(tmp_path)
    storage.keep(record())
    storage.store(*part("receipt.json", b"{"))
    storage.store(*part("checkpoints/step-00000003.safetensors", b"{"))
    (tmp_path / "ledger.jsonl").write_bytes(b"one\ntwo\n")
    storage.discard_partial()
    assert sorted(listed(tmp_path)) == ["ledger.jsonl", MIRROR]
    storage.store(*part("receipt.json", b"{"))
    storage.conclude({"ledger.jsonl": 4, "metrics.jsonl": 3})
    assert listed(tmp_path) == {"ledger.jsonl": b"one\n"}
    storage.conclude({"ledger.jsonl": 4})

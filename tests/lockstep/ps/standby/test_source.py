"""What a server shows of the folder of its run: what a run resumes from, in whole lines, and by its version."""

import hashlib
import os
from pathlib import Path

import pytest

from lockstep.common.errors import KeyFileError
from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.standby_messages import PART_BYTES, FilePart, FilePartRequest, RunFile
from lockstep.ps.standby.source import ALLOWED, MOST_DIGESTED, MirrorSource
from tests.lockstep.ps.standby.folders import MirroredFolder

TERM = Term(run="r", number=4, server="s")
LINES = b'{"kind":"begun"}\n{"kind":"step"}\n'


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> MirroredFolder:
    made = MirroredFolder(tmp_path)
    made.write("ledger.jsonl", LINES)
    return made


def shown(source: MirrorSource, name: str, version: str = "", start: int = 0) -> tuple[FilePart, bytes] | None:
    """Return a part of a file, and the bytes of its array."""
    found = source.part(FilePartRequest(name=name, version=version, start=start), TERM)
    return None if found is None else (found[0], found[1].tobytes())


def test_files_are_shown_in_the_order_in_which_a_run_can_be_led_from_them(folder: MirroredFolder) -> None:
    kept = ["job.toml", "terms.json", "receipt.json", "convictions.jsonl", "initial.safetensors", "data.npz"]
    for name in (*kept, "result.json", "weights.safetensors", "weights-ema.safetensors", "model/b.py", "model/a/c.py"):
        folder.write(name, name.encode())
    for name in ("server.log", "plot.png", "model/.git/head", "model/.hidden", "checkpoints/other"):
        folder.write(name, b"x")
    for step in (6, 3):
        folder.checkpoint(step, f"{step}" * 64)
    lines = [RunFile(name="metrics.jsonl", size=0), RunFile(name="ledger.jsonl", size=len(LINES))]
    names = [*kept, "weights.safetensors", "weights-ema.safetensors", "model/a/c.py", "model/b.py"]
    files = [RunFile(name=name, size=len(name), version=sha256(name.encode())) for name in names]
    checkpoints = [
        RunFile(name=f"checkpoints/step-0000000{step}.safetensors", size=102, version=f"{step}" * 64) for step in (3, 6)
    ]
    # Who has the result has all.
    result = RunFile(name="result.json", size=11, version=sha256(b"result.json"))
    assert folder.source.files() == [*lines, *files, *checkpoints, result]
    assert folder.source.files() == [*lines, *files, *checkpoints, result]


def test_a_checkpoint_without_a_seal_and_a_file_that_goes_are_not_shown(folder: MirroredFolder) -> None:
    folder.write("receipt.json", b"{}")
    folder.write("checkpoints/step-00000003.safetensors", b"torn")
    names = [file.name for file in folder.source.files()]
    assert names == ["metrics.jsonl", "ledger.jsonl", "receipt.json"]
    (folder.here / "receipt.json").unlink()
    os.mkfifo(folder.here / "receipt.json")
    assert [file.name for file in folder.source.files()] == names[:2]


def test_a_file_has_another_version_once_it_is_another(folder: MirroredFolder) -> None:
    folder.write("receipt.json", b"{}")
    before = folder.source.files()[-1]
    folder.write("new.json", b"[]")
    os.replace(folder.here / "new.json", folder.here / "receipt.json")
    after = folder.source.files()[-1]
    assert (before.version, after.version) == (sha256(b"{}"), sha256(b"[]"))
    assert shown(folder.source, "receipt.json", before.version) is None
    assert shown(folder.source, "receipt.json", after.version) is not None


def test_the_version_of_a_long_file_is_its_identity(folder: MirroredFolder) -> None:
    for size in (MOST_DIGESTED, MOST_DIGESTED + 1):
        folder.write("data.npz", bytes(size))
        found = (folder.here / "data.npz").stat()
        identity = f"{found.st_ino}-{found.st_mtime_ns}-{size}"
        expected = sha256(bytes(size)) if size == MOST_DIGESTED else identity
        assert folder.source.files()[-1] == RunFile(name="data.npz", size=size, version=expected)


def test_a_version_is_taken_once_of_what_is_as_it_was(folder: MirroredFolder) -> None:
    folder.write("receipt.json", b"{}")
    path = folder.here / "receipt.json"
    found = path.stat()
    before = folder.source.files()[-1]
    # Nobody reads it again that has the same time, length and place.
    path.write_bytes(b"[]")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert folder.source.files()[-1] == before
    # Checkpoints come and go: what is known of them goes with them.
    checkpoint = folder.checkpoint(3, "3" * 64)
    folder.source.files()
    checkpoint.unlink()
    folder.source.files()
    assert list(folder.source._versions) == ["receipt.json"]


def test_a_part_has_the_digest_of_its_bytes_and_whole_values(folder: MirroredFolder) -> None:
    data = bytes(range(250)) * (PART_BYTES // 250 + 1)
    folder.write("data.npz", data)
    version = sha256(data)

    def part(start: int, piece: bytes) -> tuple[FilePart, bytes]:
        told = FilePart(name="data.npz", version=version, start=start, size=len(piece), digest=sha256(piece), term=TERM)
        return told, piece + bytes(-len(piece) % 4)

    assert shown(folder.source, "data.npz", version) == part(0, data[:PART_BYTES])
    assert shown(folder.source, "data.npz", version, 3) == part(3, data[3 : PART_BYTES + 3])
    last = len(data) - 5
    assert shown(folder.source, "data.npz", version, last) == part(last, data[-5:])
    assert shown(folder.source, "data.npz", version, len(data)) == part(len(data), b"")


def test_of_lines_whole_ones_are_shown(folder: MirroredFolder) -> None:
    folder.write("ledger.jsonl", LINES + b'{"kind":"st')
    found = shown(folder.source, "ledger.jsonl", start=5)
    assert found is not None
    assert (found[0].start, found[0].size, found[1][: found[0].size]) == (5, len(LINES) - 5, LINES[5:])
    half = shown(folder.source, "ledger.jsonl", start=len(LINES))
    assert half is not None
    assert (half[0].size, half[1]) == (0, b"")
    # There are none yet.
    assert shown(folder.source, "metrics.jsonl") is None


def test_who_is_admitted_is_shown_as_a_file_of_keys_has_it(folder: MirroredFolder) -> None:
    source = folder.source
    assert ALLOWED not in [file.name for file in source.files()]
    assert shown(source, ALLOWED, "x") is None
    source.allowed = lambda: {"key-1": "worker-1", "key-2": "worker-2"}
    source.signers = lambda: {"worker-2": "signer"}
    text = b"key-1 worker-1\nkey-2 worker-2 signer\n"
    assert source.files()[2] == RunFile(name=ALLOWED, size=len(text), version=sha256(text))
    found = shown(source, ALLOWED, sha256(text), 6)
    assert found is not None
    assert (found[0].start, found[0].size, found[1][: len(text) - 6]) == (6, len(text) - 6, text[6:])
    assert shown(source, ALLOWED, sha256(b"other")) is None


def test_more_keys_than_one_part_holds_come_in_several(folder: MirroredFolder) -> None:
    allowed = {f"{number:060}": "worker" for number in range(4000)}
    folder.source.allowed = lambda: allowed
    text = "".join(f"{key} worker\n" for key in allowed).encode()
    assert len(text) > PART_BYTES
    found = shown(folder.source, ALLOWED, sha256(text))
    assert found is not None
    assert found[1] == text[:PART_BYTES]


def test_keys_that_cannot_be_read_are_left_out(folder: MirroredFolder) -> None:
    def unreadable() -> dict[str, str]:
        raise KeyFileError("cannot be read")

    folder.source.allowed = unreadable
    assert ALLOWED not in [file.name for file in folder.source.files()]

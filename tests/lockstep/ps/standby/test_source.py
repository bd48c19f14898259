"""What a server shows of the folder of its run: the files of its last checkpoint, each with its digest."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep.common.errors import KeyFileError, RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.standby_messages import PART_BYTES, FilePart, FilePartRequest, RunFile, StandbyMessage
from lockstep.ps.standby.source import ALLOWED, MOST_KEPT, MOST_READ, FileSet, MirrorSource
from tests.lockstep.ps.standby.folders import MirroredFolder, sha256

LINES = b'{"kind":"begun"}\n{"kind":"step"}\n'
BEGUN = ["job.toml", "terms.json"]


@pytest.fixture
def folder(tmp_path: Path) -> MirroredFolder:
    made = MirroredFolder(tmp_path)
    made.write("ledger.jsonl", LINES + b'{"kind":"st')
    return made


def names(shown: FileSet) -> list[str]:
    return [file.name for file in shown.files]


def part(source: MirrorSource, name: str, digest: str, start: int = 0) -> tuple[FilePart, bytes] | None:
    """Return a part of a file, and the bytes of its array."""
    found = source.part(FilePartRequest(name=name, digest=digest, start=start))
    return None if found is None else (found[0], found[1].tobytes())


def digest_of(source: MirrorSource, name: str) -> str:
    return next(file.digest for file in source.files().files if file.name == name)


def test_without_a_checkpoint_no_lines_are_shown(folder: MirroredFolder) -> None:
    folder.write("model/a/c.py", b"x = 1\n")
    for name in ("server.log", "plot.png", "model/.git/head", "model/.hidden", "checkpoints/other", "result.json"):
        folder.write(name, b"x")
    assert (folder.source.files().step, names(folder.source.files())) == (0, [*BEGUN, "model/a/c.py"])


def test_a_checkpoint_is_shown_with_the_lines_before_it(folder: MirroredFolder) -> None:
    folder.write("metrics.jsonl", b"{}\n")
    three, six = folder.checkpoint(3), folder.checkpoint(6, lines=(3, 17))
    step, files = folder.source.files()
    assert step == 6
    assert files[:2] == (
        RunFile(name="metrics.jsonl", size=3, digest=sha256(b"{}\n")),
        RunFile(name="ledger.jsonl", size=17, digest=sha256(LINES[:17])),
    )
    assert [(file.name, file.size) for file in files[-2:]] == [
        (f"checkpoints/{path.name}", path.stat().st_size) for path in (three, six)
    ]


def test_of_a_run_that_is_over_all_is_shown(folder: MirroredFolder) -> None:
    folder.checkpoint(3, lines=(0, 17))
    folder.write("ledger.jsonl", LINES)
    for name in ("result.json", "weights.safetensors", "weights-ema.safetensors"):
        folder.write(name, name.encode())
    shown = folder.source.files(is_over=True)
    assert {"result.json", "weights.safetensors", "weights-ema.safetensors"} <= {*names(shown)}
    assert RunFile(name="ledger.jsonl", size=len(LINES), digest=sha256(LINES)) in shown.files


def test_a_checkpoint_without_a_seal_is_not_shown(folder: MirroredFolder) -> None:
    folder.write("checkpoints/step-00000003.safetensors", b"torn")
    os.mkfifo(folder.here / "receipt.json")
    assert (folder.source.files().step, names(folder.source.files())) == (0, BEGUN)


def test_a_checkpoint_whose_lines_are_not_there_is_not_shown(folder: MirroredFolder) -> None:
    folder.checkpoint(3, lines=(0, 17))
    shown = folder.source.files()
    folder.checkpoint(6, lines=(0, 1000))
    assert folder.source.files() == shown


def gone(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here)


def without_its_job(folder: MirroredFolder) -> None:
    (folder.here / "job.toml").unlink()
    folder.checkpoint(6, lines=(0, 17))


def without_its_checkpoint(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here / "checkpoints")


@pytest.mark.parametrize("happens", [gone, without_its_job, without_its_checkpoint])
def test_a_folder_that_lacks_what_it_had_is_shown_as_it_was(
    folder: MirroredFolder, happens: Callable[[MirroredFolder], None]
) -> None:
    folder.checkpoint(3, lines=(0, 17))
    shown = folder.source.files()
    assert not folder.source.is_damaged
    happens(folder)
    assert folder.source.files() == shown
    assert folder.source.is_damaged
    # What is short comes all the same.
    assert part(folder.source, "terms.json", sha256(b"terms.json")) is not None


def test_a_file_that_is_replaced_has_another_digest(folder: MirroredFolder) -> None:
    folder.write("receipt.json", b"{}")
    before = digest_of(folder.source, "receipt.json")
    folder.write("new.json", b"[]")
    os.replace(folder.here / "new.json", folder.here / "receipt.json")
    # Until another set is shown, the content before comes.
    assert part(folder.source, "receipt.json", before) is not None
    assert digest_of(folder.source, "receipt.json") == sha256(b"[]")
    assert part(folder.source, "receipt.json", before) is None


def test_parts_of_a_checkpoint_are_those_of_one_file(folder: MirroredFolder) -> None:
    name = f"checkpoints/{folder.checkpoint(3).name}"
    before = digest_of(folder.source, name)
    assert part(folder.source, name, before) is not None
    folder.checkpoint(3, seal=sha256(b"after the evaluation"))
    # It has the same length, and parts of both would be taken for a damaged one.
    assert part(folder.source, name, before, 8) is None
    assert part(folder.source, name, digest_of(folder.source, name), 8) is not None


def test_digests_of_long_files_are_found_a_little_at_a_time(folder: MirroredFolder) -> None:
    with (folder.here / "data.npz").open("wb") as file:
        file.truncate(3 * MOST_READ)
    folder.write("result.json", b"{}")
    assert [folder.source.files().files == () for _ in range(3)] == [True, True, False]


def test_lines_are_read_once(folder: MirroredFolder) -> None:
    folder.checkpoint(3, lines=(0, 17))
    folder.source.files()
    with (folder.here / "ledger.jsonl").open("r+b") as file:
        file.write(b"[")  # nothing reads it again
    folder.checkpoint(6, lines=(0, len(LINES)))
    assert digest_of(folder.source, "ledger.jsonl") == sha256(LINES)


@pytest.mark.parametrize("name", ["data.npz", "initial.safetensors"])
def test_a_part_has_whole_values(folder: MirroredFolder, name: str) -> None:
    data = bytes(range(250)) * (MOST_KEPT // 250 + 1) if name == "data.npz" else bytes(range(250)) * 1100
    folder.write(name, data)
    digest = digest_of(folder.source, name)

    def expected(start: int, piece: bytes) -> tuple[FilePart, bytes]:
        return FilePart(name=name, digest=digest, start=start, size=len(piece)), piece + bytes(-len(piece) % 4)

    last = len(data) - 5
    assert part(folder.source, name, digest) == expected(0, data[:PART_BYTES])
    assert part(folder.source, name, digest, 3) == expected(3, data[3 : PART_BYTES + 3])
    assert part(folder.source, name, digest, last) == expected(last, data[-5:])
    assert part(folder.source, name, digest, len(data)) == expected(len(data), b"")
    assert part(folder.source, name, sha256(b"other")) is None


def test_of_lines_those_before_the_checkpoint_come(folder: MirroredFolder) -> None:
    folder.checkpoint(3, lines=(0, 17))
    found = part(folder.source, "ledger.jsonl", digest_of(folder.source, "ledger.jsonl"), 5)
    assert found is not None
    assert found[1][: found[0].size] == LINES[5:17]
    os.truncate(folder.here / "ledger.jsonl", 10)
    assert part(folder.source, "ledger.jsonl", digest_of(folder.source, "ledger.jsonl")) is None


def test_a_server_shows_nothing_but_what_it_offers(folder: MirroredFolder) -> None:
    folder.write("server.log", b"x")
    folder.source.files()
    for name in ("server.log", "model", "checkpoints/other"):
        assert part(folder.source, name, sha256(b"x")) is None
    for name in ("../secret", "/etc/passwd", "model/../../secret", "model/.hidden", "model//x"):
        with pytest.raises(RemoteProtocolError):
            decode(encode(FilePartRequest(name=name, digest=sha256(b"x"), start=0)), StandbyMessage)


def test_who_is_admitted_is_shown_as_a_file_of_keys_has_it(folder: MirroredFolder) -> None:
    source = folder.source
    assert ALLOWED not in names(source.files())
    source.allowed = lambda: {"key-1": "worker-1", "key-2": "worker-2"}
    text = b"key-1 worker-1\nkey-2 worker-2\n"
    shown = source.files()
    assert shown.files[0] == RunFile(name=ALLOWED, size=len(text), digest=sha256(text))
    found = part(source, ALLOWED, sha256(text), 6)
    assert found is not None
    assert (found[0].start, found[0].size, found[1][: len(text) - 6]) == (6, len(text) - 6, text[6:])

    def unreadable() -> dict[str, str]:
        raise KeyFileError("cannot be read")

    # Its authenticator reports that: standbys keep what they have of it.
    source.allowed = unreadable
    assert source.files() == shown

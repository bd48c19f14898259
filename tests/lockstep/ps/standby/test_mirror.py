"""A mirror has all files of one checkpoint, and exchanges them for those of a later one as a whole."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.protocol.messages import NO_TERM, Term
from lockstep.common.protocol.standby_messages import PART_BYTES, FilePart, RunFile
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.auth.keys import AllowList
from lockstep.ps.standby.mirror import CONTENTS, MIRROR, Mirror, fault_in
from lockstep.ps.standby.source import ALLOWED
from tests.lockstep.ps.standby.folders import TERM, MirroredFolder, files_in

LINES, MORE = b'{"kind":"begun"}\n{"kind":"step"}\n', b'{"kind":"step"}\n'
NEXT = Term(run="r", number=5, server="t")


@pytest.fixture
def folder(tmp_path: Path) -> MirroredFolder:
    made = MirroredFolder(tmp_path)
    for name in ("receipt.json", "convictions.jsonl", "initial.safetensors", "model/net/parts.py"):
        made.write(name, name.encode())
    made.write("ledger.jsonl", LINES + MORE)
    made.write("server.log", b"words\n")
    made.checkpoint(3, lines=(0, len(LINES)))
    return made


def test_a_mirror_has_the_files_of_the_last_checkpoint_and_the_lines_before_it(folder: MirroredFolder) -> None:
    folder.mirror_once()
    expected = {**files_in(folder.here), "ledger.jsonl": LINES}
    del expected["server.log"]
    assert folder.mirrored() == expected
    assert (folder.mirror.step, folder.mirror.term, folder.mirror.coming) == (3, TERM, None)


def test_nothing_is_asked_for_that_is_here(folder: MirroredFolder) -> None:
    folder.mirror_once()
    folder.asked.clear()
    written = (folder.there / MIRROR).stat().st_ino
    folder.mirror_once(offer=msgspec.structs.replace(folder.offer(), electors=[1]))
    assert (folder.asked, (folder.there / MIRROR).stat().st_ino) == ([], written)
    assert folder.mirror.held is not None
    assert folder.mirror.held.electors == [1]
    folder.write("ledger.jsonl", LINES + 3 * MORE)
    folder.checkpoint(6, lines=(0, len(LINES + 2 * MORE)))
    folder.mirror_once()
    assert folder.asked == ["ledger.jsonl", "checkpoints/step-00000006.safetensors"]
    assert folder.mirrored()["ledger.jsonl"] == LINES + 2 * MORE


@pytest.mark.parametrize("is_here", [True, False])
def test_files_of_a_folder_that_was_deleted_in_part_come_again(folder: MirroredFolder, *, is_here: bool) -> None:
    folder.mirror_once()
    expected = folder.mirrored()
    # Something was written into the folder while it was deleted.
    shutil.rmtree(folder.there / CONTENTS)
    if not is_here:
        (folder.there / MIRROR).unlink()
    folder.mirror_once()
    assert folder.mirrored() == expected
    assert (folder.mirror.step, folder.mirror.is_whole) == (3, True)
    folder.mirror.conclude()
    assert folder.mirrored() == expected


def test_two_files_with_one_content_come_once(folder: MirroredFolder) -> None:
    folder.write("model/net/other.py", b"model/net/parts.py")
    folder.mirror_once()
    assert len([name for name in folder.asked if name.startswith("model/")]) == 1
    assert folder.mirrored()["model/net/other.py"] == folder.mirrored()["model/net/parts.py"]


def test_a_file_of_several_parts_comes_whole(folder: MirroredFolder) -> None:
    data = np.random.default_rng(1).bytes(2 * PART_BYTES + 7)
    folder.write("data.npz", data)

    def two_thirds(descriptor: int, data: bytes, place: int) -> int:
        return os.pwrite(descriptor, data[: len(data) * 2 // 3 + 1], place)

    folder.mirror.write = two_thirds
    folder.mirror_once()
    assert (folder.there / "data.npz").read_bytes() == data
    assert folder.asked.count("data.npz") == 3


def flip(part: FilePart, data: bytes) -> bytes:
    """Flip a bit of each part."""
    return bytes([data[0] ^ 1]) + data[1:]


def test_a_flipped_bit_is_found_and_counts_for_nothing(folder: MirroredFolder) -> None:
    folder.mirror_once(flip)
    assert (folder.mirror.held, folder.mirrored(), len(folder.faults)) == (None, {}, 1)
    assert "is not as the server described it (its SHA-256 is " in folder.faults[0]
    folder.mirror_once()
    assert folder.mirror.step == 3


def test_a_checkpoint_that_is_damaged_at_the_server_replaces_nothing(folder: MirroredFolder) -> None:
    folder.mirror_once()
    before = folder.mirrored()
    folder.checkpoint(6, seal="f" * 64)
    folder.mirror_once()
    assert [fault.partition(" is not ")[0] for fault in folder.faults] == ["'checkpoints/step-00000006.safetensors'"]
    assert folder.mirrored() == before
    folder.checkpoint(6)
    folder.mirror_once()
    assert folder.mirror.step == 6


def test_lines_that_are_not_those_of_the_mirror_come_from_the_beginning(folder: MirroredFolder) -> None:
    folder.mirror_once()
    folder.source.__init__(folder.here)  # type: ignore[misc]  # another server
    folder.write("ledger.jsonl", b"x" * 50)
    folder.checkpoint(6, lines=(0, 50))
    folder.mirror_once(offer=folder.offer(NEXT))
    assert len(folder.faults) == 1
    folder.mirror_once(offer=folder.offer(NEXT))
    assert (folder.mirrored()["ledger.jsonl"], folder.mirror.term) == (b"x" * 50, NEXT)


def deleted(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here)


def emptied_but_for_what_is_written_again(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here)
    folder.write("receipt.json", b"{}")
    folder.checkpoint(6)


def without_checkpoints(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here / "checkpoints")


def of_a_server_that_resumed_without_checkpoints(folder: MirroredFolder) -> None:
    shutil.rmtree(folder.here / "checkpoints")
    folder.write("terms.json", b"again")
    folder.source.__init__(folder.here)  # type: ignore[misc]


@pytest.mark.parametrize(
    "happens",
    [
        deleted,
        emptied_but_for_what_is_written_again,
        without_checkpoints,
        of_a_server_that_resumed_without_checkpoints,
    ],
)
def test_a_server_whose_folder_is_not_whole_takes_nothing_from_a_mirror(
    folder: MirroredFolder, happens: Callable[[MirroredFolder], None]
) -> None:
    folder.mirror_once()
    before = folder.mirrored()
    happens(folder)
    folder.mirror_once(offer=folder.offer(NEXT))
    assert folder.mirrored() == before
    assert Mirror.restored(folder.there).step == 3


def test_a_mirror_whose_folder_was_deleted_has_nothing_and_is_filled_again(folder: MirroredFolder) -> None:
    folder.mirror_once()
    before = folder.mirrored()
    shutil.rmtree(folder.there)
    folder.mirror.begin(folder.offer())
    assert (folder.mirror.held, folder.mirror.step, folder.mirror.is_whole) == (None, 0, False)
    folder.mirror_once()
    assert folder.mirrored() == before


def test_another_run_takes_nothing_from_a_mirror_that_has_a_checkpoint(folder: MirroredFolder) -> None:
    other = Term(run="other", number=1, server="o")
    folder.mirror_once()
    assert "another run: the checkpoint of step 3 of run run stays" in folder.mirror.obstacle(folder.offer(other))
    fresh = Mirror(folder.there)
    assert fresh.obstacle(folder.offer(other)) == ""


def test_a_run_that_goes_back_after_a_conviction_takes_what_is_in_doubt(folder: MirroredFolder) -> None:
    folder.checkpoint(6)
    folder.mirror_once()
    folder.source.__init__(folder.here)  # type: ignore[misc]
    (folder.here / "checkpoints" / "step-00000006.safetensors").unlink()
    assert "its checkpoint is of step 3: that of step 6 stays" in folder.mirror.obstacle(folder.offer(NEXT))
    folder.write("convictions.jsonl", b"worker-1 computes wrongly\n")
    folder.mirror_once(offer=folder.offer(NEXT))
    assert folder.mirror.step == 3
    assert sorted(path.name for path in (folder.there / "checkpoints").iterdir()) == ["step-00000003.safetensors"]


class KilledError(Exception):
    """The standby was killed."""


def test_a_standby_that_is_killed_has_one_set_or_the_other(tmp_path: Path) -> None:
    """Whatever it was about to do: the two sets never mix, and the run can be led from one of them."""
    killed_after, steps = 0, list[int]()
    while not steps or steps[-1] != 6 or killed_after < 3:
        (tmp_path / str(killed_after)).mkdir()
        folder = MirroredFolder(tmp_path / str(killed_after))
        folder.write("receipt.json", b"3")
        folder.write("ledger.jsonl", LINES)
        folder.checkpoint(3, lines=(0, len(LINES)))
        folder.mirror_once()
        first = folder.mirrored()
        folder.write("receipt.json", b"6")
        folder.write("ledger.jsonl", LINES + MORE)
        folder.checkpoint(6, lines=(0, len(LINES + MORE)))
        (folder.here / "checkpoints" / "step-00000003.safetensors").unlink()
        left = killed_after

        def sync(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        folder.mirror.sync = sync
        with suppress(KilledError):
            folder.mirror_once()
        folder.mirror = Mirror.restored(folder.there)
        steps.append(folder.mirror.step)
        assert folder.mirrored() == (first if folder.mirror.step == 3 else files_in(folder.here))
        folder.mirror_once()
        folder.mirror.conclude()
        assert files_in(folder.there) == files_in(folder.here)
        killed_after += 1
    assert steps == sorted(steps)
    assert steps[0] == 3


@pytest.mark.parametrize("text", [None, b"", b"{", b"{}"])
def test_without_a_record_a_standby_begins_with_nothing(tmp_path: Path, text: bytes | None) -> None:
    if text is not None:
        (tmp_path / MIRROR).write_bytes(text)
    mirror = Mirror.restored(tmp_path)
    assert (mirror.held, mirror.step, mirror.term) == (None, 0, NO_TERM)


def test_a_file_that_is_damaged_comes_again_before_the_run_is_led_from_here(folder: MirroredFolder) -> None:
    folder.mirror_once()
    (folder.there / "receipt.json").write_bytes(b"[]\n")
    folder.mirror = Mirror.restored(folder.there)
    assert folder.mirror.held is None
    folder.asked.clear()
    folder.mirror_once()
    assert (folder.mirror.step, folder.asked) == (3, ["receipt.json"])


def test_contents_that_are_gone_are_found_under_their_names(folder: MirroredFolder) -> None:
    folder.mirror_once()
    shutil.rmtree(folder.there / CONTENTS)  # as if it was killed while it took over
    folder.mirror = Mirror.restored(folder.there)
    folder.mirror.conclude()
    expected = {**files_in(folder.here), "ledger.jsonl": LINES}
    del expected["server.log"]
    assert files_in(folder.there) == expected


def test_a_mirror_that_is_led_from_is_a_folder_of_a_run_whose_lines_grow(folder: MirroredFolder) -> None:
    folder.mirror_once()
    folder.mirror.conclude()
    assert not (folder.there / MIRROR).exists()
    with (folder.there / "ledger.jsonl").open("ab") as file:
        file.write(MORE)
    assert files_in(folder.there) == {**folder.mirrored(), "ledger.jsonl": LINES + MORE}


def test_who_is_admitted_is_mirrored(folder: MirroredFolder) -> None:
    pair = new_pair()
    folder.source.allowed = lambda: {pair.public: "worker-1"}
    folder.mirror_once()
    listed = AllowList(folder.there / ALLOWED)
    assert listed() == {pair.public: "worker-1"}
    assert (folder.there / ALLOWED).stat().st_mode & 0o133 == 0


def test_a_full_disk_is_an_error_and_what_was_there_stays(folder: MirroredFolder) -> None:
    folder.mirror_once()
    before = folder.mirrored()

    def full(descriptor: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.mirror.write = full
    folder.checkpoint(6)
    with pytest.raises(OSError, match="No space"):
        folder.mirror_once()
    folder.mirror.give_up()
    assert (folder.mirrored(), folder.mirror.step) == (before, 3)
    folder.mirror.write = os.pwrite
    folder.mirror_once()
    assert folder.mirror.step == 6


def test_a_file_that_the_disk_does_not_keep_is_not_here(folder: MirroredFolder) -> None:
    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder.mirror.sync = failing
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        folder.mirror_once()
    assert Mirror.restored(folder.there).held is None


def test_a_link_is_not_followed(folder: MirroredFolder) -> None:
    (folder.root / "elsewhere").write_bytes(b"kept")
    folder.mirror.begin(folder.offer())
    (folder.there / CONTENTS / "coming").symlink_to(folder.root / "elsewhere")
    request = folder.mirror.request()
    assert request is not None
    part = FilePart(name=request.name, digest=request.digest, start=0, size=1)
    with pytest.raises(OSError, match="symbolic links"):
        folder.mirror.add(part, b"x")
    assert (folder.root / "elsewhere").read_bytes() == b"kept"


def test_what_is_missing_or_torn_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"torn")
    for name, fault in (("receipt.json", "its SHA-256 is "), ("checkpoints/step-00000003.safetensors", "has no seal")):
        file = RunFile(name=name, size=4, digest="0" * 64)
        assert fault in fault_in(tmp_path / "torn", file)
        assert fault_in(tmp_path / "gone", file) != ""

"""A mirror has what its server has, in an order in which it can be resumed from, and nothing that is not right."""

import errno
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import (
    PART_BYTES,
    FilePart,
    FilePartRequest,
    RunFile,
    RunFiles,
    StandbyMessage,
)
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.auth.keys import AllowList
from lockstep.ps.checkpoint.folder import DOUBTFUL, CheckpointFolder
from lockstep.ps.standby.mirror import (
    AskFor,
    CompleteFile,
    CutLines,
    KeepRecord,
    Mirror,
    MirrorEffect,
    MirrorRecord,
    RemoveFiles,
)
from lockstep.ps.standby.source import ALLOWED
from lockstep.ps.standby.storage import MIRROR, MirrorStorage
from tests.lockstep.ps.standby.folders import MirroredFolder

LINES = b'{"kind":"begun"}\n{"kind":"step"}\n'


def sealed(folder: MirroredFolder, step: int) -> Path:
    """Write a checkpoint whose seal is right."""
    path = folder.checkpoint(step, "0" * 64)
    seal = hashlib.sha256(path.read_bytes()).hexdigest()
    return folder.checkpoint(step, seal)


@pytest.fixture
def folder(tmp_path: Path) -> MirroredFolder:
    made = MirroredFolder(tmp_path)
    made.write("job.toml", b"model = 'linear'\n")
    made.write("receipt.json", b"{}\n")
    made.write("ledger.jsonl", LINES)
    made.write("model/net/parts.py", b"x = 1\n")
    made.write("convictions.jsonl", b"{}\n")
    made.write("initial.safetensors", b"weights")
    made.write("weights-ema.safetensors", b"weights")
    made.write("server.log", b"words\n")
    sealed(made, 3)
    return made


def test_a_mirror_has_all_but_logs(folder: MirroredFolder) -> None:
    folder.mirror_once()
    here = folder.files(folder.here)
    del here["server.log"]
    there = folder.files(folder.there)
    del there[MIRROR]
    assert there == here
    assert folder.mirror.is_whole
    # A checkpoint refers to lines, which have to be there before it.
    assert folder.asked.index("ledger.jsonl") < folder.asked.index("checkpoints/step-00000003.safetensors")


def test_a_checkpoint_in_doubt_takes_the_place_of_what_it_was(folder: MirroredFolder) -> None:
    folder.mirror_once()
    CheckpointFolder(folder.here / "checkpoints", print).set_aside(0, DOUBTFUL)
    folder.mirror_once()
    there = [path.name for path in (folder.there / "checkpoints").iterdir()]
    assert there == ["step-00000003.safetensors.doubtful"]
    assert CheckpointFolder(folder.there / "checkpoints", print).steps() == []


def test_who_is_admitted_comes_with_the_keys_of_signatures(folder: MirroredFolder) -> None:
    pair, signer = new_pair(), "ab" * 32
    folder.source.allowed = lambda: {pair.public: "worker-1"}
    folder.source.signers = lambda: {"worker-1": signer}
    folder.mirror_once()
    listed = AllowList(folder.there / ALLOWED)
    assert (listed(), listed.signers()) == ({pair.public: "worker-1"}, {"worker-1": signer})


def test_nothing_is_asked_for_twice(folder: MirroredFolder) -> None:
    folder.mirror_once()
    folder.asked.clear()
    folder.mirror_once()
    assert folder.asked == []


def test_only_whole_lines_come(folder: MirroredFolder) -> None:
    folder.write("ledger.jsonl", LINES + b'{"kind":"st')
    folder.mirror_once()
    assert (folder.there / "ledger.jsonl").read_bytes() == LINES
    assert not folder.mirror.is_whole
    folder.write("ledger.jsonl", LINES + b'{"kind":"step"}\n')
    folder.mirror_once()
    assert (folder.there / "ledger.jsonl").read_bytes() == LINES + b'{"kind":"step"}\n'


def test_a_file_of_several_parts_comes_whole(folder: MirroredFolder) -> None:
    data = np.random.default_rng(1).bytes(2 * PART_BYTES + 7)
    folder.write("data.npz", data)
    folder.mirror_once()
    assert (folder.there / "data.npz").read_bytes() == data
    assert folder.asked.count("data.npz") == 3


def flip(part: FilePart, data: Vector) -> Vector:
    """Flip a bit of each part."""
    changed = bytearray(data.tobytes())
    changed[0] ^= 1
    return np.frombuffer(bytes(changed), "<f4")


def test_a_flipped_bit_is_found_and_counts_for_nothing(folder: MirroredFolder) -> None:
    folder.mirror_once(flip)
    assert folder.faults == ["ledger.jsonl"]
    assert (folder.mirror.lines, folder.mirror.files) == ({}, {})
    folder.mirror_once()
    assert folder.mirror.is_whole


def test_a_checkpoint_that_is_damaged_at_the_server_does_not_replace_one_that_is_right(folder: MirroredFolder) -> None:
    folder.mirror_once()
    (folder.here / "checkpoints" / "step-00000003.safetensors").unlink()
    folder.checkpoint(6, "f" * 64)
    folder.mirror_once()
    assert [fault.partition(" is not ")[0] for fault in folder.faults] == ["'checkpoints/step-00000006.safetensors'"]
    there = sorted(path.name for path in (folder.there / "checkpoints").iterdir())
    assert there == ["step-00000003.safetensors"]
    sealed(folder, 6)
    folder.mirror_once()
    there = sorted(path.name for path in (folder.there / "checkpoints").iterdir())
    assert there == ["step-00000006.safetensors"]


def test_a_server_that_resumes_has_its_lines_replaced(folder: MirroredFolder) -> None:
    folder.mirror_once()
    kept = LINES.index(b"\n") + 1
    folder.again("b", kept)
    (folder.here / "checkpoints" / "step-00000003.safetensors").unlink()
    with (folder.here / "ledger.jsonl").open("ab") as file:
        file.write(b'{"kind":"begun","again":true}\n')
    folder.mirror_once()
    assert (folder.there / "ledger.jsonl").read_bytes() == (folder.here / "ledger.jsonl").read_bytes()
    assert list((folder.there / "checkpoints").iterdir()) == []


def resumed(folder: MirroredFolder) -> None:
    """Let another server resume the run before its checkpoint."""
    folder.again("b", LINES.index(b"\n") + 1)
    folder.write("receipt.json", b'{"again":true}\n')


def went_on(folder: MirroredFolder) -> None:
    """Let the same server lead the run."""


@pytest.mark.parametrize("happens", [resumed, went_on])
def test_a_mirror_that_could_be_led_from_still_can_when_its_standby_is_killed(
    tmp_path: Path, happens: Callable[[MirroredFolder], None]
) -> None:
    killed_after, is_all = 0, False
    while not is_all:
        (tmp_path / str(killed_after)).mkdir()
        folder = MirroredFolder(tmp_path / str(killed_after))
        folder.write("terms.json", b"1\n")
        folder.write("receipt.json", b"{}\n")
        folder.write("ledger.jsonl", LINES)
        old = sealed(folder, 3)
        folder.mirror_once()
        happens(folder)
        with (folder.here / "ledger.jsonl").open("ab") as file:
            file.write(b'{"kind":"more"}\n')
        folder.write("terms.json", b"2\n")
        sealed(folder, 6)
        old.unlink()
        is_all = folder.mirror_once(killed_after=killed_after)
        folder.mirror = folder.storage.restore()
        at = f"killed after {killed_after} effects"
        assert folder.mirror.has_been_whole, at
        # The new term is written down before anything of the old one goes.
        assert folder.mirror.term == folder.history.last or not killed_after, at
        # No checkpoint is left that refers to lines which are gone.
        left = {f"checkpoints/{path.name}" for path in (folder.there / "checkpoints").iterdir()}
        assert left == {name for name in folder.mirror.files if name.startswith("checkpoints/")}, at
        folder.mirror_once()
        assert folder.files(folder.there).items() >= folder.files(folder.here).items(), at
        killed_after += 1
    assert killed_after > 8


def test_what_is_damaged_is_not_led_from_when_the_standby_is_started_again(folder: MirroredFolder) -> None:
    folder.mirror_once()
    (folder.there / "receipt.json").write_bytes(b"[]\n")
    folder.mirror = folder.storage.restore()
    assert not folder.mirror.has_been_whole
    folder.mirror_once()
    assert folder.mirror.has_been_whole


def test_what_is_not_there_any_more_is_left_to_the_next_round(folder: MirroredFolder) -> None:
    offer = folder.offer()
    (folder.here / "receipt.json").unlink()
    folder.mirror_once(offer=offer)
    assert not folder.mirror.is_whole
    folder.mirror_once()
    assert folder.mirror.is_whole


def test_a_server_shows_nothing_but_what_it_offers(folder: MirroredFolder) -> None:
    (folder.root / "secret").write_bytes(b"x")
    term = folder.history.last
    for name in ("server.log", "model", "checkpoints/other"):
        assert folder.source.part(FilePartRequest(name=name, version="", start=0), term) is None
    for name in ("../secret", "/etc/passwd", "model/../../secret", "model/.hidden", "model//x"):
        frames = encode(FilePartRequest(name=name, version="", start=0))
        with pytest.raises(RemoteProtocolError):
            decode(frames, StandbyMessage)


def test_a_mirror_that_is_led_from_is_a_folder_of_a_run(folder: MirroredFolder) -> None:
    (folder.there / MIRROR).touch()
    folder.mirror_once()
    (folder.there / ".receipt.json.partial").write_bytes(b"{")
    with (folder.there / "ledger.jsonl").open("ab") as file:
        file.write(b"more than is known to be right")
    folder.storage.conclude(folder.mirror.lines)
    here = folder.files(folder.here)
    del here["server.log"]
    assert folder.files(folder.there) == here


def test_a_full_disk_is_an_error_and_what_was_there_stays(folder: MirroredFolder) -> None:
    folder.mirror_once()

    def full(descriptor: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    folder.storage = MirrorStorage(folder.there, full)
    sealed(folder, 6)
    with pytest.raises(OSError, match="the disk is full"):
        folder.mirror_once()
    assert "checkpoints/step-00000003.safetensors" in folder.files(folder.there)
    folder.mirror.give_up()
    folder.storage = MirrorStorage(folder.there)
    folder.mirror_once()
    assert folder.mirror.is_whole


def test_a_part_of_another_term_is_not_expected(folder: MirroredFolder) -> None:
    (ask, *_) = folder.mirror.begin_round(folder.offer())
    found = folder.source.part(ask.request, folder.again("b", 0))  # type: ignore[union-attr]
    assert found is None or not folder.mirror.expects(found[0])
    assert msgspec.structs.replace(folder.mirror.term, number=1) == folder.mirror.term


# What it asks for and writes down, without a file

TERM, NEXT = (Term(run="r", number=number, server="s") for number in (4, 5))
LEDGER = RunFile(name="ledger.jsonl", size=30)
RECEIPT = RunFile(name="receipt.json", size=4, version="1")
THREE, SIX = (RunFile(name=f"checkpoints/step-0000000{step}.safetensors", size=4, version="1") for step in (3, 6))


def offered(*files: RunFile, term: Term = TERM, kept: int = 0) -> RunFiles:
    kept_bytes = {LEDGER.name: kept}
    return RunFiles(
        term=term,
        run="r",
        step=3,
        steps=9,
        files=[*files],
        kept=kept_bytes,
        electors=[],
        standbys=(),
        options=RunOptions(),
    )


def asks(file: RunFile, start: int = 0) -> AskFor:
    return AskFor(request=FilePartRequest(name=file.name, version=file.version, start=start))


def comes(mirror: Mirror, file: RunFile, start: int = 0, size: int | None = None) -> list[MirrorEffect]:
    """Let a part of a file come that was asked for; return what follows."""
    size = file.size - start if size is None else size
    part = FilePart(name=file.name, version=file.version, start=start, size=size, digest="0" * 64, term=mirror.term)
    assert mirror.expects(part)
    for other in ({"name": "x"}, {"version": "x"}, {"start": start + 1}, {"term": Term(run="x")}):
        assert not mirror.expects(msgspec.structs.replace(part, **other))
    effects = mirror.on_stored(part)
    mirror.validate()
    return mirror.on_completed(file, is_intact=True) if effects == [CompleteFile(file=file)] else effects


def whole(*files: RunFile) -> Mirror:
    """Return a mirror that has these files."""
    mirror = Mirror()
    mirror.begin_round(offered(*files))
    for file in files:
        comes(mirror, file)
    assert mirror.is_whole
    return mirror


def kept(offer: RunFiles, files: Mapping[str, tuple[str, ...]], *, lines: int = 30) -> KeepRecord:
    return KeepRecord(record=MirrorRecord(lines={LEDGER.name: lines}, files=dict(files), offer=offer))


def test_what_is_here_is_written_down_once_all_of_it_is() -> None:
    mirror, offer = Mirror(), offered(LEDGER, RECEIPT)
    assert not mirror.is_whole
    assert mirror.begin_round(offer) == [asks(LEDGER)]
    assert comes(mirror, LEDGER, size=20) == [asks(LEDGER, 20)]
    assert comes(mirror, LEDGER, start=20) == [asks(RECEIPT)]
    assert comes(mirror, RECEIPT, size=3) == [asks(RECEIPT, 3)]
    assert not mirror.has_been_whole
    assert mirror.ask_again() == [asks(RECEIPT, 3)]
    assert comes(mirror, RECEIPT, start=3) == [kept(offer, {RECEIPT.name: ("1",)})]
    assert mirror.has_been_whole
    assert mirror.ask_again() == []
    # Nothing has changed since.
    assert mirror.begin_round(offer) == []


def test_lines_that_are_not_complete_yet_are_left_to_the_next_round() -> None:
    mirror = Mirror()
    mirror.begin_round(offered(LEDGER, RECEIPT))
    assert comes(mirror, LEDGER, size=20) == [asks(LEDGER, 20)]
    assert comes(mirror, LEDGER, start=20, size=0) == [asks(RECEIPT)]
    assert comes(mirror, RECEIPT) == []
    assert (mirror.is_whole, mirror.lines) == (False, {LEDGER.name: 20})
    assert mirror.begin_round(offered(LEDGER, RECEIPT)) == [asks(LEDGER, 20)]


def test_a_file_that_is_shorter_than_was_offered_is_checked_as_it_is() -> None:
    mirror = Mirror()
    mirror.begin_round(offered(RECEIPT))
    part = FilePart(name=RECEIPT.name, version="1", start=0, size=0, digest="0" * 64, term=TERM)
    assert mirror.on_stored(part) == [CompleteFile(file=RECEIPT)]
    assert mirror.on_completed(RECEIPT, is_intact=False) == []
    assert (mirror.is_whole, mirror.files, mirror.received) == (False, {}, 0)


def test_what_more_lines_came_of_the_same_term_is_written_down_afterwards() -> None:
    mirror, longer = whole(LEDGER, RECEIPT), msgspec.structs.replace(LEDGER, size=40)
    assert mirror.begin_round(offered(longer, RECEIPT)) == [asks(longer, 30)]
    offer = offered(longer, RECEIPT)
    assert comes(mirror, longer, start=30) == [kept(offer, {RECEIPT.name: ("1",)}, lines=40)]


def test_a_file_that_is_replaced_is_written_down_before_in_both_versions() -> None:
    mirror, second = whole(LEDGER, RECEIPT), msgspec.structs.replace(RECEIPT, version="2")
    offer = offered(LEDGER, second)
    assert mirror.begin_round(offer) == [kept(offer, {RECEIPT.name: ("1", "2")}), asks(second)]
    assert comes(mirror, second) == [kept(offer, {RECEIPT.name: ("2",)})]


def test_a_new_term_is_written_down_before_lines_are_cut_and_checkpoints_dropped_that_are_not_its_own() -> None:
    mirror = whole(LEDGER, RECEIPT, THREE, SIX)
    changed, offer = msgspec.structs.replace(SIX, version="2"), offered(LEDGER, RECEIPT, THREE, term=NEXT, kept=20)
    files = {RECEIPT.name: ("1",), THREE.name: ("1",)}
    assert mirror.begin_round(offer) == [
        kept(offer, files, lines=20),
        RemoveFiles(names=(SIX.name,)),
        CutLines(name=LEDGER.name, size=20),
        asks(LEDGER, 20),
    ]
    assert (mirror.term, mirror.has_been_whole) == (NEXT, True)
    assert comes(mirror, LEDGER, start=20) == [kept(offer, files)]
    # All is as before, in one more term: that is written down too.
    offer = offered(LEDGER, RECEIPT, THREE, term=msgspec.structs.replace(NEXT, number=6), kept=2**62)
    assert mirror.begin_round(offer) == [kept(offer, files)]
    # A checkpoint of the same name and another content is dropped as well.
    mirror = whole(LEDGER, SIX)
    effects = mirror.begin_round(offered(LEDGER, changed, term=NEXT))
    assert RemoveFiles(names=(SIX.name,)) in effects
    assert CutLines(name=LEDGER.name, size=0) in effects
    assert effects[-1] == asks(LEDGER, 0)
    # Lines of which nothing is known are cut to nothing.
    unknown = msgspec.structs.replace(offered(LEDGER, term=NEXT), kept={})
    assert CutLines(name=LEDGER.name, size=0) in whole(LEDGER).begin_round(unknown)


def test_a_mirror_that_never_had_all_writes_nothing_down_of_a_new_term() -> None:
    mirror = Mirror()
    mirror.begin_round(offered(LEDGER, RECEIPT))
    comes(mirror, LEDGER)
    effects = mirror.begin_round(offered(LEDGER, RECEIPT, term=NEXT))
    assert effects == [CutLines(name=LEDGER.name, size=0), asks(LEDGER)]


def test_what_the_server_has_removed_goes_at_the_end_of_a_round() -> None:
    mirror = whole(LEDGER, RECEIPT, THREE)
    offer = offered(LEDGER, SIX)
    assert mirror.begin_round(offer) == [asks(SIX)]
    removed = RemoveFiles(names=(RECEIPT.name, THREE.name))
    assert comes(mirror, SIX) == [kept(offer, {SIX.name: ("1",)}), removed]


def test_a_server_whose_folder_is_empty_takes_no_checkpoint_away() -> None:
    mirror, offer = whole(LEDGER, RECEIPT, THREE), offered(LEDGER)
    removed = RemoveFiles(names=(RECEIPT.name,))
    assert mirror.begin_round(offer) == [kept(offer, {THREE.name: ("1",)}), removed]


def test_a_round_that_is_given_up_begins_again_and_what_is_here_is_written_down_again() -> None:
    mirror, second = whole(LEDGER, RECEIPT), msgspec.structs.replace(RECEIPT, version="2", size=8)
    offer = offered(LEDGER, second)
    before = kept(offer, {RECEIPT.name: ("1", "2")})
    assert mirror.begin_round(offer) == [before, asks(second)]
    comes(mirror, second, size=4)
    mirror.give_up()
    mirror.validate()
    assert not mirror.is_whole
    assert mirror.begin_round(offer) == [before, asks(second)]
    mirror.begin_round(offer)
    assert mirror.received == 0


@pytest.mark.parametrize(
    ("lines", "files", "is_all"),
    [
        ({"ledger.jsonl"}, {"receipt.json": "1"}, True),
        ({"ledger.jsonl"}, {}, False),
        (set[str](), {"receipt.json": "1"}, False),
    ],
)
def test_what_was_written_down_is_led_from_if_all_of_it_is_still_here(
    lines: set[str], files: dict[str, str], is_all: bool
) -> None:
    record = kept(offered(LEDGER, RECEIPT), {RECEIPT.name: ("1", "2")}).record
    mirror = Mirror.of(record, lines, files)
    assert (mirror.term, mirror.offer, mirror.has_been_whole) == (TERM, record.offer, is_all)
    assert (mirror.lines, mirror.files) == (dict.fromkeys(lines, 30), files)

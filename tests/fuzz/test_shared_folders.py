"""Memory that a server offers: whatever it is called and whatever lies there, it is ours and whole, or refused."""

import contextlib
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.errors import SharingError
from lockstep.common.protocol.team_memory import WEIGHTS, weights_shape
from lockstep.common.transport.shared_memory.folder import NAME, SharedFolder, sweep
from lockstep.common.transport.shared_memory.segment import Shape
from tests.fuzz.bar import amounts, bear, examine
from tests.fuzz.mutation import damaged
from tests.fuzz.tape import Tape

SHAPE = Shape(2, 10)

#: What leads elsewhere, or nowhere.
ELSEWHERE = ("..", ".", "/", "//", "", "\0", "x" * 300, "~", "*", "\u202e", "\n", "lockstep-", "-0", "../" * 40, "/etc")


def odd_name(tape: Tape, right: str) -> str:
    if tape.happens():
        return damaged(tape, right.encode()).decode("utf-8", "replace")
    parts = [tape.choose((*ELSEWHERE, right, right[:-1], right.upper())) for _ in range(1 + tape.below(4))]
    return tape.choose(("/", "", "-")).join(parts)


@amounts("shared folders")
def test_names_that_a_server_makes_up(cases: int, folder: Path) -> None:
    offered = SharedFolder.create(folder)
    secret = folder / "secret"
    secret.mkdir(mode=0o700)
    (secret / WEIGHTS).write_bytes(bytes(SHAPE.total))

    def check(name: str) -> None:
        with contextlib.suppress(SharingError):
            joined = SharedFolder.join(folder, name)
            try:
                assert NAME.fullmatch(name)
                assert joined.path.parent == folder
                joined.attach(WEIGHTS, SHAPE)
            finally:
                joined.close()

    try:
        offered.make(WEIGHTS, SHAPE)
        examine(cases, lambda tape: odd_name(tape, offered.name), check)
    finally:
        offered.remove()


def test_what_lies_there_is_a_file_of_ours(folder: Path) -> None:
    offered = SharedFolder.create(folder)
    (folder / "file").write_bytes(bytes(SHAPE.total))
    try:
        for name, make in (
            ("link", lambda path: path.symlink_to(folder / "file")),
            ("pipe", lambda path: os.mkfifo(path, 0o600)),
            ("folder", lambda path: path.mkdir(mode=0o700)),
            ("short", lambda path: path.write_bytes(b"x")),
            ("open", lambda path: path.write_bytes(bytes(SHAPE.total))),
        ):
            make(offered.path / name)
        (offered.path / "open").chmod(0o644)
        (offered.path / "short").chmod(0o600)
        for name in ("link", "pipe", "folder", "short", "open", "absent", "../secret"):
            bear(partial(refused, offered, name))
    finally:
        (offered.path / "folder").rmdir()
        offered.remove()


def refused(offered: SharedFolder, name: str) -> None:
    with pytest.raises(SharingError):
        offered.attach(name, SHAPE)


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file away needs root")
def test_what_is_another_users_is_refused(folder: Path) -> None:
    offered = SharedFolder.create(folder)
    try:
        offered.make(WEIGHTS, SHAPE)
        os.chown(offered.path / WEIGHTS, 12_345, -1)
        refused(offered, WEIGHTS)
        os.chown(offered.path, 12_345, -1)
        with pytest.raises(SharingError, match="belongs to user 12345"):
            SharedFolder.join(folder, offered.name)
    finally:
        os.chown(offered.path, os.geteuid(), -1)
        offered.remove()


def test_a_link_called_like_a_folder_of_ours_is_not_followed(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "kept").write_bytes(b"kept")
    name = f"lockstep-{os.geteuid()}-1-{'0' * 16}"
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(SharingError):
        SharedFolder.join(folder, name)
    sweep(folder)
    assert (elsewhere / "kept").read_bytes() == b"kept"


def test_a_size_of_any_kind_is_a_size_or_refused(folder: Path) -> None:
    offered = SharedFolder.create(folder)
    try:
        offered.make(WEIGHTS, SHAPE)
        for size in (0, 1, 9, 11, 2**31, 2**60):
            with pytest.raises(SharingError):
                offered.attach(WEIGHTS, weights_shape(size) if size > 11 else Shape(3, size))
        first, _ = offered.attach(WEIGHTS, SHAPE).vectors
        np.testing.assert_array_equal(first, np.zeros(10, np.float32))
    finally:
        offered.remove()

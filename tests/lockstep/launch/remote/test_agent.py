"""What an attendant does on its machine, asked as an engine would ask it."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.child import HERE, USAGE
from lockstep.launch.remote.agent import LaunchAgent

#: Seconds within which a command ends that only says what is wrong.
SAID_S = 60.0


def last_look(attendant: LaunchAgent) -> tuple[int | None, str]:
    """Look until the process is gone; return its code and all its words."""
    deadline, told = SystemClock().now() + SAID_S, b""
    while SystemClock().now() < deadline:
        _, _, words, code = attendant.news(len(told))
        told += words
        if code is not None:
            return code, told.decode()
    return None, told.decode()


def own_folders() -> set[Path]:
    """Return the folders that attendants of this process have now."""
    return set(Path(tempfile.gettempdir()).glob(f"lockstep-{os.geteuid()}-{os.getpid()}-*"))


def test_without_a_process_it_holds_nothing_and_ends_well() -> None:
    attendant = LaunchAgent()
    assert attendant.about()["lockstep"]
    assert attendant.news(0)[2:] == (b"", USAGE)
    assert attendant.first_line() == ""
    attendant.end(0.0)


def test_a_command_finds_its_files_in_a_folder_of_its_own_that_goes_with_it(tmp_path: Path) -> None:
    attendant, before = LaunchAgent(), own_folders()
    words = ["server", "--job", f"{HERE}/job.toml", "--bind", "ipc://unused"]
    pid, host, _, _ = attendant.start(
        "the server", words, {"job.toml": "surprise = 1\n", "keys/a.key": "secret"}, str(tmp_path)
    )
    assert pid > 0
    assert host
    code, told = last_look(attendant)
    assert code == USAGE, told
    assert "surprise" in told
    (folder,) = own_folders() - before
    assert stat.S_IMODE((folder / "keys" / "a.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    assert attendant.news(len(told))[2:] == (b"", USAGE)
    attendant.end(0.0)
    assert own_folders() == before


def test_a_working_folder_that_is_not_there_is_told_by_a_look(tmp_path: Path) -> None:
    attendant = LaunchAgent()
    pid, host, words, code = attendant.start("a worker", ["worker"], {}, str(tmp_path / "elsewhere"))
    assert (pid, code) == (0, USAGE)
    assert attendant.news(0) == (pid, host, words, code)
    assert words.decode().startswith(f"error: {host}: no folder '{tmp_path}/elsewhere' here")
    attendant.end(0.0)


@pytest.mark.parametrize(
    ("written", "obstacle"),
    [
        ("nonce", ""),
        ("another", "has another folder of that name"),
        (None, "cannot read it (No such file or directory)"),
    ],
)
def test_a_folder_is_the_runs_where_it_holds_what_was_just_written(
    tmp_path: Path, written: str | None, obstacle: str
) -> None:
    if written is not None:
        (tmp_path / "check").write_text(written)
    assert LaunchAgent().obstacle(str(tmp_path), "check", "nonce") == obstacle

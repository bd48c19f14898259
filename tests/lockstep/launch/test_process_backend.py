"""Private folders: nobody else's, short enough for sockets, and gone with their process or soon after."""

import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from lockstep.launch.process_backend import FOLDER_LIMIT, own_folder, private_folder


def test_it_is_for_this_user_only_and_short() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(str(folder)) <= FOLDER_LIMIT
    folder.rmdir()


def test_that_of_a_process_that_is_gone_is_removed_by_the_next_and_no_other() -> None:
    temporary = Path(tempfile.gettempdir())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        living, strange = temporary / f"lockstep-of-{process.pid}-x", temporary / f"lockstep-of-x{process.pid}"
        for folder in (living, strange):
            folder.mkdir()
        first = own_folder()
        assert living.exists()
        process.communicate(b"\n")
    (living / "keys").mkdir()
    second = own_folder()
    assert not living.exists()
    assert first.exists()
    assert second.exists()
    assert strange.exists()
    for folder in (first, second, strange):
        folder.rmdir()

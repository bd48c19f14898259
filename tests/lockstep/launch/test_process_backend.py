"""Private folders: nobody else's, short enough for sockets, and gone in the end even if their makers were killed."""

import stat
from pathlib import Path

from lockstep.launch.process_backend import FOLDER_LIMIT, private_folder, remove_private


def test_it_is_for_this_user_only_and_short() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert len(str(folder.path)) <= FOLDER_LIMIT
    remove_private(folder)
    assert not folder.path.exists()


def test_whoever_ends_removes_what_a_killed_one_has_left_and_nothing_else(short_root: Path) -> None:
    mine, others, killed = (private_folder(short_root) for _ in range(3))
    (killed.path / "server.log").touch()
    killed.close()  # as the system does
    remove_private(mine)
    assert list(short_root.iterdir()) == [others.path]
    others.remove()

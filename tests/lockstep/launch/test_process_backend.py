"""Private folders: nobody else's, and short enough for sockets."""

import stat

from lockstep.launch.process_backend import FOLDER_LIMIT, private_folder


def test_it_is_for_this_user_only_and_short() -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(str(folder)) <= FOLDER_LIMIT
    folder.rmdir()

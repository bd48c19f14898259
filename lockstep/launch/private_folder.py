"""A folder for the sockets, keys and logs of a run's processes, open to this user only."""

import os
import re
import shutil
import tempfile
from pathlib import Path

#: Longest folder name below which a socket's path stays within the system's 107 bytes.
FOLDER_LIMIT = 80

#: How the folder of a process begins that may be killed at any time: with its number, so that others can tell.
_OWNED = re.compile(r"lockstep-of-([0-9]+)-")


def private_folder() -> Path:
    """Return a new folder."""
    return _made("lockstep-")


def own_folder() -> Path:
    """Return a new folder of this process, and remove those of processes that were killed."""
    folder = _made(f"lockstep-of-{os.getpid()}-")
    for path in folder.parent.glob("lockstep-of-*"):
        found = _OWNED.match(path.name)
        if found is not None and not _is_running(int(found[1])):
            # Another user's stays: we may not.
            shutil.rmtree(path, ignore_errors=True)
    return folder


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _made(prefix: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if len(str(folder).encode()) <= FOLDER_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))

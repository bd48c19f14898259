"""A folder for the sockets, keys and logs of a run's processes, open to this user only."""

import tempfile
from pathlib import Path

#: Longest folder name below which a socket's path stays within the system's 107 bytes.
FOLDER_LIMIT = 80


def private_folder() -> Path:
    """Return a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="lockstep-"))
    if len(str(folder).encode()) <= FOLDER_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="lockstep-", dir="/tmp"))

"""Memory for teams: a file on a disk would make tests wait for the disk now and then."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.common.transport.shared_memory.folder import shared_root


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return an empty folder whose files are memory, where there is such a folder."""
    with tempfile.TemporaryDirectory(prefix="lockstep-team-", dir=shared_root()) as folder:
        yield Path(folder)

"""What the rooms of this folder share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.transport.shared_folder import shared_root


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: where a disk is asked for a new file each time, ten thousand of them take a minute."""
    with tempfile.TemporaryDirectory(dir=shared_root(), prefix="lockstep-fuzz-") as name:
        yield Path(name)

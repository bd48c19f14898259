"""What the rooms of this folder share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.common.transport.shared_memory.folder import shared_root
from tests.fuzz.bar import BOOK


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory: where a disk is asked for a new file each time, ten thousand of them take a minute."""
    with tempfile.TemporaryDirectory(dir=shared_root(), prefix="lockstep-fuzz-") as name:
        yield Path(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Let a test's report say how many cases it looked at, where these are its `amounts`."""
    before = BOOK.cases
    yield
    if "cases" in getattr(item, "callspec", item).__dict__.get("params", ()):
        item.user_properties.append(("cases", BOOK.cases - before))

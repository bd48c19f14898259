"""Fixtures of the tests with real processes."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.launch.supervision.template import ProcessTemplate
from tests.lockstep.tiny_data import write_tiny
from tests.system.forking import forking
from tests.system.jobs import UNHURRIED
from tests.system.processes import Place


@pytest.fixture(scope="session")
def template() -> Iterator[ProcessTemplate]:
    """The process that those of the tests are forked from."""
    with forking() as template:
        yield template


@pytest.fixture
def place(tmp_path: Path, template: ProcessTemplate) -> Iterator[Place]:
    """A place for processes, with a small dataset and a model; nothing that ran there outlives the test."""
    write_tiny(tmp_path)
    (tmp_path / "unhurried.py").write_text(UNHURRIED)
    # Not below `tmp_path`, whose length leaves no room for the path of a socket.
    temporary = Path(tempfile.mkdtemp(prefix="lt-"))
    place = Place(tmp_path, temporary, template)
    try:
        yield place
    finally:
        place.clear()
        shutil.rmtree(temporary, ignore_errors=True)

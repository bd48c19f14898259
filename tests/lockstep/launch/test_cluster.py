"""What is made of a server's end: whether it was killed, failed, or found that its standby leads the run."""

from pathlib import Path

import pytest

from lockstep.launch.child import USAGE, ProcessLog
from lockstep.launch.cluster import found_its_heir, was_killed
from tests.lockstep.launch.processes import Pretended


def ended(folder: Path, code: int, text: str) -> Pretended:
    """Return a server that has ended with a code and these words."""
    log = ProcessLog.at_end_of(folder / "server.log")
    log.add(text.encode())
    return Pretended("the server", log, ended=code)


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [(-9, "", True), (1, "", True), (1, "error: the loss is not finite\n", False), (2, "", False)],
)
def test_a_server_was_killed_if_it_reports_nothing(tmp_path: Path, code: int, text: str, expected: bool) -> None:
    assert was_killed(ended(tmp_path, code, text)) == expected


@pytest.mark.parametrize(
    ("code", "is_second", "has_heir", "expected"),
    [
        (USAGE, True, True, True),
        # A job that cannot begin, or a folder that cannot be resumed.
        (USAGE, False, True, False),
        (USAGE, True, False, False),
        (1, True, True, False),
    ],
)
def test_a_server_that_is_started_again_may_find_its_standby_leading(
    tmp_path: Path, code: int, is_second: bool, has_heir: bool, expected: bool
) -> None:
    server = ended(tmp_path, code, "error: the run in 'run' goes on at tcp://127.0.0.1:5556, in term 2\n")
    assert found_its_heir(server, is_second=is_second, has_heir=has_heir) == expected

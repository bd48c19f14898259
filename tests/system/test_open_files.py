"""A process that may open too few files, or write too little into one, ends before it starts anything, in one line."""

import re

import pytest

from tests.system.jobs import BRIEF, FILES
from tests.system.processes import GONE_S, Place
from tests.system.test_sharing import folders

#: Enough for an interpreter, and too few for the sockets of a run.
FEW = 24


@pytest.mark.parametrize(
    "command",
    [
        ("train", *BRIEF, "--workers", "2", "--run-dir", "run"),
        ("server", *BRIEF, "--bind", "tcp://127.0.0.1:0", "--run-dir", "run"),
        ("shard", "tcp://127.0.0.1:1"),
        ("worker", "tcp://127.0.0.1:1", "--workers", "2"),
    ],
    ids=lambda command: command[0],
)
def test_too_few_files_are_reported_in_one_line_with_the_remedy(place: Place, command: tuple[str, ...]) -> None:
    process = place.start(*command, open_files=FEW)
    code, out, error = process.end()
    assert (code, out) == (2, "")
    expected = r"error: this process may open 24 files: expected at least \d+; run `ulimit -n 1024`\n"
    assert re.fullmatch(expected, error)
    assert {path.name for path in place.folder.iterdir()} == FILES
    assert folders([process.popen.pid]) == []
    assert place.is_empty(GONE_S)


def test_a_run_of_two_workers_needs_64_files_at_most(place: Place) -> None:
    process = place.start("train", *BRIEF, "--workers", "2", "--run-dir", "run", open_files=64)
    assert process.end()[0::2] == (0, "")


@pytest.mark.parametrize(
    ("workers", "keep", "most", "is_refused"),
    [("0", "2", 40_000, True), ("1", "2", 40_000, True), ("0", "0", 40_000, False), ("0", "0", 20_000, True)],
)
def test_a_file_that_may_not_be_as_large_as_a_checkpoint_is_refused_before_the_run(
    place: Place, workers: str, keep: str, most: int, *, is_refused: bool
) -> None:
    momentum = ("--momentum", "0.9", "--set", f"checkpoint_keep={keep}")
    process = place.start("train", *BRIEF, *momentum, "--workers", workers, "--run-dir", "run", file_bytes=most)
    code, _, error = process.end()
    assert (code, bool(error)) == ((2, True) if is_refused else (0, False))
    if is_refused:
        # A weight has 4 bytes, and its momentum too.
        needed = 4 * 7850 * (1 if keep == "0" else 2)
        assert error == (
            f"error: this process may write {most:,} bytes into a file: expected at least {needed:,}, for the weights "
            "of the run and its checkpoints; run `ulimit -f unlimited`\n"
        )
        assert {path.name for path in place.folder.iterdir()} == FILES

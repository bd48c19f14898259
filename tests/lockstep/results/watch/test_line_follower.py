"""Lines of a file that grows, is cut, or goes away: each is returned once, and a cut is noticed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.results.watch.line_follower import LineFollower


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def test_only_whole_lines_are_returned_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    assert follower.read().data == b""
    append(path, b"one\ntw")
    assert follower.read().data == b"one\n"
    assert follower.read().data == b""
    append(path, b"o\nthree\n")
    assert follower.read().data == b"two\nthree\n"


@pytest.mark.parametrize("rest", [b"", b"other\n", b"another line, so that it is longer than before\n"])
def test_a_file_that_was_cut_is_read_again(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    path.write_bytes(b"one\ntwo\n")
    follower.read()
    path.write_bytes(b"one\n" + rest)
    found = follower.read()
    assert found.is_restarted
    assert found.data == b"one\n" + rest


def test_a_file_that_is_gone_is_told_once_and_may_come_back(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    follower = LineFollower(path)
    path.write_bytes(b"one\n")
    follower.read()
    path.unlink()
    assert follower.read().is_restarted
    assert not follower.read().is_restarted
    path.write_bytes(b"two\n")
    assert follower.read().data == b"two\n"


def test_a_folder_in_its_place_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "lines").mkdir()
    assert LineFollower(tmp_path / "lines").read().data == b""


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b".") + b"\n"), max_size=40),
    most=st.integers(13, 60),
)
def test_a_long_file_comes_in_chunks_that_make_it_up(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], most: int
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "lines"
    path.write_bytes(b"".join(lines))
    follower, found = LineFollower(path, most), b""
    while True:
        new = follower.read()
        assert new.data.endswith(b"\n") or not new.data
        found += new.data
        if not new.has_more:
            break
    assert found == b"".join(lines)

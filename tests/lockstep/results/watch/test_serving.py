"""Where the page is served, and what cannot be a place, a token or a run."""

import threading
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the page is served by uvicorn: .venv/bin/pip install -e '.[watch]'")

from lockstep.cli.main import run
from lockstep.common.errors import KeyFileError, UsageError
from lockstep.common.transport.address import TcpAddress
from lockstep.results.watch.serving import PageServer, listen, parse_place, read_token
from lockstep.results.watch.sources import WatchedRuns
from tests.leftovers import LINUX_ONLY, nothing_left_open
from tests.lockstep.results.watch.folders import running


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("8000", TcpAddress("127.0.0.1", 8000)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("0.0.0.0:8000", TcpAddress("0.0.0.0", 8000)),
    ],
)
def test_a_place_is_a_host_and_a_port(text: str, place: TcpAddress) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["", "a:b", ":80", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="is not a valid address: expected HOST:PORT"):
        parse_place(text)


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with listen(TcpAddress("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}: [^()]*--listen 127.0.0.1:0"):
            listen(TcpAddress("127.0.0.1", port))


@LINUX_ONLY
def test_a_page_that_cannot_be_served_leaves_no_thread_that_asks_the_server() -> None:
    with listen(TcpAddress("127.0.0.1", 0)) as taken, nothing_left_open():
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        before = threading.enumerate()
        assert run(["watch", "tcp://127.0.0.1:9", "--listen", place]) == 2
        assert threading.enumerate() == before


def test_a_folder_that_is_not_there_yet_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen(TcpAddress("127.0.0.1", 0)) as taken:
        # It ends at once, since the page cannot be served.
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, is_there in (("late", False), ("here", True)):
            running(tmp_path / "here")
            assert run(["watch", str(tmp_path / name), "--listen", place]) == 2
            assert (f"there is no folder '{tmp_path / name}'" in capsys.readouterr().err) is not is_there


def test_only_loopback_goes_without_a_token() -> None:
    places = [parse_place(f"{host}:1") for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.0.0.1", "[::]")]
    assert [place.is_loopback for place in places] == [*(True, True, True), *(False, False, False)]


@pytest.mark.parametrize(
    ("listen_at", "published", "is_reachable"),
    [
        ("127.0.0.1:0", None, False),
        ("localhost:0", None, False),
        ("0.0.0.0:0", None, True),
        # Behind a proxy on this machine, others reach it too.
        ("127.0.0.1:0", "runs.example:443", True),
        ("127.0.0.1:0", "127.0.0.1:80", True),
    ],
)
def test_who_may_be_reached_by_others_needs_a_token(listen_at: str, published: str | None, is_reachable: bool) -> None:
    reached = None if published is None else parse_place(published)
    server = PageServer(WatchedRuns(), parse_place(listen_at), published=reached)
    assert server.is_reachable == is_reachable
    assert len(server.secret()) == (32 if is_reachable else 0)


def test_a_token_that_was_given_is_asked_for_wherever_the_page_listens() -> None:
    assert PageServer(WatchedRuns(), parse_place("127.0.0.1:0"), token="mine").secret() == "mine"


def test_a_token_is_long_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    assert read_token(path) == "0123456789abcdef"
    for mode in (0o640, 0o620, 0o610, 0o604, 0o602, 0o644):
        path.chmod(mode)
        with pytest.raises(KeyFileError, match="is open to others: chmod 600"):
            read_token(path)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(UsageError, match="does not hold a token"):
        read_token(path)


def test_a_folder_is_a_run_or_holds_runs_or_neither(tmp_path: Path) -> None:
    assert not WatchedRuns.at(running(tmp_path / "runs" / "a")).is_many
    assert WatchedRuns.at(tmp_path / "runs").is_many
    assert not WatchedRuns.at(tmp_path / "not yet").is_many
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for path, text in ((tmp_path / "other", "holds no run"), (tmp_path / "other" / "file", "is not a folder")):
        with pytest.raises(UsageError, match=text):
            WatchedRuns.at(path)
    with pytest.raises(UsageError, match="is not there"):
        WatchedRuns.at(tmp_path / "no" / "where")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["watch", "runs", "--metrics-only"], "is a folder of runs"),
        (["watch", "runs", "--server", "tcp://127.0.0.1:1"], "is a folder of runs"),
        (["watch", "tcp://127.0.0.1:1", "--server", "tcp://127.0.0.1:1"], "remove one"),
        (["watch", "no/where"], "is not there"),
        (["watch", "runs", "--listen", "nowhere"], "is not a valid address"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], text: str
) -> None:
    running(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert threading.active_count() < 20

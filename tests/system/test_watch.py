"""The page of real runs: it is told what their processes do, costs them nothing that counts, and ends with them."""

import http.client
import json
import re
import signal
import socket
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="the page is served by Starlette: .venv/bin/pip install -e '.[watch]'")
pytest.importorskip("prometheus_client", reason="figures need prometheus-client: .venv/bin/pip install -e '.[watch]'")

from tests.lockstep.results.watch.folders import running
from tests.system.jobs import ENDLESS
from tests.system.processes import GONE_S, Place, Process


def link_of(process: Process, what: str = "page") -> str:
    """Return the link that a process prints."""
    found = re.search(r"http://\S+", process.line_with(f"{what} at http"))
    assert found is not None
    return found[0]


def ask(link: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    parts = urlsplit(link)
    asked = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    try:
        asked.request(method, f"{parts.path.rstrip('/')}/{path}", headers=headers)
        answer = asked.getresponse()
        return answer.status, answer.read().decode()
    finally:
        asked.close()


def snapshot(link: str) -> dict[str, object]:
    """Return the snapshot that a page shows."""
    loaded = json.loads(ask(link, "api/runs/run/snapshot")[1])
    assert isinstance(loaded, dict)
    return loaded


def test_a_page_beside_a_run_shows_it_live_and_ends_with_it(place: Place) -> None:
    train = place.start("train", *ENDLESS, "--workers", "1", "--run-dir", "run", "--watch")
    link = link_of(train)
    train.line_with("epoch 1/")
    # The page looks at the files several times a second.
    while (shown := snapshot(link))["state"] == "waiting" or shown["refused"] is None:
        continue
    assert (shown["state"], shown["model"]) == ("running", "unhurried.py:Unhurried")
    assert [worker["rank"] for worker in shown["workers"]] == [0]  # type: ignore[attr-defined]  # a list of dicts
    # It was told by `train`, which asks the server.
    assert shown["refused"] == 0
    train.interrupt()
    assert place.is_empty(GONE_S)


def test_a_page_of_a_server_by_its_address_and_of_a_run_that_is_over(place: Place) -> None:
    address = place.address()
    server = place.start("server", *ENDLESS, "--bind", address, "--run-dir", "run", "--prometheus", "127.0.0.1:0")
    metrics = link_of(server, "metrics")
    worker = place.start("worker", address)
    server.line_with("epoch 1/")
    while 'lockstep_run_state{state="running"} 1.0' not in ask(metrics.removesuffix("metrics"), "metrics")[1]:
        continue
    assert ask(metrics.removesuffix("metrics"), "")[0] == 404
    page = place.start("watch", address)
    link = re.search(r"http://\S+", page.error_with("page at"))
    assert link is not None
    while snapshot(link[0])["state"] != "running":
        continue
    page.send(signal.SIGINT)
    assert page.end(GONE_S)[0] == 0
    server.interrupt()
    worker.end()
    over = place.start("watch", "run", "--listen", "0.0.0.0:0")
    found = re.search(r"http://(\S+):(\d+)/([\w-]{32})/", over.error_with("page at"))
    assert found is not None
    local = f"http://127.0.0.1:{found[2]}/"
    assert ask(local, "api/source")[0] == 403
    assert json.loads(ask(f"{local}{found[3]}/", "api/runs/run/snapshot")[1])["state"] == "interrupted"
    over.send(signal.SIGTERM)
    assert over.end(GONE_S)[0] == 0
    assert place.is_empty(GONE_S)


def test_a_token_is_asked_for_on_loopback_too_if_one_was_given(place: Place) -> None:
    running(place.folder / "run")
    token = place.folder / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    page = place.start("watch", "run", "--token-file", "token")
    found = re.search(r"http://127\.0\.0\.1:(\d+)/0123456789abcdef/", page.error_with("page at"))
    assert found is not None
    local = f"http://127.0.0.1:{found[1]}/"
    assert [ask(local, path)[0] for path in ("", "api/source", "metrics", "0123456789abcde/")] == [403] * 4
    assert ask(found[0], "api/source")[0] == 200
    page.send(signal.SIGTERM)
    assert page.end(GONE_S)[0] == 0


def test_many_browsers_that_never_read(place: Place) -> None:
    train = place.start("train", *ENDLESS, "--workers", "1", "--run-dir", "run", "--watch")
    link = link_of(train)
    parts = urlsplit(link)
    silent = []
    for _ in range(60):
        asked = socket.create_connection((parts.hostname, parts.port), timeout=60)
        asked.sendall(f"GET /api/runs/run/snapshot HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        silent.append(asked)
    train.line_with("epoch 2/")
    assert {asked.recv(12) for asked in silent} == {b"HTTP/1.1 200"}
    assert ask(link, "api/runs/run/snapshot")[0] == 200
    for asked in silent:
        asked.close()
    train.interrupt()
    assert place.is_empty(GONE_S)

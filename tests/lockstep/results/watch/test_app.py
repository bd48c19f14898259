"""What the page's server answers: to its page, to nonsense, and to those who should not ask."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the page is served by Starlette: .venv/bin/pip install -e '.[watch]'")
pytest.importorskip("httpx2", reason="its tests ask by httpx2: .venv/bin/pip install -e '.[dev]'")

from starlette.testclient import TestClient

from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import default_options
from lockstep.results.evaluation.model_answers import ModelAnswers
from lockstep.results.watch.guard import HEADERS, MOST_BODY_BYTES, MOST_CLIENTS, Guard, RequestLimit
from lockstep.results.watch.serving import WatchApp
from lockstep.results.watch.sources import WatchedRuns
from lockstep.runs.job_file import to_toml
from lockstep.runs.run_dir import trust
from tests.lockstep.results.watch.folders import running
from tests.lockstep.small_runs import small_run
from tests.lockstep.test_strangers_runs import Folders, whole

HOST = "127.0.0.1:8000"
#: What every answer says, word for word: a link that leads elsewhere names no run there, and no browser guesses kinds.
STRICT = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
EVIL = '<img src=x onerror="alert(1)">'


@contextmanager
def client(
    source: WatchedRuns, *, token: str = "", limit: RequestLimit | None = None, is_metrics_only: bool = False
) -> Iterator[TestClient]:
    app = WatchApp(source, lambda: 1.0, is_metrics_only=is_metrics_only)
    guard = Guard(app.asgi(), frozenset({HOST, "localhost:8000"}), lambda: 1.0, token, limit or RequestLimit())
    with TestClient(guard, base_url=f"http://{HOST}", follow_redirects=False) as asked:
        yield asked


@pytest.fixture
def one(tmp_path: Path) -> Iterator[TestClient]:
    with client(WatchedRuns.at(running(tmp_path / "mine"))) as asked:
        yield asked


def test_the_page_and_its_files_are_served_with_a_strict_policy(one: TestClient) -> None:
    for path in ("/", "/page/scripts/watch.js", "/page/uplot/uPlot.min.css", "/api/source", "/nowhere"):
        answer = one.get(path)
        assert answer.status_code == (404 if path == "/nowhere" else 200)
        assert {name: answer.headers[name] for name in STRICT} == STRICT
        policy = answer.headers["content-security-policy"]
        assert policy == HEADERS["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/index.html", "/page/..%2fapp.py"])
def test_no_other_file_is_served(one: TestClient, path: str) -> None:
    assert one.get(path).status_code == 404


def test_a_run_is_told_in_full(one: TestClient) -> None:
    source = one.get("/api/source").json()
    assert (source["is_many"], source["run"], Path(source["folder"]).name) == (False, "run", "mine")
    assert one.get("/api/runs/run/snapshot").json()["figures"]["step"] == 6
    groups = one.get("/api/runs/run/facts").json()["job"]
    values = {value["name"]: value for group in groups for value in group["values"]}
    assert (values["model"]["text"], values["global_batch"]["is_unusual"], values["seed"]["is_unusual"]) == (
        "mlp",
        True,
        False,
    )
    assert len(one.get("/api/runs/run/curves?points=3").json()["step"]) == 3
    assert one.get("/api/runs/run/curves?first=2&last=3").json()["step"] == [2.0, 3.0]


@pytest.mark.parametrize("path", ["snapshot", "facts", "curves", "evaluation"])
def test_a_run_that_is_not_there_is_not_found(one: TestClient, path: str) -> None:
    assert one.get(f"/api/runs/other/{path}").status_code == 404


def test_a_browser_that_has_the_snapshot_is_sent_none(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine")
    source = WatchedRuns.at(folder)
    with client(source) as asked:
        first = asked.get("/api/runs/run/snapshot")
        known = {"if-none-match": first.headers["etag"]}
        again = asked.get("/api/runs/run/snapshot", headers=known)
        assert (again.status_code, again.content) == (304, b"")
        ledger = folder / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b'"here"', b'"there"'))
        view = source.view("run", 1.0)
        assert view is not None
        view.refresh(1.0)
        later = asked.get("/api/runs/run/snapshot", headers=known)
        assert later.json()["workers"][0]["host"] == "there"


@pytest.mark.parametrize("query", ["points=many", "first=a", "last=", "points=1e3"])
def test_a_range_that_is_none_is_refused(one: TestClient, query: str) -> None:
    answer = one.get(f"/api/runs/run/curves?{query}")
    assert (answer.status_code, answer.text) == (400, "first, last and points: expected numbers\n")


def test_many_runs_are_listed_the_newest_first_and_opened_by_their_names_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        running(tmp_path / "runs" / name)
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "job.toml").touch()
    with client(WatchedRuns.at(tmp_path / "runs")) as asked:
        assert {run["id"] for run in asked.get("/api/runs").json()["runs"]} == {"a", "b"}
        assert asked.get("/api/runs/a/snapshot").json()["name"] == "a"
        for name in ("other", "..", "../secret", "%2e%2e%2fsecret", "", "run"):
            assert asked.get(f"/api/runs/{name}/snapshot").status_code == 404
        assert asked.get("/metrics").status_code == 404


def test_what_a_worker_names_itself_stays_text(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine")
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"here"', b'"<img src=x onerror=\\"alert(1)\\">"'))
    with client(WatchedRuns.at(folder)) as asked:
        answer = asked.get("/api/runs/run/snapshot")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["workers"][0]["host"] == EVIL


# Who may ask


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "127.0.0.1", "127.0.0.1:9000", ""),
        # A part of ours is not enough, nor is one of which ours is a part.
        *("127.0.0.1:80", "127.0.0.1:80001", "127.0.0.1:8000.evil.example", "127.0.0.1:8000@evil.example"),
        *(
            "7.0.0.1:8000",
            "evil.127.0.0.1:8000",
            "127.0.0.1.evil.example:8000",
            "localhost:8000.evil.example",
            "localhost",
            "local",
        ),
    ],
)
def test_a_name_of_somebody_elses_is_refused(one: TestClient, host: str) -> None:
    answer = one.get("/api/runs/run/snapshot", headers={"host": host})
    assert answer.status_code == 421
    assert "figures" not in answer.text


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(one: TestClient, method: str) -> None:
    assert one.request(method, "/api/runs/run/snapshot").status_code == 405


@pytest.mark.parametrize(
    ("site", "code"), [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
)
def test_nothing_is_computed_for_another_site(one: TestClient, site: str, code: int) -> None:
    headers = {"sec-fetch-site": site}
    assert one.get("/api/runs/run/snapshot", headers=headers).status_code == code
    # A link from elsewhere, or a notebook's frame, shows the page itself.
    assert one.get("/", headers=headers).status_code == 200


@pytest.mark.parametrize(("site", "code"), [("same-origin", 200), ("cross-site", 403)])
def test_nothing_is_computed_for_another_site_below_the_token_either(tmp_path: Path, site: str, code: int) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), token="token") as asked:
        answer = asked.get("/token/api/runs/run/snapshot", headers={"sec-fetch-site": site})
        assert answer.status_code == code
        assert (code == 200) != answer.text.startswith("only the page itself")


def test_no_other_origin_may_read(one: TestClient) -> None:
    answer = one.get("/api/runs/run/snapshot", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["/", "/api/source", "/wrong/", "/wrong/api/source", "/tokens/", "/metrics", "//token/"]
)
def test_without_the_token_nothing_is_shown(tmp_path: Path, path: str) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), token="token") as asked:
        answer = asked.get(path)
        assert answer.status_code == 403
        assert answer.text.startswith("this link lacks the token")


def test_with_the_token_all_is(tmp_path: Path) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), token="token") as asked:
        assert asked.get("/token").headers["location"] == "/token/"
        assert "<title>" in asked.get("/token/").text
        assert asked.get("/token/page/scripts/watch.js").status_code == 200
        assert asked.get("/token/api/runs/run/snapshot").json()["state"] == "running"
        assert asked.get("/token/metrics").status_code == 200


def test_too_many_requests_are_refused_and_the_next_ones_are_not() -> None:
    limit = RequestLimit(most=2, window_s=10.0)
    allowed = [limit.allows("one", now) for now in (0.0, 1.0, 2.0, 10.5, 10.6, 11.5)]
    assert allowed == [True, True, False, True, False, True]
    assert limit.allows("another", 11.5)


def test_clients_that_are_counted_are_not_more_and_more() -> None:
    limit = RequestLimit(most=1)
    assert all(limit.allows(f"{number}", 1.0) for number in range(2 * MOST_CLIENTS))
    assert not limit.allows(f"{2 * MOST_CLIENTS - 1}", 1.0)
    assert limit.allows("0", 1.0)


def test_the_limit_holds_for_each_client(tmp_path: Path) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), limit=RequestLimit(most=2)) as asked:
        assert [asked.get("/api/source").status_code for _ in range(3)] == [200, 200, 429]
        another = TestClient(asked.app, base_url=f"http://{HOST}", client=("10.0.0.7", 5000))
        assert another.get("/api/source").status_code == 200


@pytest.mark.parametrize(
    ("token", "path", "headers", "code"),
    [
        ("token", "/api/source", {}, 403),
        ("token", "/wrong/api/source", {}, 403),
        ("", "/api/source", {"host": "evil.example"}, 421),
        ("", "/api/source", {"sec-fetch-site": "cross-site"}, 403),
        # Whoever knows the token may still be another site.
        ("token", "/token/api/source", {"sec-fetch-site": "cross-site"}, 403),
        # It may show the page in a frame, but not so often that nobody else can.
        ("", "/page/watch.css", {"sec-fetch-site": "cross-site"}, 200),
    ],
)
def test_requests_of_those_who_may_not_ask_keep_nobody_out(
    tmp_path: Path, token: str, path: str, headers: dict[str, str], code: int
) -> None:
    source = WatchedRuns.at(running(tmp_path / "mine"))
    with client(source, token=token, limit=RequestLimit(most=2)) as asked:
        assert {asked.get(path, headers=headers).status_code for _ in range(5)} - {429} == {code}
        inside = f"/{token}" if token else ""
        assert [asked.get(f"{inside}/api/source").status_code for _ in range(2)] == [200, 200]


def test_who_is_refused_does_not_keep_its_connection(tmp_path: Path) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), token="token") as asked:
        assert asked.get("/").headers["connection"] == "close"


def test_only_metrics_are_served_where_nothing_else_is_wanted(tmp_path: Path) -> None:
    with client(WatchedRuns.at(running(tmp_path / "mine")), is_metrics_only=True) as asked:
        assert asked.get("/metrics").status_code == 200
        assert asked.get("/").status_code == asked.get("/api/runs/run/snapshot").status_code == 404


# Its model


@pytest.mark.parametrize("size", [0, 783, 785, MOST_BODY_BYTES])
def test_a_drawing_of_another_size_is_refused(one: TestClient, size: int) -> None:
    answer = one.post("/api/runs/run/answer", content=bytes(size))
    assert answer.status_code == 400
    assert "expected 784" in answer.text


def test_a_body_that_is_too_long_is_refused(one: TestClient) -> None:
    assert one.post("/api/runs/run/answer", content=bytes(MOST_BODY_BYTES + 1)).status_code == 413


def test_without_weights_the_model_has_no_answer(one: TestClient) -> None:
    answer = one.post("/api/runs/run/answer", content=bytes(784))
    assert answer.status_code == 409
    assert "no weights yet" in answer.text
    assert one.get("/api/runs/run/evaluation").status_code == 409


def test_a_digit_is_drawn_for_mnist_alone_in_any_form(tmp_path: Path) -> None:
    folder = running(tmp_path / "mine")
    digits = load("mnist")
    few = (digits.train.images[:20], digits.train.labels[:20])
    x_train, y_train, x_test = (np.asarray(one) for one in (*few, digits.test.images))
    for name, y_test in (("digits", digits.test.labels), ("clothes", digits.test.labels[::-1])):
        np.savez(tmp_path / f"{name}.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=np.asarray(y_test))
    found = []
    for data in ("mnist", str(tmp_path / "digits.npz"), str(tmp_path / "clothes.npz")):
        (folder / "job.toml").write_text(to_toml(Job(model="linear", data=data), default_options()))
        found.append(ModelAnswers(folder).drawing()["is_possible"])
    assert found == [True, True, False]


def test_a_model_sees_something_in_a_drawing_and_in_its_test_set(tmp_path: Path) -> None:
    run = small_run(tmp_path, epochs=1, lr=1e-6)
    drawn = np.zeros((28, 28), np.uint8)
    drawn[4:24, 13:16] = 255
    with client(WatchedRuns.at(run.folder)) as asked:
        answer = asked.post("/api/runs/run/answer", content=drawn.tobytes())
        assert answer.status_code == 200, answer.text
        assert sum(answer.json()["probabilities"]) == pytest.approx(1.0, abs=1e-5)
        # It is none of digits, only of their size.
        assert asked.get("/api/runs/run/drawing").json()["is_possible"] is False
        blank = asked.post("/api/runs/run/answer", content=bytes(784))
        assert (blank.status_code, "nothing is drawn" in blank.text) == (409, True)
        found = asked.get("/api/runs/run/evaluation").json()
        assert found["accuracy"] == pytest.approx(run.test_accuracy)
        assert sum(map(sum, found["counts"])) >= len(found["mistakes"])


def test_the_page_runs_no_code_of_a_stranger(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    theirs = folders.stranger(whole)["run"]
    with client(WatchedRuns.at(theirs)) as asked:
        for answer in (
            asked.get("/api/runs/run/evaluation"),
            asked.post("/api/runs/run/answer", content=bytes(784)),
        ):
            assert answer.status_code == 409, answer.text
            assert "--trust-model" in answer.text
            assert not folders.marker.exists()
        trust(theirs)
        assert asked.get("/api/runs/run/evaluation").status_code == 200
    assert folders.marker.exists()

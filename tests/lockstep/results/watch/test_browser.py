"""The page in a real browser, if there are one and a driver for it: what a person sees and does."""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the page is served by uvicorn: .venv/bin/pip install -e '.[watch]'")
pytest.importorskip("playwright", reason="a browser is driven by Playwright: pip install playwright")

import uvicorn
from playwright import sync_api

from lockstep.common.transport.address import TcpAddress
from lockstep.ps.records.run_folder import RunFolder
from lockstep.results.watch.app import WatchApp
from lockstep.results.watch.guard import Guard
from lockstep.results.watch.serving import listen
from lockstep.results.watch.sources import WatchedRuns
from tests.lockstep.results.reports.plots.records import write_steps
from tests.lockstep.results.watch.folders import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]

expect = sync_api.expect

#: Milliseconds in which a page does what it is asked for: the machine may be busy.
WAIT_MS = 60_000

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder of two runs; return the link and the folder."""
    for name in ("one", "two"):
        folder = running(tmp_path / "runs" / name)
        ledger = folder / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b'"here"', b'"<img src=x onerror=\\"window.hit=1\\">"'))
    with listen(TcpAddress("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        app = WatchApp(WatchedRuns.at(tmp_path / "runs"), lambda: 1.0)
        guard = Guard(app.asgi(), frozenset({host}), lambda: 1.0)
        server = uvicorn.Server(uvicorn.Config(guard, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://{host}/", tmp_path / "runs"
        finally:
            app.is_over.set()
            server.should_exit = True
            thread.join()


@pytest.fixture
def page() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": 390, "height": 800})
        finally:
            browser.close()


@pytest.fixture
def errors(page: Any) -> list[str]:
    """Collect what the browser complains about."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    return found


def test_a_person_sees_a_run_grow_and_compares_two(served: tuple[str, Path], page: Any, errors: list[str]) -> None:
    link, folder = served
    page.goto(link)
    locator = page.locator
    expect(locator("#runs tbody tr")).to_have_count(2)
    for box in locator("#runs input").all():
        box.check()
    expect(locator("#compared .chart").first).to_be_visible()
    locator("#runs a").first.click()
    expect(locator("#charts .chart")).to_have_count(4)
    expect(locator("#figures")).to_contain_text("6")
    expect(locator("#workers")).to_contain_text("<img src=x onerror=")
    assert page.evaluate("window.hit") is None
    name = re.sub(r".*#", "", page.url)
    write_steps(folder / name, [6, 7])
    RunFolder(folder / name).close()
    expect(locator("#figures")).to_contain_text("8")
    # Nothing is wider than a phone.
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("+")
    expect(locator("#reset")).to_be_visible()
    page.keyboard.press("0")
    expect(locator("#reset")).to_be_hidden()
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") in ("dark", "light")
    assert errors == []


class Held:
    """Holds answers back until they are let go, in the order in which they were asked for."""

    def __init__(self, page: Any, pattern: str) -> None:
        self.page, self.routes = page, list[Any]()
        self.page.route(pattern, lambda route: self.routes.append(route))

    def let_go(self, **answer: Any) -> None:
        for route in self.routes:
            # One whose page has gone is not asked for any more: the browser says so, or takes it.
            with suppress(sync_api.Error):
                route.fulfill(json=answer) if answer else route.continue_()


EVALUATION = {"weights": "last", "loss": 0.5, "accuracy": 0.5, "names": ["boot"], "counts": [[7]], "mistakes": []}


def test_what_one_run_answers_late_is_never_shown_under_another(
    served: tuple[str, Path], page: Any, errors: list[str]
) -> None:
    link, _ = served
    curves, facts = Held(page, "**/runs/one/curves*"), Held(page, "**/runs/one/facts")
    evaluation = Held(page, "**/runs/one/evaluation")
    page.goto(f"{link}#one")
    expect(page.locator("#title")).to_contain_text("one")
    page.evaluate("document.getElementById('evaluation').hidden = false")
    page.locator("#evaluate").click()
    while not (curves.routes and facts.routes and evaluation.routes):
        page.wait_for_timeout(20)
    page.evaluate("location.hash = 'two'")
    expect(page.locator("#charts .chart")).to_have_count(4)
    expect(page.locator("#title")).to_contain_text("two")
    curves.let_go()
    facts.let_go(folder="runs/one", has_begun=True, is_classification=True, job=[], receipt={"of": "another run"})
    evaluation.let_go(**EVALUATION)
    # What another page asks for now is answered after what was held back.
    assert page.evaluate("fetch('api/source').then((answer) => answer.status)") == 200
    expect(page.locator("#job")).to_contain_text("two")
    assert page.locator("#charts .chart").count() == 4
    assert page.locator("#confusion td").count() == 0
    assert page.locator("#evaluate").is_enabled()
    assert page.locator("main").count() == 1
    assert "another run" not in page.locator("main").inner_text()
    assert errors == []

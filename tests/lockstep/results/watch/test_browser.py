"""The page in a real browser, if there are one and a driver for it: what a person sees and does."""

import re
import shutil
import threading
from collections.abc import Iterator
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


def test_a_person_sees_a_run_grow_and_compares_two(served: tuple[str, Path], page: Any) -> None:
    link, folder = served
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    expect = sync_api.expect
    page.goto(link)
    locator = page.locator
    expect(locator("#runs tr")).to_have_count(3)
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

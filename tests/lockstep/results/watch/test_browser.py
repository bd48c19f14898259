"""The page in a real browser, if there are one and a driver for it: what a person sees and does."""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the page is served by uvicorn: .venv/bin/pip install -e '.[watch]'")
pytest.importorskip("playwright", reason="a browser is driven by Playwright: pip install playwright")

import uvicorn
from playwright import sync_api

from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.address import TcpAddress
from lockstep.ps.records.run_folder import RunFolder
from lockstep.results.watch.guard import Guard
from lockstep.results.watch.serving import WatchApp, listen
from lockstep.results.watch.sources import WatchedRuns
from tests.lockstep.results.plots.records import write_steps
from tests.lockstep.results.watch.folders import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")]

expect = sync_api.expect

#: Milliseconds in which a page does what it is asked for: the machine may be busy.
WAIT_MS = 60_000

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic"]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder; yield the link."""
    with listen(TcpAddress("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        app = WatchApp(WatchedRuns.at(folder), SystemClock().now)
        guard = Guard(app.asgi(), frozenset({host}), lambda: 1.0)
        server = uvicorn.Server(uvicorn.Config(guard, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://{host}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder of two runs; return the link and the folder."""
    for name in ("one", "two"):
        folder = running(tmp_path / "runs" / name)
        ledger = folder / "ledger.jsonl"
        ledger.write_bytes(ledger.read_bytes().replace(b'"here"', b'"<img src=x onerror=\\"window.hit=1\\">"'))
    with serving(tmp_path / "runs") as link:
        yield link, tmp_path / "runs"


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
    facts.let_go(has_begun=True, is_classification=True, job=[], receipt={"of": "another run"})
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


OUT_OF_SIGHT = """
[...document.querySelectorAll("main *, header *")]
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1 && !one.closest(".uplot, .hidden"))
  .map((one) => one.outerHTML.slice(0, 80))
"""


def choose_all(page: Any) -> None:
    for box in page.locator("#runs input").all():
        box.check()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1180])
def test_everybody_can_use_the_list_a_comparison_and_a_run(
    served: tuple[str, Path], page: Any, errors: list[str], theme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python").Axe()
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)
    page.goto(served[0])
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    assert axe.run(page).response["violations"] == []
    choose_all(page)
    expect(page.locator("#compared .chart").first).to_be_visible()
    assert axe.run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#runs a").first.click()
    expect(page.locator("#charts .chart")).to_have_count(4)
    for group in page.locator("summary").all():
        group.click()
    assert axe.run(page).response["violations"] == []
    # Nothing is out of sight: tables are cards on a phone, and the rest is as wide as the page.
    assert page.evaluate(OUT_OF_SIGHT) == []
    assert errors == []


def test_the_list_is_as_wide_as_the_window_and_names_the_values_that_have_no_room(
    served: tuple[str, Path], page: Any, errors: list[str]
) -> None:
    link, folder = served
    job = folder / "two" / "job.toml"
    text = job.read_text()
    values = {
        "lr": "0.125",
        "epochs": "77",
        "seed": "5",
        "momentum": "0.5",
        "weight_decay": "0.25",
        "micro_batches": "2",
    }
    for name, value in {"model": '"a_module_with_a_long_name.py:build"', **values}.items():
        text = re.sub(f"(?m)^{name} = .*", f"{name} = {value}", text)
    job.write_text(text)
    box = page.locator("#list-of-runs")
    for width, is_hidden in ((1280, False), (960, True)):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(link)
        expect(page.locator("#runs tbody tr")).to_have_count(2)
        assert box.evaluate("box => box.scrollWidth <= box.clientWidth") is True
        more = page.locator("#more-values")
        expect(more).to_contain_text("They also differ in") if is_hidden else expect(more).to_be_empty()
    assert errors == []


def test_a_reader_searches_sorts_and_finds_the_list_as_it_was_left(
    served: tuple[str, Path], page: Any, errors: list[str]
) -> None:
    link, folder = served
    job = folder / "two" / "job.toml"
    job.write_text(re.sub("(?m)^lr = .*", "lr = 0.3", job.read_text()))
    page.set_viewport_size({"width": 1180, "height": 900})
    page.goto(link)
    names = page.locator("#runs tbody .name")
    page.get_by_role("button", name="run", exact=True).click()
    expect(names).to_have_text(["one", "two"])
    page.get_by_role("button", name="run", exact=True).click()
    expect(names).to_have_text(["two", "one"])
    assert page.locator("th[aria-sort=descending]").inner_text() == "run"
    # The value in which they differ has a column.
    page.get_by_role("button", name="lr", exact=True).click()
    expect(names).to_have_text(["one", "two"])
    page.locator("#runs input").nth(1).check()
    colour = page.locator("#runs .swatch").evaluate("(dot) => dot.style.color")
    page.locator("#search").fill("LR=0.3")
    expect(names).to_have_text(["two"])
    expect(page.locator("#count")).to_have_text("1 of 2 runs.")
    names.first.click()
    expect(page.locator("#title")).to_contain_text("two")
    page.locator("#home").click()
    expect(names).to_have_text(["two"])
    assert page.locator("#runs input").is_checked()
    assert page.locator("#runs .swatch").evaluate("(dot) => dot.style.color") == colour
    expect(page.locator("#compared .u-series .u-marker").last).to_have_css("border-color", colour)
    assert errors == []


def test_runs_with_a_validation_set_can_be_sorted_by_it(served: tuple[str, Path], page: Any, errors: list[str]) -> None:
    link, folder = served
    heads = page.locator("#runs thead .sort")
    page.set_viewport_size({"width": 1180, "height": 900})
    page.goto(link)
    expect(heads.nth(5)).to_have_text("test")
    write_steps(folder / "two", range(8, 12), validation=(0.25, 0.75))
    page.goto(link)
    expect(heads.nth(5)).to_have_text("validation")
    page.get_by_role("button", name="validation", exact=True).click()
    expect(page.locator("#runs tbody tr").first.locator("[data-label=validation]")).to_have_text("75.00 %")
    assert errors == []


def test_a_comparison_with_a_run_without_steps_stays_as_it_is(
    served: tuple[str, Path], page: Any, errors: list[str]
) -> None:
    link, folder = served
    (folder / "two" / "metrics.jsonl").unlink()
    page.goto(link)
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    choose_all(page)
    expect(page.locator("#compared .chart").first).to_be_visible()
    page.evaluate("document.querySelectorAll('#compared .chart').forEach((one) => { one.dataset.seen = 1; })")
    for _ in range(2):
        with page.expect_response("**/api/runs"):
            pass
    assert page.locator("#compared .chart:not([data-seen])").count() == 0
    assert errors == []


def test_legends_have_the_last_values_and_axes_their_names(
    served: tuple[str, Path], page: Any, errors: list[str]
) -> None:
    page.goto(f"{served[0]}#one")
    expect(page.locator("#charts .u-legend").first).to_contain_text("0.25")
    expect(page.locator("#charts canvas").first).to_have_attribute("aria-label", re.compile("^loss .* test 0.25"))
    expect(page.locator("#events-key")).to_contain_text("joined")
    assert page.locator("#figures").inner_text().count("samples/s") == 1
    assert page.locator("#job").inner_text().index("global batch") < page.locator("#job").inner_text().index(
        "Optimizer"
    )
    assert errors == []


def test_all_is_drawn_again_in_another_theme(served: tuple[str, Path], page: Any, errors: list[str]) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(f"{served[0]}#one")
    expect(page.locator("#charts .chart")).to_have_count(4)
    expect(page.locator("#leases")).to_be_visible()
    pixels = "() => [...document.querySelectorAll('#charts canvas, #timeline')].map((one) => one.toDataURL())"
    before = page.evaluate(pixels)
    page.locator("#theme").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    after = page.evaluate(pixels)
    assert len(before) == len(after) == 5
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert errors == []


def test_what_is_not_there_says_what_to_do(served: tuple[str, Path], page: Any, errors: list[str]) -> None:
    link, folder = served
    page.goto(f"{link}#gone")
    expect(page.locator("#notice")).to_contain_text("There is no run called gone here")
    expect(page.locator("#notice")).to_contain_text(f"lockstep train --run-dir {folder}/gone")
    expect(page.locator("#shown")).to_be_hidden()
    page.locator("#all a").click()
    expect(page.locator("#runs tbody tr")).to_have_count(2)
    # The browser itself reports the answer 404.
    assert [error for error in errors if "404" not in error] == []


def test_a_folder_that_is_empty_shows_the_run_that_begins_in_it(tmp_path: Path, page: Any, errors: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    with serving(tmp_path / "mine") as link:
        page.goto(link)
        expect(page.locator("#notice")).to_contain_text(f"lockstep train --run-dir {tmp_path / 'mine'}")
        running(tmp_path / "mine")
        expect(page.locator("#charts .chart")).to_have_count(4)
        expect(page.locator("#notice")).to_be_hidden()
    assert [error for error in errors if "ERR_CONNECTION" not in error] == []

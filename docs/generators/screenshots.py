"""Trains runs and takes the pictures of the page that shows them: docs/images/watch*.png, after a change of the page.

    python -m docs.generators.screenshots

It takes some minutes, and needs Chromium, Playwright, and the extra `watch`.
"""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "images"

#: The runs of the list, oldest first, as flags of `train`.
RUNS = {
    "mlp-baseline": ("--model", "mlp", "--global-batch", "256", "--steps", "300"),
    "mlp-lower-rate": ("--model", "mlp", "--global-batch", "256", "--steps", "300", "--lr", "0.1"),
    "lenet": ("--model", "lenet", "--steps", "400"),
    "linear-seed-7": ("--model", "linear", "--global-batch", "512", "--steps", "200", "--seed", "7"),
    "mlp-adam-rate-too-high": (
        *("--model", "mlp", "--global-batch", "256", "--steps", "300"),
        *("--optimizer", "adam", "--lr", "0.3"),
    ),
}

#: A run that is interrupted, and one that trains while it is shown, with a metric of its own.
INTERRUPTED = ("mlp-interrupted", "--model", "mlp", "--epochs", "30")
SHOWN = ("lenet-8-epochs", "--model", "lenet", "--epochs", "8", "--set", "metrics=f1")

#: The runs that are compared.
COMPARED = ("mlp-baseline", "mlp-lower-rate", "mlp-adam-rate-too-high")

#: A three, in parts of the pad on which it is drawn.
DIGIT = ((0.29, 0.32), (0.39, 0.21), (0.58, 0.21), (0.68, 0.32), (0.64, 0.46), (0.5, 0.5), (0.64, 0.54), (0.7, 0.68))
DIGIT_END = ((0.61, 0.81), (0.4, 0.81), (0.29, 0.72))

#: Milliseconds in which a page shows what it is to show.
WAIT_MS = 240_000


def train(folder: Path, name: str, *flags: str) -> "subprocess.Popen[str]":
    """Start a run with two workers in a folder of runs."""
    words = [sys.executable, "-m", "lockstep", "train", *flags, "--workers", "2", "--no-picture", "--run-dir", name]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Wait for a line of a process that has a pattern; return what matched."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found[0]
    raise RuntimeError(f"{process.args!r} ended without {pattern!r}")


def make_runs(folder: Path) -> None:
    """Train all runs of the list."""
    for name, flags in RUNS.items():
        process = train(folder, name, *flags)
        process.communicate()
        assert process.returncode == 0, name
    process = train(folder, *INTERRUPTED)
    wait_for(process, "epoch 1/")
    process.send_signal(signal.SIGINT)
    process.communicate()


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """Serve the page of a folder of runs; yield its link."""
    words = [sys.executable, "-u", "-m", "lockstep", "watch", str(folder), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield wait_for(process, r"http://\S+")
    finally:
        process.terminate()
        process.communicate()


def take_list(page: Any, link: str) -> None:
    """Take the list, and a comparison."""
    page.set_viewport_size({"width": 1400, "height": 395})
    page.goto(link)
    page.locator("#runs tbody tr").nth(len(RUNS)).wait_for()
    page.screenshot(path=IMAGES / "watch-list.png", full_page=True)
    for name in COMPARED:
        page.locator("#runs tr", has_text=name[:12]).locator("input").check()
    page.locator("#compared .chart").nth(2).wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=IMAGES / "watch-comparison.png", full_page=True)


def take_answers(page: Any, link: str) -> None:
    """Take what a model makes of a drawn digit and of the test set, in the dark theme."""
    page.set_viewport_size({"width": 1180, "height": 900})
    page.goto(f"{link}#lenet")
    page.emulate_media(color_scheme="dark")
    page.locator("#evaluate").click()
    page.locator("#mistakes").locator("*").first.wait_for()
    pad = page.locator("#pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    for number, (x, y) in enumerate((*DIGIT, *DIGIT_END)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=8)
        if not number:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_timeout(2000)
    clipped(page, "watch-dark.png", "#drawing", "#evaluation")
    page.emulate_media(color_scheme="light")


def take_run(page: Any, link: str) -> None:
    """Take a run that trains."""
    page.set_viewport_size({"width": 1180, "height": 900})
    page.goto(f"{link}#{SHOWN[0]}")
    page.locator("#charts .chart").nth(3).wait_for()
    page.locator("#processes tr").nth(2).wait_for()
    page.locator("#timeline").wait_for()
    page.wait_for_timeout(3000)
    clipped(page, "watch.png", "header", "#timeline-legend")


def clipped(page: Any, name: str, first: str, last: str) -> None:
    """Take the page from the top of one element to the bottom of another."""
    top, bottom = (page.locator(where).evaluate(EDGES) for where in (first, last))
    clip = {"x": 0, "y": max(0, top[0] - 14), "width": 1180, "height": bottom[1] - max(0, top[0] - 14) + 14}
    page.screenshot(path=IMAGES / name, full_page=True, clip=clip)


#: Returns the upper and the lower edge of an element, on the whole page.
EDGES = "(one) => { const box = one.getBoundingClientRect(); return [box.top + scrollY, box.bottom + scrollY]; }"


def main() -> None:
    """Train, and take the four pictures."""
    with tempfile.TemporaryDirectory(prefix="lockstep-") as root, sync_playwright() as driver:
        folder = Path(root) / "runs"
        folder.mkdir()
        make_runs(folder)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        with watched(folder) as link:
            take_list(page, link)
            take_answers(page, link)
            shown = train(folder, *SHOWN)
            wait_for(shown, "epoch 1/8 .*test")
            take_run(page, link)
            shown.send_signal(signal.SIGINT)
            shown.communicate()
        browser.close()


if __name__ == "__main__":
    main()

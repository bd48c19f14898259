"""CONTRIBUTING is true: its walks are the way that the code takes, its map names rooms that exist."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

from tests.architecture.direction import ORDERS
from tests.architecture.source import ROOT
from tests.simulation.cluster import Simulation
from tests.simulation.small import job_of

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

#: A stop on a walk: its number, the module, and the function that is called there.
STOP = re.compile(r"^\d+\. `(?P<path>[\w/]+\.py)` `(?P<function>[\w.]+)`", re.MULTILINE)

Call = tuple[str, str]


def section(title: str) -> str:
    """Return the text under a heading."""
    return CONTRIBUTING.split(f"# {title}\n", 1)[1].split("\n#", 1)[0]


def walk(title: str) -> list[Call]:
    """Return the stops of a walk, in order."""
    return [(found["path"], found["function"]) for found in STOP.finditer(section(title))]


@dataclass
class Log:
    """All calls of functions of ours, in order."""

    calls: list[Call] = field(default_factory=list)

    def note(self, frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            self.calls.append((path.relative_to(ROOT).as_posix().removeprefix("lockstep/"), frame.f_code.co_qualname))


@contextmanager
def logged() -> Iterator[Log]:
    log, before = Log(), sys.getprofile()
    sys.setprofile(log.note)
    try:
        yield log
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def step() -> list[Call]:
    """The calls of one training step of a server and two workers that send frames."""
    simulation = Simulation(job_of(global_batch=8, steps=5), seed=1)
    for _ in range(2):
        simulation.add_worker()
    simulation.run_to(2)  # the first steps are computed by the engine, and captured
    with logged() as log:
        simulation.run_to(4)
    return log.calls


@pytest.mark.parametrize("title", ["The way of a gradient", "The way of the weights"])
def test_a_walk_is_the_way_that_the_code_takes(title: str, step: list[Call]) -> None:
    stops, place = walk(title), 0
    assert len(stops) >= 5
    for stop in stops:
        assert stop in step[place:], f"{stop} is not called after the stops before it"
        place += step[place:].index(stop)


def test_no_stop_is_missing(step: list[Call]) -> None:
    """Each module of a worker or a server that takes part in a step is on a walk, or named as one that is asked."""
    named = set(re.findall(r"`((?:ps|worker)/[\w/]+\.py)`", CONTRIBUTING))
    entered = {path for path, _ in step if path.startswith(("ps/", "worker/"))}
    assert entered <= named, f"not in CONTRIBUTING: {sorted(entered - named)}"


def test_a_gradient_passes_through_few_modules() -> None:
    stops = walk("The way of a gradient")
    on_server = {path for path, _ in stops if path.startswith("ps/")}
    on_worker = {path for path, _ in stops if path.startswith("worker/")}
    assert len(on_server) <= 15
    assert len(on_worker) <= 10


def test_every_path_exists() -> None:
    for path in re.findall(r"`((?:common|ps|worker|lockstep|tests|scripts)/[\w/.]*)`", CONTRIBUTING):
        assert (ROOT / path).exists() or (ROOT / "lockstep" / path).exists(), path


#: Folders whose rooms are on the map, and not they themselves.
HOUSES = ("", "checking", "common", "ps", "results")


def mapped() -> list[str]:
    """Return the rooms on the map from top to bottom, as modules."""
    names = re.findall(r"^\| `([\w/]+)/`", section("Where things are"), re.MULTILINE)
    return [f"lockstep.{name.replace('/', '.')}" for name in names]


def test_the_map_has_every_room() -> None:
    rooms = {
        ".".join(path.relative_to(ROOT).parts)
        for house in HOUSES
        for path in (ROOT / "lockstep" / house).iterdir()
        if (path / "__init__.py").exists() and path.name not in HOUSES
    }
    assert rooms <= set(mapped()), f"not on the map: {sorted(rooms - set(mapped()))}"


def test_the_map_is_in_the_order_of_imports() -> None:
    """Imports go down the map: what stands higher may import what stands lower."""
    places = {name: i for i, name in enumerate(mapped())}
    for order in ORDERS:
        units = [(i, unit) for i, group in enumerate(order.groups) for unit in group if unit in places]
        for i, upper in units:
            for j, lower in units:
                assert i >= j or places[upper] < places[lower], f"{upper} is to stand above {lower}"

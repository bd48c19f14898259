"""CONTRIBUTING is true: its walks are the way that the code takes, its map names rooms that exist."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import pytest

from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.checkpoint.resuming import Resumption
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.parts.assembly import all_parts
from lockstep.ps.run.info import RunInfo
from tests.architecture.direction import ORDERS
from tests.architecture.source import ROOT
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import job_of

CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

#: A stop on a walk: its number, the module, and the function that is called there.
STOP = re.compile(r"^\d+\. `(?P<path>[\w/]+\.py)` `(?P<function>[\w.]+)`", re.MULTILINE)

#: The walks, by the titles of their sections.
FRAMES, BY_ITSELF = "The way of a gradient", "Steps without the server"

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


def eager(info: RunInfo, start: Resumption) -> Coordinator:
    """Return a coordinator that lets a team make steps by itself as soon as it can."""
    return Coordinator(info, all_parts(first_steps=0))


@pytest.mark.parametrize("title", [FRAMES, BY_ITSELF])
def test_a_step_goes_the_way_that_is_described(title: str, short_root: Path) -> None:
    by_itself = title == BY_ITSELF
    job = job_of(steps=20, global_batch=2, micro_batches=2) if by_itself else job_of(model="mlp", steps=6)
    options, parts = RunOptions(min_workers=1 if by_itself else 2), Parts(coordinator=eager) if by_itself else Parts()
    with Simulation(job, 1, options, root=short_root if by_itself else None, parts=parts) as simulation:
        for _ in range(options.least_workers()):
            simulation.add_worker()
        if by_itself:  # these begin after the first
            simulation.run(until=simulation.server.coordinator.is_running)
        else:  # the first steps are computed by the engine, and captured
            simulation.run_to(2)
        with logged() as log:
            simulation.run_to(4)
    check(walk(title), log.calls)


def check(stops: list[Call], calls: list[Call]) -> None:
    """Check that these functions are called in this order."""
    place = 0
    assert len(stops) >= 5
    for stop in stops:
        assert stop in calls[place:], f"{stop} is not called after the stops before it"
        place += calls[place:].index(stop)


def test_every_path_exists() -> None:
    paths = re.findall(r"`((?:common|ps|worker|lockstep|tests|scripts)/[\w/.]*)`", CONTRIBUTING)
    assert paths
    for path in paths:
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

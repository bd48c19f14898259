"""One thing happens to a small run, at each of its events in turn: wherever it falls, the bits are the same.

The suite tries every so many events, with another one to begin with in each case; `scripts/test --all` tries them all.
"""

import pytest
from msgspec.structs import replace

from tests.simulation.seeds.planted import PLANTED
from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.processes import Parts
from tests.simulation.simulator.scenario import FaultKind, Scenario, ScheduledFault, scenario_of

#: More than there are slots of weights: what is left over from one step would come up again in a later one.
STEPS = 3

#: Of each kind of run a small one: the job, servers, workers, and processes of each. Without a team, samples are sent.
SHAPES: dict[str, tuple[str, int, int, int]] = {
    "one server": ("noisy", 1, 2, 1),
    "two servers": ("clipped", 2, 1, 1),
    "three servers": ("clipped", 3, 1, 1),
    "local steps": ("wide-local", 1, 2, 1),
    "team": ("team-numbers", 1, 1, 2),
    "team, local steps": ("team-local", 1, 1, 3),
}

#: What happens to a run of that shape, and to whom: wires are counted in the order of their making; and of how many
#: events the suite tries one.
CASES = [
    *(("two servers", FaultKind.BREAK_WIRE, wire, 64) for wire in range(3)),
    ("two servers", FaultKind.CUT_WIRE, 2, 64),
    ("two servers", FaultKind.KILL_WORKER, 0, 64),
    ("two servers", FaultKind.KILL_SHARD, 0, 64),
    ("one server", FaultKind.BREAK_WIRE, 0, 64),
    ("one server", FaultKind.KILL_WORKER, 0, 64),
    *((shape, FaultKind.KILL_SERVER, 0, 16) for shape in SHAPES),
]


def calm(shape: str) -> Scenario:
    """Return a run to which nothing happens."""
    job, servers, workers, processes = SHAPES[shape]
    return replace(
        scenario_of(1, workers=workers, servers=servers, steps=STEPS, processes=processes),
        job=job,
        faults=(),
        early_kills=(),
        slowness=(1.0,),
        pauses=0.0,
        doubling=0.0,
        audit=0.0,
        sharing=float(processes > 1),
        ships=processes == 1,
        delay_s=0.002,
    )


def broken_at(scenario: Scenario, fault: FaultKind, target: int, event: int, parts: Parts | None = None) -> str:
    """Return what is violated if that happens at that event, empty if nothing is."""
    happening = ScheduledFault(
        kind=fault, event=event, target=target, seconds=0.5, kill_after=1 + event % 5, ways="both"
    )
    return "".join(simulate(replace(scenario, faults=(happening,)), parts).violations[:1])


@pytest.mark.parametrize("is_whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1].label}-{case[2]}")
def test_it_changes_nothing_at_any_event(case: tuple[str, FaultKind, int, int], is_whole: bool) -> None:
    shape, fault, target, every = case
    scenario, step = calm(shape), 1 if is_whole else every
    events = range(CASES.index(case) % step, simulate(scenario).world.events, step)
    assert {event: told for event in events if (told := broken_at(scenario, fault, target, event))} == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_that_is_made_twice_after_a_kill_is_found_in_each_shape(shape: str) -> None:
    scenario, planted = calm(shape), PLANTED["an update is made twice"].parts
    last = simulate(scenario).world.events
    assert any(broken_at(scenario, FaultKind.KILL_SERVER, 0, event, planted) for event in range(last - 1, 0, -8))

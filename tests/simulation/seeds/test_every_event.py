"""One thing happens to a small run, at each of its events in turn: wherever it falls, the bits are the same.

The suite tries every sixty-fourth event, with another one to begin with in each case; `scripts/test --all` tries them
all.
"""

import pytest
from msgspec.structs import replace

from tests.simulation.simulator.oracle import simulate
from tests.simulation.simulator.scenario import FaultKind, Scenario, ScheduledFault, scenario_of

#: More than there are slots of weights: what is left over from one step would come up again in a later one.
STEPS = 3

#: What happens, in a run with so many servers and workers, and to whom: wires are counted in the order of their making.
CASES = [
    (2, 1, FaultKind.BREAK_WIRE, 0),
    (2, 1, FaultKind.BREAK_WIRE, 1),
    (2, 1, FaultKind.BREAK_WIRE, 2),
    (2, 1, FaultKind.CUT_WIRE, 2),
    (2, 1, FaultKind.KILL_WORKER, 0),
    (2, 1, FaultKind.KILL_SERVER, 0),
    (2, 1, FaultKind.KILL_SHARD, 0),
    (1, 2, FaultKind.BREAK_WIRE, 0),
    (1, 2, FaultKind.KILL_WORKER, 0),
    (1, 2, FaultKind.KILL_SERVER, 0),
]


def calm(servers: int, workers: int) -> Scenario:
    scenario = scenario_of(1, workers=workers, servers=servers, steps=STEPS)
    return replace(
        scenario, job="clipped", faults=(), early_kills=(), doubling=0.0, sharing=0.0, delay_s=0.002, ships=True
    )


def with_fault(scenario: Scenario, fault: FaultKind, event: int, target: int) -> Scenario:
    happening = ScheduledFault(
        kind=fault, event=event, target=target, seconds=0.5, kill_after=1 + event % 5, ways="both"
    )
    return replace(scenario, faults=(happening,))


@pytest.mark.parametrize("every", [64, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(map(str, CASES[case])))
def test_it_changes_nothing_at_any_event(case: int, every: int) -> None:
    servers, workers, fault, target = CASES[case]
    scenario = calm(servers, workers)
    for event in range(case % every, simulate(scenario).world.events, every):
        found = simulate(with_fault(scenario, fault, event, target)).violations
        assert found == (), f"{fault.label} of {target} at event {event}"

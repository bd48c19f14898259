"""What came of a simulated run: nothing, or what speaks against it."""

import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common.transport.shared_memory.folder import shared_root
from lockstep.simulation.oracle import objections
from lockstep.simulation.scenario import Scenario
from lockstep.simulation.shells import Parts
from lockstep.simulation.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One seed's run."""

    story: Scenario
    #: What speaks against it, the most telling first; empty where all is as promised.
    objections: tuple[str, ...]
    #: Of all that happened: the same for the same seed.
    digest: str
    events: int
    #: Of virtual time.
    seconds: float
    #: What happened to it before it ended, and how often.
    happened: Counter[str]
    #: All that happened, where that was wanted.
    trace: tuple[str, ...] = ()


def simulate(story: Scenario, parts: Parts | None = None, *, is_traced: bool = False) -> Outcome:
    """Carry out a story in a folder of its own, in memory where there is such, and judge what came of it."""
    with tempfile.TemporaryDirectory(prefix="lockstep-simulation-", dir=shared_root()) as folder:
        simulation = Simulation(story, Path(folder), parts or Parts())
        world = simulation.world
        world.trace = [] if is_traced else None
        try:
            found = _judged(simulation)
        finally:
            simulation.close()
        return Outcome(
            story=story,
            objections=found,
            digest=world.digest(),
            events=world.events,
            seconds=world.now,
            happened=simulation.happened,
            trace=tuple(world.trace or ()),
        )


def _judged(simulation: Simulation) -> tuple[str, ...]:
    story = simulation.story
    try:
        fault = simulation.play()
    except Exception:  # noqa: BLE001  # whatever a machine raises speaks against it
        return (f"raised {traceback.format_exc().rstrip()}",)
    if fault:
        return (fault,)
    assert simulation.result is not None
    return tuple(objections(story.job, story.steps, simulation.result, simulation.run.folder))

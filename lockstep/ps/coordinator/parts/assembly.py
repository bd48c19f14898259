"""The parts of a coordinator, a line each: without its line and its file, the rest of a run works as before."""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from lockstep.ps.coordinator.coordinator import Coordinator, Plug
from lockstep.ps.coordinator.parts.audit import Audit
from lockstep.ps.coordinator.parts.callbacks import Callbacks
from lockstep.ps.coordinator.parts.multi_step import FIRST_STEPS, MultiStep
from lockstep.ps.coordinator.parts.several_servers import SeveralServers

P = TypeVar("P")


def part_of(core: Coordinator, kind: type[P]) -> P:
    """Return the part of that class, which the run has."""
    return next(part for part in core.parts if isinstance(part, kind))


def all_parts(*, first_steps: int = FIRST_STEPS) -> Sequence[Plug]:
    """Return the parts in the order in which they are asked; `first_steps` come before the first multi-step lease."""
    return (
        SeveralServers,
        # Before those that wait for the end of a lease, so that all act on the same event.
        partial(MultiStep, first_steps=first_steps),
        Callbacks,
        Audit,
    )

"""Laws that hold for every state machine with a table of transitions."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.statemachine.machine import ILLEGAL


class Machine(Protocol):
    """A machine in a phase."""

    @property
    def phase(self) -> Enum: ...

    def handle(self, event: Any, now: float) -> Sequence[object]: ...


def check_obedience(machine_in: Callable[[], Machine], table: Mapping[Any, Any], events: Mapping[Any, object]) -> None:
    """Give a machine in a phase each event: it moves as the table says, ignores the event, or raises."""
    for kind, event in events.items():
        machine = machine_in()
        phase = machine.phase
        targets = table[phase, kind]
        if targets is ILLEGAL:
            with pytest.raises(ProtocolError, match=f"{kind.__name__} while {phase.value}"):
                machine.handle(event, 100.0)
            continue
        effects = machine.handle(event, 100.0)
        if targets:
            assert machine.phase in targets, kind
        else:
            assert (effects, machine.phase) == ([], phase), kind


def reachable(table: Mapping[Any, Any], first: Enum) -> set[Enum]:
    """Return the phases to which the table leads from the first."""
    reached, pending = {first}, [first]
    while pending:
        here = pending.pop()
        onward = {target for (phase, _), targets in table.items() if phase is here for target in targets or ()}
        pending += onward - reached
        reached |= onward
    return reached

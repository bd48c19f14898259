"""The tables that state machines obey: which states may follow an event, whether it is ignored, or a bug of ours.

Each machine has one table over all of its states and events, from which the tests and the diagram in the docs are made.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from lockstep.common.errors import ProtocolError

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event")

#: Nothing happens: late and duplicate messages end here, not in an `if`.
IGNORED: frozenset[Any] = frozenset()

#: Our own shell would have to be wrong for this to happen.
ILLEGAL = None

#: By state and event, the states that may follow, `IGNORED`, or `ILLEGAL`.
TransitionTable = Mapping[tuple[State, type[Event]], frozenset[State] | None]


def table_of(
    states: type[State], rows: Mapping[type[Event], tuple[frozenset[State] | None, ...]]
) -> dict[tuple[State, type[Event]], frozenset[State] | None]:
    """Return the table whose rows say for each event what may follow in each state, in the order of the states."""
    return {(state, event): targets for event, row in rows.items() for state, targets in zip(states, row, strict=True)}


def targets_in(table: TransitionTable[State, Event], state: State, event: Event) -> frozenset[State]:
    """Return the states that may follow, none where the event is ignored; `ProtocolError` where it is illegal."""
    targets = table[state, type(event)]
    if targets is ILLEGAL:
        raise ProtocolError(f"{type(event).__name__} while {state.value}: not a transition of the table")
    return targets


def check_reached(targets: frozenset[State], event: object, reached: State) -> None:
    """Raise `ProtocolError` if an event led to a state that the table does not have for it."""
    if reached not in targets:
        raise ProtocolError(f"{type(event).__name__} led to {reached.value}: not a transition of the table")

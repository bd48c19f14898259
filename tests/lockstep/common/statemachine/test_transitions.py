"""A table says what may follow; what it does not know is a bug of ours, and is reported as one."""

from enum import Enum

import pytest

from lockstep.common.errors import ProtocolError
from lockstep.common.statemachine.transitions import IGNORED, ILLEGAL, check_reached, table_of, targets_in


class Door(Enum):
    OPEN = "open"
    SHUT = "shut"
    LOCKED = "locked"


class Pushed: ...


class Unlocked: ...


_SHUT = frozenset({Door.SHUT})

TABLE = table_of(Door, {Pushed: (_SHUT, frozenset({Door.OPEN}), IGNORED), Unlocked: (ILLEGAL, ILLEGAL, _SHUT)})


def test_a_row_has_an_entry_for_each_state() -> None:
    assert set(TABLE) == {(state, event) for state in Door for event in (Pushed, Unlocked)}
    with pytest.raises(ValueError, match="shorter"):
        table_of(Door, {Pushed: (_SHUT, _SHUT)})


def test_the_targets_of_an_event_are_looked_up() -> None:
    assert targets_in(TABLE, Door.OPEN, Pushed()) == _SHUT
    assert targets_in(TABLE, Door.LOCKED, Pushed()) == frozenset()


def test_an_illegal_event_is_a_bug_of_ours() -> None:
    with pytest.raises(ProtocolError, match="Unlocked while open: not a transition of the table"):
        targets_in(TABLE, Door.OPEN, Unlocked())


def test_a_state_that_the_table_does_not_have_for_an_event_is_a_bug_of_ours() -> None:
    check_reached(_SHUT, Pushed(), Door.SHUT)
    with pytest.raises(ProtocolError, match="Pushed led to locked: not a transition of the table"):
        check_reached(_SHUT, Pushed(), Door.LOCKED)

"""The tables of the group and of a shard are complete, lead everywhere, and nowhere from the end."""

from enum import Enum
from itertools import product
from typing import Any, get_args

import pytest

from ps.sharding.group import transitions as group_transitions
from ps.sharding.group.events import GroupEvent
from ps.sharding.process import transitions as shard_transitions
from ps.sharding.process.events import ShardEvent

TABLES: list[tuple[dict[Any, Any], type[Enum], Any, Enum, Enum]] = [
    (
        group_transitions.TRANSITIONS,
        group_transitions.GroupPhase,
        GroupEvent,
        group_transitions.GroupPhase.WAITING,
        group_transitions.GroupPhase.ENDED,
    ),
    (
        shard_transitions.TRANSITIONS,
        shard_transitions.ShardPhase,
        ShardEvent,
        shard_transitions.ShardPhase.JOINING,
        shard_transitions.ShardPhase.ENDED,
    ),
]


@pytest.mark.parametrize(("table", "phases", "events", "first", "last"), TABLES, ids=["group", "shard"])
def test_every_phase_has_an_entry_for_every_event_and_can_be_reached(
    table: dict[Any, Any], phases: type[Enum], events: Any, first: Enum, last: Enum
) -> None:
    assert set(table) == set(product(phases, get_args(events)))
    reached, pending = {first}, [first]
    while pending:
        here = pending.pop()
        onward = {target for (phase, _), targets in table.items() if phase is here for target in targets or ()}
        pending += onward - reached
        reached |= onward
    assert reached == set(phases)
    assert all((targets or frozenset()) <= {last} for (phase, _), targets in table.items() if phase is last)

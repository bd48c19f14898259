"""The table of the group is complete, leads everywhere, and nowhere from the end."""

from itertools import product
from typing import get_args

from lockstep.common.protocol.messages import Ping
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady, Squares, SumsAck, UpdateDone
from lockstep.common.statemachine.machine import Received
from lockstep.ps.shard_group.group import TRANSITIONS, GroupEvent, GroupPhase

#: What shards send, and the group decides on.
MESSAGES = {ShardJoin, ShardReady, SumsAck, Squares, UpdateDone, Ping}


def test_every_phase_has_an_entry_for_every_event_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(product(GroupPhase, set(get_args(GroupEvent)) - {Received} | MESSAGES))
    reached, pending = {GroupPhase.WAITING}, [GroupPhase.WAITING]
    while pending:
        here = pending.pop()
        onward = {target for (phase, _), targets in TRANSITIONS.items() if phase is here for target in targets or ()}
        pending += onward - reached
        reached |= onward
    assert reached == set(GroupPhase)
    last = {GroupPhase.ENDED}
    assert all((targets or frozenset()) <= last for (at, _), targets in TRANSITIONS.items() if at is GroupPhase.ENDED)

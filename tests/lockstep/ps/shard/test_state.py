"""What a shard decides in a run: what it adds and sends, and at which step; how it joins is the client's part."""

from itertools import product
from typing import get_args

import pytest

from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Eviction, Ping, SumsFrame
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import (
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    SendWeightsTo,
    ShardJoin,
    ShardReady,
    ShardWelcome,
    SliceFrame,
    SquaresRequest,
    SumsAck,
    Update,
    WorkerToShardMessage,
)
from lockstep.common.statemachine.client import SILENCE_S, ClientConfig, Exit, SendToServer
from lockstep.common.statemachine.machine import PeerLeft, Received, Started, TimePassed, kind_of
from lockstep.ps.shard import state as events
from lockstep.ps.shard.state import (
    HOLD_S,
    TRANSITIONS,
    Acknowledgements,
    ShardPhase,
    ShardState,
)
from tests.lockstep.common.statemachine.clients import exits

JOIN = ShardJoin(
    protocol=PROTOCOL_VERSION, incarnation="s", host="h", pid=1, fingerprint=fingerprint(), address="tcp://h:2"
)
WELCOME = ShardWelcome(
    index=1,
    options=RunOptions(servers=2),
    run="blue",
    job=Job(),
    training_samples=64,
    size=8192,
    parameter_size=8192,
)
ADMIT = Admit(rank=3, incarnation="life-3")
HELLO = Hello(rank=3, incarnation="life-3")
PEER = b"peer"


def update_of(step: int) -> Update:
    return Update(step=step, divisor=64.0, scale=None, ranks=[3], collected="nothing")


#: One event of each kind.
EVENTS: dict[type, events.SliceEvent] = {
    kind_of(event): event
    for event in (
        Begin(steps=5),
        ADMIT,
        Forget(rank=3),
        Received(peer=PEER, message=HELLO),
        SendWeightsTo(rank=3, step=5),
        Received(peer=PEER, message=SumsFrame(step=5, lo=0, hi=1, start=4096)),
        SquaresRequest(step=5, divisor=64.0),
        update_of(5),
        PeerLeft(peer=PEER, reason="its connection is gone"),
        Ping(),
        SliceFrame(name="weights", steps=5, start=4096),
        Collect(steps=5),
    )
}


def shard_in(phase: ShardPhase) -> ShardState:
    """Return a shard that has come to a phase by the usual way; one that serves is at step 5."""
    state = ShardState(ClientConfig(address="tcp://h:1", join=JOIN))
    state.handle(Started(), 0.0)
    if phase is not ShardPhase.OUTSIDE:
        state.handle(WELCOME, 0.0)
        ready = ShardReady(index=1, part="")
        assert state.handle(ready, 0.0) == [SendToServer(message=ready)]
    if phase is ShardPhase.SERVING:
        state.handle(Begin(steps=5), 0.0)
    assert state.phase is phase
    return state


def test_every_phase_has_an_entry_for_every_event() -> None:
    kinds = set(get_args(events.SliceEvent)) - {Received} | set(get_args(WorkerToShardMessage))
    assert set(TRANSITIONS) == set(product(ShardPhase, kinds))
    assert set(EVENTS) == kinds


@pytest.mark.parametrize("phase", ShardPhase)
def test_every_event_obeys_the_table(phase: ShardPhase) -> None:
    for kind, event in EVENTS.items():
        state, targets = shard_in(phase), TRANSITIONS[phase, kind]
        effects = state.handle(event, 0.0)
        assert effects == ([event] if targets else []), kind
        assert state.phase in (targets or {phase}), kind


def test_it_hears_the_server_and_does_not_take_a_worker_for_the_server() -> None:
    state = shard_in(ShardPhase.SERVING)
    assert state.handle(EVENTS[Ping], 10.0) == [Ping()]
    state.handle(EVENTS[Hello], 20.0)
    assert state.client.heard == 10.0


def test_an_evicted_shard_asks_for_a_slice_again() -> None:
    state = shard_in(ShardPhase.SERVING)
    effects = state.handle(Eviction(reason="another shard is gone"), 0.0)
    (asked,) = (effect.message for effect in effects if isinstance(effect, SendToServer))
    assert isinstance(asked, ShardJoin)
    assert (asked.incarnation, state.phase) == (f"{JOIN.incarnation}.1", ShardPhase.OUTSIDE)


def test_a_shard_whose_server_is_silent_ends() -> None:
    state, ends, now = shard_in(ShardPhase.SERVING), list[Exit](), 0.0
    while (due := state.deadline()) is not None:
        now, ends = due, exits(state.handle(TimePassed(), due))
    assert SILENCE_S <= now <= SILENCE_S + 5.0
    assert "has been silent for" in ends[0].reason


def sums_of(lo: int, step: int = 5) -> SumsFrame:
    return SumsFrame(step=step, lo=lo, hi=lo + 1, start=0)


def test_sums_of_several_workers_are_acknowledged_together_after_a_while() -> None:
    held = Acknowledgements()
    held.add(3, sums_of(0), 7.0, is_whole=False)
    held.add(4, sums_of(2), 7.0 + HOLD_S / 2, is_whole=False)
    assert held.due == 7.0 + HOLD_S
    assert held.take(7.0 + HOLD_S / 2) == []
    assert held.take(7.0 + HOLD_S) == [SumsAck(step=5, sums=[(3, 0, 1), (4, 2, 3)])]
    assert held.take(9.0) == []


def test_sums_are_acknowledged_at_once_if_the_tree_is_whole() -> None:
    held = Acknowledgements()
    held.add(3, sums_of(0), 7.0, is_whole=False)
    held.add(4, sums_of(1), 7.001, is_whole=True)
    assert held.take(7.001) == [SumsAck(step=5, sums=[(3, 0, 1), (4, 1, 2)])]


def test_sums_are_acknowledged_at_once_if_a_worker_may_hold_no_more() -> None:
    held = Acknowledgements()
    for rank, lo in ((3, 0), (4, 1), (3, 2)):
        assert held.take(7.0) == []
        held.add(rank, sums_of(lo), 7.0, is_whole=False)
    assert held.take(7.0) == [SumsAck(step=5, sums=[(3, 0, 1), (4, 1, 2), (3, 2, 3)])]


def test_sums_of_a_step_before_are_not_acknowledged() -> None:
    held = Acknowledgements()
    held.add(3, sums_of(0), 7.0, is_whole=False)
    held.add(4, sums_of(1, step=6), 7.001, is_whole=False)
    assert held.take(8.0) == [SumsAck(step=6, sums=[(4, 1, 2)])]

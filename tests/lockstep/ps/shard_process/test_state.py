"""What a shard decides in a run: what it adds and sends, and at which step; how it joins is the client's part."""

from itertools import product
from typing import get_args

import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Eviction, Leave, Ping, SumsFrame
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import (
    AddFromMemory,
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    InitialFrame,
    SendWeightsTo,
    ShardJoin,
    ShardReady,
    ShardWelcome,
    SquaresRequest,
    SumsAck,
    Update,
    WorkerLost,
    WorkerToShardMessage,
)
from lockstep.common.statemachine.client import ClientConfig, Exit, Prepared, SendToServer, Started
from lockstep.common.statemachine.machine import PeerLeft, Received, Send, TimePassed, kind_of
from lockstep.ps.shard_process import state as events
from lockstep.ps.shard_process.state import (
    SILENCE_S,
    TRANSITIONS,
    AddFrame,
    SendSlice,
    ShardEffect,
    ShardPhase,
    ShardState,
)
from tests.lockstep.common.statemachine.clients import exits, sent

JOIN = ShardJoin(
    protocol=PROTOCOL_VERSION, incarnation="s", host="h", pid=1, fingerprint=fingerprint(), address="tcp://h:2"
)
WELCOME = ShardWelcome(
    index=1,
    run="blue",
    job=Job(),
    options=RunOptions(servers=2),
    training_samples=64,
    test_samples=16,
    size=8192,
    parameter_size=8192,
)
ADMIT = Admit(rank=3, incarnation="life-3", shares=False)
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
        AddFromMemory(rank=3, slot=0, step=5, lo=0, hi=1),
        WorkerLost(rank=3, reason="no such file"),
        SquaresRequest(step=5, divisor=64.0),
        update_of(5),
        PeerLeft(peer=PEER, reason="its connection is gone"),
        Ping(),
        InitialFrame(name="weights", start=4096),
        Collect(steps=5),
    )
}


def shard_in(phase: ShardPhase) -> ShardState:
    """Return a shard that has come to a phase by the usual way; one that serves is at step 5."""
    state = ShardState(ClientConfig(address="tcp://h:1", join=JOIN, silence_s=SILENCE_S))
    state.handle(Started(), 0.0)
    if phase is not ShardPhase.OUTSIDE:
        state.handle(WELCOME, 0.0)
        assert state.handle(Prepared(ready=ShardReady()), 0.0) == [SendToServer(message=ShardReady())]
    if phase is ShardPhase.SERVING:
        state.handle(Begin(steps=5), 0.0)
    assert state.phase is phase
    return state


def serving() -> ShardState:
    """Return a shard that has sent worker 3 the weights of step 5."""
    state = shard_in(ShardPhase.SERVING)
    for event in (Admit, Hello):
        assert state.handle(EVENTS[event], 0.0) == []
    assert state.handle(EVENTS[SendWeightsTo], 0.0) == [SendSlice(peer=PEER)]
    return state


def test_every_phase_has_an_entry_for_every_event() -> None:
    kinds = set(get_args(events.SliceEvent)) - {Received} | set(get_args(WorkerToShardMessage))
    assert set(TRANSITIONS) == set(product(ShardPhase, kinds))
    assert set(EVENTS) == kinds


@pytest.mark.parametrize("phase", ShardPhase)
@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_in_every_phase_obeys_the_table(phase: ShardPhase, kind: type) -> None:
    state, targets = shard_in(phase), TRANSITIONS[phase, kind]
    effects = state.handle(EVENTS[kind], 0.0)
    state.validate()
    if targets:
        assert state.phase in targets
    else:
        assert (effects, state.phase) == ([], phase)


def test_sums_are_added_and_acknowledged_once_they_are_complete() -> None:
    state = serving()
    ack = SumsAck(rank=3, step=5, lo=0, hi=1)
    node = ack.node()
    received = EVENTS[SumsFrame]
    assert state.handle(received, 0.0) == [AddFrame(frame=0, node=node), SendToServer(message=ack)]
    assert state.handle(received, 0.0) == []


def test_an_update_serves_those_that_are_to_have_the_new_weights_at_once() -> None:
    state = serving()
    update = update_of(5)
    assert state.handle(update, 0.0) == [update, SendSlice(peer=PEER)]
    assert state.step == 6


@pytest.mark.parametrize(
    "event",
    [
        update_of(6),
        SquaresRequest(step=4, divisor=64.0),
    ],
)
def test_a_server_at_another_step_ends_it(event: events.SliceEvent) -> None:
    state = serving()
    effects = state.handle(event, 0.0)
    (end,) = exits(effects)
    assert (end.code, end.kind) == (1, FailureKind.PROTOCOL)
    assert isinstance(sent(effects)[0], Leave)
    assert state.phase is ShardPhase.OUTSIDE
    assert state.handle(EVENTS[Ping], 0.0) == []


def test_squares_are_those_of_the_step_at_hand() -> None:
    assert serving().handle(EVENTS[SquaresRequest], 0.0) == [SquaresRequest(step=5, divisor=64.0)]


def test_a_worker_that_fails_is_refused_and_reported() -> None:
    state = serving()
    refused, *rest = state.handle(EVENTS[PeerLeft], 0.0)
    assert isinstance(refused, Send)
    lost = WorkerLost(rank=3, reason="its connection is gone")
    assert rest == [Forget(rank=3), SendToServer(message=lost)]
    assert state.handle(EVENTS[SumsFrame], 0.0) == []


def test_a_worker_that_shares_memory_is_mapped() -> None:
    state = shard_in(ShardPhase.SERVING)
    admit = Admit(rank=4, incarnation="life-4", shares=True)
    expected: list[ShardEffect] = [admit]
    assert state.handle(admit, 0.0) == expected


def test_it_answers_pings_and_does_not_take_a_worker_for_the_server() -> None:
    state = shard_in(ShardPhase.SERVING)
    assert state.handle(EVENTS[Ping], 10.0) == [SendToServer(message=Ping())]
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

"""Which process has which slice: shards join, come back, and are lost. In virtual time."""

from dataclasses import dataclass, field
from itertools import product
from typing import get_args

import pytest

from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import PROTOCOL_VERSION, Ping, Spare
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin, ShardReady, ShardWelcome
from lockstep.common.statemachine.machine import PeerLeft, Received, Report, Send, TimePassed
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.events import PartFailed, ServersReady
from lockstep.ps.setup import open_run
from lockstep.ps.shard_group.members import (
    TRANSITIONS,
    FillShard,
    GroupPhase,
    MembersEffect,
    MembersEvent,
    ShardMembers,
)
from tests.simulation.small import digits, job_of

#: Its place is checked before it comes here.
READY = ShardReady(index=1, part="")

#: Messages of shards that the members decide on.
MESSAGES = {ShardJoin, ShardReady}

SETUP = open_run("run", job_of(model="mlp"), digits(), RunOptions(servers=3, lease_timeout=20.0))


def join_of(number: int, *, incarnation: str = "life") -> ShardJoin:
    return ShardJoin(
        protocol=PROTOCOL_VERSION,
        incarnation=f"{incarnation}-{number}",
        host="host",
        pid=number,
        fingerprint=fingerprint(),
        address=f"tcp://host:{number}",
    )


@dataclass
class Group:
    """The members of a run with three servers, and the time."""

    now: float = 0.0
    members: ShardMembers = field(init=False)

    def __post_init__(self) -> None:
        self.members = ShardMembers(SETUP.info, SETUP.shard.policy)

    def handle(self, event: MembersEvent) -> list[MembersEffect]:
        effects = self.members.handle(event, self.now)
        self.members.validate()
        return effects

    def join(self, peer: bytes, join: ShardJoin) -> list[MembersEffect]:
        return self.handle(Received(peer=peer, message=join))

    def ready(self, peer: bytes) -> list[MembersEffect]:
        return self.handle(Received(peer=peer, message=READY))

    def wait(self, seconds: float) -> list[MembersEffect]:
        effects, end = list[MembersEffect](), self.now + seconds
        while (due := self.members.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            effects += self.handle(TimePassed())
        self.now = end
        return effects

    def indices(self) -> dict[bytes, int]:
        return {peer: member.index for peer, member in self.members.members.items()}


def serving() -> Group:
    group = Group()
    for number in (1, 2):
        group.join(b"%d" % number, join_of(number))
        group.ready(b"%d" % number)
    assert group.members.phase is GroupPhase.SERVING
    return group


def kinds(effects: list[MembersEffect]) -> list[type]:
    return [type(effect.message) if isinstance(effect, Send) else type(effect) for effect in effects]


def test_every_phase_has_an_entry_for_every_event() -> None:
    assert set(TRANSITIONS) == set(product(GroupPhase, set(get_args(MembersEvent)) - {Received} | MESSAGES))


def test_shards_get_slices_as_they_come_and_are_announced_once_all_are_ready() -> None:
    group = Group()
    for number in (1, 2):
        assert kinds(group.join(b"%d" % number, join_of(number))) == [ShardWelcome, Report]
    assert group.indices() == {b"1": 1, b"2": 2}
    assert kinds(group.ready(b"2")) == [FillShard, Report]
    assert kinds(group.ready(b"1")) == [FillShard, ServersReady]
    assert group.ready(b"1") == []


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_shard_that_comes_back_replaces_its_old_connection(is_ready: bool) -> None:
    """The network was cut, and the old connection is not known to be broken."""
    group = Group()
    for number in (1, 2):
        group.join(b"old-%d" % number, join_of(number))
    if is_ready:
        group.ready(b"old-1")
    for number in (2, 1):
        effects = group.join(b"new-%d" % number, join_of(number, incarnation="later"))
        assert kinds(effects) == [ShardWelcome, Report]
    assert group.indices() == {b"new-1": 1, b"new-2": 2}
    assert group.handle(PeerLeft(peer=b"old-1", reason="its connection is gone")) == []
    assert ServersReady in kinds([*group.ready(b"new-1"), *group.ready(b"new-2")])


def test_a_shard_that_comes_back_while_the_run_goes_on_has_lost_its_slice() -> None:
    group = serving()
    *_, lost = group.join(b"new", join_of(2))
    assert isinstance(lost, PartFailed)
    assert lost.text.endswith("and its slice of the weights with it: it has joined again")
    assert group.members.phase is GroupPhase.ENDED
    assert group.join(b"new", join_of(2)) == []


def test_one_more_shard_waits_for_the_place_of_one_that_is_lost_or_for_the_end() -> None:
    group = Group()
    for number in (1, 2):
        group.join(b"%d" % number, join_of(number))
    assert kinds(group.join(b"3", join_of(3))) == [Spare]
    group.handle(PeerLeft(peer=b"1", reason="its connection is gone"))
    assert kinds(group.join(b"3", join_of(3))) == [ShardWelcome, Report]
    assert group.indices() == {b"2": 2, b"3": 1}
    for peer in (b"2", b"3"):
        group.ready(peer)
    for peer in (b"4", b"5"):
        (answer,) = group.join(peer, join_of(int(peer)))
        assert isinstance(answer, Send)
        assert isinstance(answer.message, Spare)
    group.handle(PeerLeft(peer=b"4", reason="its connection is gone"))
    told = [effect.peer for effect in group.handle(Finish()) if isinstance(effect, Send)]
    assert sorted(told) == [b"2", b"3", b"5"]


def test_a_shard_that_was_restarted_before_the_loss_is_known_waits_and_gets_its_place_when_the_run_is_resumed() -> None:
    group = serving()
    assert kinds(group.join(b"new", join_of(3))) == [Spare]
    assert PartFailed in kinds(group.handle(PeerLeft(peer=b"1", reason="its connection is gone")))
    resumed = Group()
    for peer, number in ((b"2", 2), (b"new", 3)):
        assert kinds(resumed.join(peer, join_of(number))) == [ShardWelcome, Report]


def test_a_silent_shard_is_lost_after_its_time_and_one_that_answers_is_not() -> None:
    group = serving()
    for _ in range(30):
        assert set(kinds(group.wait(1.0))) == {Ping}
        for peer in (b"1", b"2"):
            group.members.heard(peer, group.now)
    group.wait(10.0)
    group.members.heard(b"1", group.now)
    assert PartFailed in kinds(group.wait(11.0))
    assert group.members.deadline() is None


def test_shards_that_come_too_late_hear_of_the_end_unless_the_run_is_continued() -> None:
    group = serving()
    assert len(group.handle(Finish())) == 2
    assert len(group.join(b"3", join_of(3))) == 1


def test_a_run_of_one_server_waits_for_no_shards() -> None:
    info = open_run("run", job_of(), digits(), RunOptions()).info
    members = ShardMembers(info, SETUP.shard.policy)
    assert (members.phase, members.deadline()) == (GroupPhase.SERVING, None)

"""The server's shell: garbage does not stop it, time passes whatever comes, and everybody is answered."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.job.job import Job
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import (
    PROTOCOL_VERSION,
    Eviction,
    Finished,
    Join,
    Lease,
    Leave,
    Message,
    Ping,
    Ready,
    Refused,
    ServerMessage,
    Status,
    StatusRequest,
    SumsFrame,
    Welcome,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardReady, ShardWelcome, SliceFrame, ToShardMessage
from lockstep.common.transport.in_memory import MemoryClient
from lockstep.launch.client import shard_join
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.server.limits import KEPT_S
from lockstep.ps.server.server import WATCH_S
from tests.lockstep.common.protocol.test_codec import header
from tests.lockstep.common.transport.passing import PassingPort
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS, job_of

JOIN = Join(protocol=PROTOCOL_VERSION, incarnation="a", host="h", pid=1, fingerprint=fingerprint())


def heard(client: MemoryClient) -> list[Message]:
    messages = []
    while (frames := client.receive(None)) is not None:
        messages.append(decode(frames, ServerMessage)[0])
    return messages


def next_versions_join() -> list[bytes]:
    """A join as another version may send it, with a field that this one does not know."""
    return [header(type="join", protocol=2, incarnation="a", host="h", pid=1, colour="green")]


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [header(type="lease", work="train", step=0, lo=0, hi=1)],
        [header(type="ready", rank=0, part=""), b"1234"],
        next_versions_join(),
    ],
    ids=["empty", "no msgpack", "http", "a server's message", "an array too many", "another version"],
)
def test_garbage_is_answered_with_the_reason_and_the_run_goes_on(frames: list[bytes]) -> None:
    simulation = Simulation(job_of(steps=2))
    stranger = simulation.network.client()
    simulation.add_worker()
    simulation.run_to(1)
    stranger.send(frames)
    simulation.finish()
    (refused,) = heard(stranger)
    assert isinstance(refused, Refused)
    assert f"it broke protocol {PROTOCOL_VERSION}: " in refused.reason
    assert "install the same version of Lockstep on both machines" in refused.reason
    assert "\n" not in refused.reason
    assert any("refused a peer" in text for text in simulation.said)


def test_sums_of_a_wrong_length_cost_the_worker_its_place_and_the_run_goes_on() -> None:
    simulation = Simulation(job_of())
    odd = simulation.network.client()
    odd.send(encode(JOIN))
    simulation.run_until_quiet()
    (welcome,) = [message for message in heard(odd) if isinstance(message, Welcome)]
    odd.send(encode(Ready(rank=welcome.rank, part=welcome.part)))
    simulation.run_until_quiet()
    simulation.add_worker()
    odd.send(encode(SumsFrame(step=0, lo=0, hi=1, start=0), [np.zeros(3, np.float32)]))
    before = simulation.finish()
    (refused,) = [message for message in heard(odd) if isinstance(message, Refused)]
    assert "sums of 3 values: expected 7850" in refused.reason
    assert before == digest_of(job_of())


@pytest.mark.parametrize(
    ("is_offered", "fault"), [(True, "is not that of the shared memory"), (False, "it was not offered")]
)
def test_who_says_to_share_memory_and_does_not_loses_its_place(short_root: Path, is_offered: bool, fault: str) -> None:
    with Simulation(job_of(), root=short_root if is_offered else None) as simulation:
        odd = simulation.network.client()
        odd.send(encode(JOIN))
        odd.send(encode(Ready(nonce="0" * 32, rank=0, part=simulation.server.coordinator.info.part)))
        simulation.run_until_quiet()
        # Memory of another place is that of a welcome before the last one.
        (answer,) = [message for message in heard(odd) if isinstance(message, Refused | Eviction)]
        assert fault in answer.reason
        assert isinstance(answer, Eviction) == is_offered
        simulation.add_worker()
        assert simulation.finish() == digest_of(job_of())


@pytest.mark.parametrize("other", [{"rank": 1}, {"part": "another"}], ids=["rank", "part"])
def test_a_worker_that_is_ready_for_another_place_is_asked_to_join_again(other: dict[str, Any]) -> None:
    simulation = Simulation(job_of())
    odd = simulation.network.client()
    odd.send(encode(JOIN))
    simulation.run_until_quiet()
    (welcome,) = heard(odd)
    assert isinstance(welcome, Welcome)
    place = Ready(rank=welcome.rank, part=welcome.part)
    odd.send(encode(msgspec.structs.replace(place, **other)))
    simulation.run_until_quiet()
    # No lease, which it could not carry out.
    (answer,) = heard(odd)
    assert isinstance(answer, Eviction)
    odd.send(encode(msgspec.structs.replace(JOIN, incarnation="a.1")))
    simulation.run_until_quiet()
    (welcome,) = heard(odd)
    assert isinstance(welcome, Welcome)
    odd.send(encode(Ready(rank=welcome.rank, part=welcome.part)))
    simulation.run_until_quiet()
    assert Lease in map(type, heard(odd))


@pytest.mark.parametrize("other", [{"index": 2}, {"part": "another"}], ids=["index", "part"])
def test_a_shard_that_has_room_for_another_slice_is_asked_to_join_again(other: dict[str, Any]) -> None:
    simulation = Simulation(job_of(), options=RunOptions(servers=2))
    simulation.shards.pop().die()
    simulation.run_until_quiet()
    odd = simulation.network.client()
    odd.send(encode(shard_join(JOIN, "memory://odd")))
    simulation.run_until_quiet()
    (welcome,) = told_shard(odd)
    assert isinstance(welcome, ShardWelcome)
    place = ShardReady(index=welcome.index, part=welcome.part)
    odd.send(encode(msgspec.structs.replace(place, **other)))
    simulation.run_until_quiet()
    # No weights, which are those of another slice.
    assert [type(message) for message in told_shard(odd)] == [Eviction]
    odd.close()
    simulation.add_shard()
    simulation.add_worker()
    assert simulation.finish() == digest_of(job_of())


def test_what_a_shard_sends_for_a_server_of_before_counts_for_nothing() -> None:
    simulation = Simulation(job_of(), options=RunOptions(servers=2))
    simulation.shards.pop().die()
    simulation.run_until_quiet()
    late = simulation.network.client()
    # Both waited while nobody was at this address.
    late.send(encode(shard_join(JOIN, "memory://late")))
    late.send(encode(SliceFrame(name="weights", steps=1, start=0), [np.full(4096, 7.0, np.float32)]))
    simulation.run_until_quiet()
    assert [type(message) for message in told_shard(late)] == [ShardWelcome]
    late.close()
    simulation.run_until_quiet()
    simulation.add_shard()
    simulation.add_worker()
    assert simulation.finish() == digest_of(job_of())


def told_shard(client: MemoryClient) -> list[Message]:
    """Return what a shard was sent, but for what asks whether it is there."""
    messages = []
    while (frames := client.receive(None)) is not None:
        messages.append(decode(frames, ToShardMessage)[0])
    return [message for message in messages if not isinstance(message, Ping)]


def digest_of(job: Job) -> str:
    simulation = Simulation(job)
    simulation.add_worker()
    return simulation.finish()


def test_whoever_asks_gets_the_status() -> None:
    simulation = Simulation(job_of())
    observer = simulation.network.client()
    observer.send(encode(StatusRequest()))
    simulation.server.step()
    simulation.server.step()
    (status,) = heard(observer)
    assert isinstance(status, Status)
    assert status.phase == "waiting for workers"


def test_while_it_waits_it_says_for_whom() -> None:
    simulation = Simulation(job_of(), options=RunOptions(min_workers=2))
    simulation.server.step()
    assert simulation.said == ["waiting for workers: 0 of 2 are ready"]


def test_leases_run_out_although_there_is_always_a_message() -> None:
    simulation = Simulation(job_of(), options=RunOptions(lease_timeout=1.0))
    worker, chatty = simulation.add_worker(), simulation.network.client()
    simulation.run(until=lambda: simulation.server.coordinator.is_running())
    worker.process.stop()
    for _ in range(200):
        chatty.send(encode(StatusRequest()))
        simulation.server.step()
        simulation.advance(0.05)
        heard(chatty)
    assert any("leased again" in text for text in simulation.said)


def test_the_weights_that_are_sent_are_those_of_the_step() -> None:
    simulation = Simulation(job_of())
    client = simulation.network.client()
    client.send(encode(JOIN))
    simulation.run_until_quiet()
    client.send(encode(Ready(rank=0, part=simulation.server.coordinator.info.part)))
    simulation.run_until_quiet()
    arrays = {}
    while (frames := client.receive(None)) is not None:
        message, vectors = decode(frames, ServerMessage)
        if isinstance(message, Lease):
            assert message.start == 0
            arrays[message.step] = weights_digest(vectors[0])
    assert arrays == {0: simulation.server.shard.digest()}


def test_the_progress_is_looked_at_now_and_then_and_at_the_end() -> None:
    simulation = Simulation(job_of())
    server = simulation.server
    worker = simulation.add_worker()

    def work(timeout_s: float | None) -> float | None:
        simulation.advance(0.03)
        worker.runner.step()
        return timeout_s

    server.outbox.port = PassingPort(server.outbox.port, work)
    looks: list[float] = []
    assert server.run(watch=lambda: looks.append(simulation.world.now)) == Finish()
    assert looks[-1] == simulation.world.now
    assert all(later - earlier >= WATCH_S for earlier, later in pairwise(looks[:-1]))
    assert len(looks) >= 3


def test_peers_that_are_gone_at_the_end_are_no_trouble() -> None:
    simulation = Simulation(job_of(steps=1), options=RunOptions(min_workers=2))
    workers = [simulation.add_worker(), simulation.add_worker()]
    simulation.run(until=lambda: simulation.server.coordinator.round.work == "evaluate")
    idle = next(w for w in workers if not simulation.server.coordinator.leases.held_by(workers.index(w)))
    idle.die()
    simulation.finish()


def test_all_that_ask_within_a_moment_get_the_same_status_unless_a_worker_has_come_or_left() -> None:
    simulation = Simulation(job_of())
    composed, counts = list[Status](), list[int]()

    def count(status: Status) -> Status:
        composed.append(status)
        return status

    simulation.server.coordinator.hooks.statuses.append(count)
    for passed_s, joins in ((0.0, False), (KEPT_S / 2, False), (0.0, True), (KEPT_S / 2, False), (KEPT_S / 2, False)):
        simulation.advance(passed_s)
        curious = simulation.network.client()
        for message in (JOIN, StatusRequest()) if joins else (StatusRequest(),):
            curious.send(encode(message))
            while simulation.server.step():
                pass
        (status,) = [message for message in heard(curious) if isinstance(message, Status)]
        counts.append(len(status.workers))
    assert counts == [0, 0, 1, 1, 1]
    assert [len(status.workers) for status in composed] == [0, 1, 1]


def test_a_peer_that_asks_without_end_gets_one_answer_for_all_that_it_asks_within_a_moment() -> None:
    simulation = Simulation(job_of())
    greedy, modest = simulation.network.client(), simulation.network.client()
    counts = list[int]()
    for passed_s in (0.0, KEPT_S / 2, KEPT_S / 2, KEPT_S):
        simulation.advance(passed_s)
        for curious in (*[greedy] * (5 if passed_s < KEPT_S else 0), modest):
            curious.send(encode(StatusRequest()))
        while simulation.server.step():
            pass
        counts.append(len([message for message in heard(greedy) if isinstance(message, Status)]))
    assert counts == [1, 0, 1, 1], "what was asked meanwhile is answered with the next status"
    assert len([message for message in heard(modest) if isinstance(message, Status)]) == 3


def test_a_peer_that_does_not_read_loses_its_place() -> None:
    simulation = Simulation(job_of())
    silent = simulation.network.client()
    silent.send(encode(JOIN))
    for _ in range(100):
        silent.send(encode(StatusRequest()))
        simulation.run_until_quiet()
    assert any("does not read what it is sent" in text for text in simulation.said)
    silent.close()


def test_leaving_is_told_with_the_reason() -> None:
    simulation = Simulation(job_of())
    client = simulation.network.client()
    client.send(encode(JOIN))
    client.send(encode(Leave(reason="the dataset is not the server's")))
    simulation.run_until_quiet()
    assert any("left: the dataset is not the server's" in text for text in simulation.said)


def test_workers_are_told_of_the_end() -> None:
    simulation = Simulation(JOBS["linear"], options=RunOptions(min_workers=2))
    client = simulation.network.client()
    client.send(encode(JOIN))
    for _ in range(2):
        simulation.add_worker()
    simulation.finish()
    assert heard(client)[-1] == Finished(reason="")

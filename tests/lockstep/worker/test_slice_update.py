"""A worker's slice of an update, by hand: who may make it, in which memory, and what becomes of it otherwise."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.aggregation.tree import Node
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Lease, Leave, Message, Ready, Result, SliceLease, SliceResult, SumsPlace
from lockstep.ps.shared_memory.memory import ServerSharedMemory, share
from tests.lockstep.common.statemachine.clients import JOIN
from tests.lockstep.worker.test_shell import Bench
from tests.simulation.small import job_of

SIZE = 7850


class SliceBench(Bench):
    """A worker that shares memory, and a server that leases slices of the update of step 0 to it."""

    def __init__(self, root: Path) -> None:
        super().__init__(job_of(momentum=0.9))
        self.opening, self.sharing = share(self.opening, root)
        self.runner.root, self.runner.part = root, 1000
        (ready,) = self.enter()
        assert isinstance(ready, Ready)
        self.sharing.admit(0, ready.nonce)
        self.shard = self.opening.shard
        # As if micro-batches had been added by the worker, and by the server.
        self.sharing.partial_sums(0)[:] = np.linspace(-3, 3, SIZE, dtype=np.float32)

    def at(self) -> UpdateStep:
        assert self.sharing.share_update(self.shard)
        half = self.opening.info.job.micro_batches // 2
        self.shard.add(Node(0, half), self.sharing.partial_sums(0))
        self.shard.add(Node(half, 2 * half), self.sharing.sums[0][1])
        return self.shard.begin_update(0, 32, in_place=False)

    def lease(self, at: UpdateStep, start: int, stop: int, number: int = 1) -> SliceLease:
        return SliceLease(
            number=number,
            incarnation=JOIN.incarnation,
            step=0,
            start=start,
            stop=stop,
            count=at.count,
            rate=at.rate,
            scale=at.scale,
            reads=at.reads,
            terms=[SumsPlace(rank=None, slot=0), SumsPlace(rank=0, slot=1)],
            memory=self.sharing.generation,
        )

    def result(self, lease: SliceLease) -> SliceResult:
        (result,) = self.send(lease)
        assert isinstance(result, SliceResult)
        assert result.number == lease.number
        return result


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[SliceBench]:
    made = SliceBench(tmp_path)
    yield made
    made.runner.close()
    made.sharing.close()


def expected(sharing: ServerSharedMemory) -> list[bytes]:
    """Return the weights and slots that one process comes to."""
    shard = Bench(job_of(momentum=0.9)).opening.shard
    half = shard.micro_batches // 2
    shard.add(Node(0, half), sharing.partial_sums(0))
    shard.add(Node(half, 2 * half), sharing.sums[0][1])
    shard.update(0, 32)
    return [shard.weights.tobytes(), *(slot.tobytes() for slot in shard.state.values())]


def test_slices_made_by_a_worker_have_the_bits_of_one_process_even_twice(bench: SliceBench) -> None:
    at = bench.at()
    for number, (start, stop) in enumerate([(4096, SIZE), (0, 4096), (4096, SIZE)]):
        assert bench.result(bench.lease(at, start, stop, number)) == SliceResult(number=number, is_done=True)
    bench.shard.end_update(at, None)
    shard = bench.shard
    assert [shard.weights.tobytes(), *(slot.tobytes() for slot in shard.state.values())] == expected(bench.sharing)


def test_while_the_server_has_the_lock_nothing_is_made(bench: SliceBench) -> None:
    at, lock = bench.at(), bench.sharing.lock_of(0)
    assert lock.acquire()
    before = bench.shard.slots[1].copy()
    assert bench.result(bench.lease(at, 0, SIZE)) == SliceResult(number=1, is_done=False)
    assert np.array_equal(bench.shard.slots[1], before)
    lock.release()
    assert bench.result(bench.lease(at, 0, SIZE)).is_done
    assert lock.acquire()
    lock.close()


def test_a_worker_has_the_lock_until_its_slice_is_made(bench: SliceBench) -> None:
    at, lock = bench.at(), bench.sharing.lock_of(0)
    bench.port.send(bench.peer, encode(bench.lease(at, 0, SIZE)))
    for _ in range(3):
        bench.runner.step()
        assert bench.runner.state.is_updating()
    assert not lock.acquire()
    # As the system does it when a process dies.
    bench.runner.close()
    assert lock.acquire()
    lock.close()


def test_a_weight_that_is_not_finite_is_reported_by_its_place(bench: SliceBench) -> None:
    at = bench.at()
    bench.sharing.partial_sums(0)[5000] = np.inf
    assert bench.result(bench.lease(at, 4096, SIZE)).not_finite == 5000
    assert bench.result(bench.lease(at, 0, 4096)).not_finite is None


def test_sums_that_are_not_there_cannot_be_used(bench: SliceBench) -> None:
    at = bench.at()
    for terms in ([SumsPlace(rank=7, slot=0)], [SumsPlace(rank=0, slot=9)], [SumsPlace(rank=None, slot=5)]):
        lease = msgspec.structs.replace(bench.lease(at, 0, SIZE), terms=terms)
        assert bench.result(lease) == SliceResult(number=1, is_done=False)


def test_what_is_for_an_incarnation_before_is_not_made(bench: SliceBench) -> None:
    lease = msgspec.structs.replace(bench.lease(bench.at(), 0, SIZE), incarnation="before")
    assert bench.send(lease) == []


@pytest.mark.parametrize(("start", "stop"), [(0, SIZE + 1), (5, 5), (9, 5)])
def test_a_slice_that_the_vector_does_not_have_breaks_the_protocol(bench: SliceBench, start: int, stop: int) -> None:
    (left,) = bench.send(bench.lease(bench.at(), start, stop))
    assert isinstance(left, Leave)
    assert f"a slice of values {start} to {stop}" in left.reason


def computed(bench: SliceBench, memory: int) -> Message:
    (result,) = bench.send(Lease(work="evaluate", step=0, lo=0, hi=1, memory=memory))
    return result


def test_it_follows_the_weights_into_other_memory_and_makes_nothing_in_the_old(bench: SliceBench) -> None:
    old, before = bench.lease(bench.at(), 0, SIZE), computed(bench, 0)
    left = bench.shard.slots
    assert bench.sharing.move(bench.shard)
    bench.shard.weights[:] *= 0.5
    after = computed(bench, 1)
    assert isinstance(before, Result)
    assert isinstance(after, Result)
    assert before.loss_sum != after.loss_sum
    assert bench.result(old) == SliceResult(number=1, is_done=False)
    assert bench.result(bench.lease(bench.shard.begin_update(0, 32, in_place=False), 0, SIZE)).is_done
    assert not left[1].any()


def test_without_the_files_that_a_lease_names_it_joins_again(bench: SliceBench) -> None:
    bench.sharing.folder.drop("weights")
    left, joined = bench.send(Lease(work="evaluate", step=0, lo=0, hi=1, memory=1))
    assert isinstance(left, Leave)
    assert "weights cannot be opened" in left.reason
    assert type(joined).__name__ == "Join"

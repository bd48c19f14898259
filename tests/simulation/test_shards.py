"""The promise with the weights in several processes: whatever is lost on the way to one of them, the same bits."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.slices import slices_for
from lockstep.common.errors import JobError
from lockstep.common.job.job import Job
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation, digest_with
from tests.simulation.small import digits, job_of
from tests.simulation.test_frames import ACTIONS, act

#: A net whose running statistics are longer than a block, so that slices begin among them too.
STATISTICS = {
    "class": "Sequential",
    "args": [
        {"class": "Flatten"},
        {"class": "BatchNorm1d", "args": [784]},
        {"class": "Linear", "args": [784, 10]},
        {"class": "BatchNorm1d", "args": [10]},
    ],
}

#: Of five frames and more: clipped, or not; slots of the optimizer, and statistics at the borders of slices.
SHARDED = {
    "clipped": job_of(model="mlp", steps=2, global_batch=16, micro_batches=8, momentum=0.9, clip_norm=1.0),
    "plain": job_of(model="mlp", steps=3, optimizer="adam", lr=0.001),
    "statistics": job_of(model=STATISTICS, steps=4, global_batch=18, micro_batches=6, clip_norm=0.5, momentum=0.9),
    "rounded": job_of(
        model=STATISTICS, steps=4, global_batch=18, micro_batches=6, clip_norm=0.5, wire="int8", wire_weights="bfloat16"
    ),
    "small": job_of(model="linear", global_batch=19, micro_batches=5, steps=7, schedule="cosine", warmup_steps=2),
}

#: Seconds after which a lease runs out, and a shard that is silent counts as gone.
TIMEOUT_S = 5.0


@cache
def alone(name: str) -> RunResult:
    """Return the result of one process without any transport: the oracle."""
    opening = open_run("alone", SHARDED[name], digits(), AdmissionPolicy())
    recorder = MetricsRecorder(opening.info, Setting(servers=0, transport="none", started=0.0), opening.layout, None)
    return SerialRun(opening, recorder, ManualClock(), lambda status: None).train()


def most(job: Job) -> int:
    """Return the number of servers that leaves each of them one block."""
    return -(-open_run("size", job, digits(), AdmissionPolicy()).layout.size // BLOCK)


@contextmanager
def simulated(
    name: str,
    servers: int,
    *,
    seed: int = 0,
    workers: int = 1,
    root: Path | None = None,
    shards_share: bool = True,
    timeout_s: float = 60.0,
) -> Iterator[Simulation]:
    """A run with so many servers; `root` is where memory is shared."""
    admission = AdmissionPolicy(min_workers=workers, servers=servers, lease_timeout_s=timeout_s)
    with Simulation(SHARDED[name], seed, admission, root=root, shards_share=shards_share) as simulation:
        yield simulation


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("servers", [2, 3, 5])
@pytest.mark.parametrize("name", ["clipped", "plain", "statistics", "rounded"])
def test_any_number_of_servers_gives_the_bits_of_one_process(name: str, servers: int, workers: int) -> None:
    if servers <= most(SHARDED[name]):
        assert digest_with(SHARDED[name], workers, servers + workers, servers) == alone(name).weights_sha256


@pytest.mark.parametrize("name", ["statistics", "rounded", "small"])
def test_as_many_servers_as_there_are_blocks(name: str) -> None:
    assert digest_with(SHARDED[name], 2, 1, most(SHARDED[name])) == alone(name).weights_sha256


@pytest.mark.parametrize("name", SHARDED)
def test_more_servers_than_blocks_are_an_error_that_says_how_many_there_may_be(name: str) -> None:
    blocks = most(SHARDED[name])
    with pytest.raises(JobError, match=f"servers = {blocks + 1} for a model of .* expected 1 to {blocks}"):
        open_run("many", SHARDED[name], digits(), AdmissionPolicy(servers=blocks + 1))


def test_the_statistics_lie_across_slices() -> None:
    opening = open_run("cut", SHARDED["statistics"], digits(), AdmissionPolicy())
    slices = slices_for(opening.layout.size, most(SHARDED["statistics"]))
    assert any(it.start < opening.layout.parameter_size < it.stop for it in slices)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("name", ["clipped", "statistics", "rounded"])
def test_workers_and_shards_that_share_memory_give_the_same_bits(
    short_root: Path, name: str, servers: int, workers: int
) -> None:
    with simulated(name, servers, seed=servers, workers=workers, root=short_root) as simulation:
        for number in range(workers):
            simulation.add_worker(doubles=number == 1)
        assert simulation.finish() == alone(name).weights_sha256
        assert simulation.recorder.result is not None
        assert simulation.recorder.result.transport == "shm"


@pytest.mark.parametrize("seed", range(4))
def test_some_that_share_and_some_that_do_not_give_the_same_bits(short_root: Path, seed: int) -> None:
    with simulated("clipped", 3, seed=seed, workers=3, root=short_root) as simulation:
        for number in range(3):
            simulation.add_worker(shares=number % 2 == seed % 2, doubles=number == 0)
        assert simulation.finish() == alone("clipped").weights_sha256


def test_a_shard_without_the_memory_lets_all_go_over_sockets(short_root: Path) -> None:
    with simulated("clipped", 2, workers=2, root=short_root, shards_share=False) as simulation:
        simulation.shards[0].server.root = short_root / "elsewhere"
        simulation.add_worker()
        simulation.add_worker()
        assert simulation.finish() == alone("clipped").weights_sha256
        assert simulation.recorder.result is not None
        assert simulation.recorder.result.transport == "memory"
        assert "cannot be opened here" in simulation.recorder.result.obstacle
        assert any(
            "shard 1 (host host, pid 0) exchanges gradients and weights through its socket" in text
            for text in simulation.said
        )


@pytest.mark.parametrize("name", ["clipped", "statistics"])
@pytest.mark.parametrize("seed", range(4))
def test_what_arrives_twice_or_in_another_order_changes_nothing(name: str, seed: int) -> None:
    with simulated(name, 2, seed=10 + seed, workers=3) as simulation:
        for number in range(3):
            simulation.add_worker(doubles=number > 0)
        assert simulation.finish() == alone(name).weights_sha256


@pytest.mark.parametrize("servers", [2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7])
def test_a_worker_that_dies_between_the_shards_changes_nothing(parts: int, servers: int) -> None:
    with simulated("clipped", servers, seed=parts, workers=2) as simulation:
        simulation.add_worker(dies_after_parts=parts)
        simulation.add_worker()
        assert simulation.finish() == alone("clipped").weights_sha256
        assert simulation.workers[0].is_dead


@pytest.mark.parametrize("parts", [1, 3, 6, 8])
def test_what_one_shard_has_and_another_has_not_is_in_nobodys_way(parts: int) -> None:
    with simulated("clipped", 3, seed=parts, workers=2) as simulation:
        dying, other = simulation.add_worker(dies_after_parts=parts), simulation.add_worker()
        simulation.run(until=lambda: dying.is_dead)
        other.die()
        simulation.run(until=lambda: not simulation.server.coordinator.membership.members)
        # Alone, it gets all pieces in one lease: a node that covers what some shards have of others.
        simulation.add_worker()
        assert simulation.finish() == alone("clipped").weights_sha256


def test_frames_that_are_lost_on_the_way_to_one_shard_are_computed_again() -> None:
    with simulated("clipped", 2, seed=3, workers=2, timeout_s=TIMEOUT_S) as simulation:
        slow, _ = simulation.add_worker(), simulation.add_worker()
        simulation.run(until=lambda: simulation.server.coordinator.is_running())
        simulation.run(until=lambda: bool(slow.runner.state.leases) and slow.runner.state.weights_step == 0)
        # All of it is on its way; the connection to the shard breaks before that has read any.
        while slow.act() and slow.runner.state.leases:
            pass
        network = simulation.shards[0].network
        (client,) = [client for client in network.clients if client.peer == peer_at(simulation, rank=0)]
        client.up.messages.clear()
        assert simulation.finish() == alone("clipped").weights_sha256
        assert any("leased again" in text for text in simulation.said)


def peer_at(simulation: Simulation, rank: int) -> bytes:
    peer = simulation.shards[0].server.state.workers.by_rank[rank].peer
    assert peer is not None
    return peer


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 40), ACTIONS, st.integers(1, 16)), max_size=10))
def test_whatever_happens_to_workers_changes_nothing(seed: int, story: list[tuple[int, str, int]]) -> None:
    with simulated("clipped", 2 + seed % 2, seed=seed, timeout_s=TIMEOUT_S) as simulation:
        play(simulation, story)
        assert simulation.finish() == alone("clipped").weights_sha256


@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 40), ACTIONS, st.integers(1, 16)), max_size=10))
def test_whatever_happens_to_workers_that_share_changes_nothing(
    short_root: Path, seed: int, story: list[tuple[int, str, int]]
) -> None:
    with simulated("small", 2, seed=seed, timeout_s=TIMEOUT_S, root=short_root) as simulation:
        play(simulation, story)
        assert simulation.finish() == alone("small").weights_sha256


def play(simulation: Simulation, story: list[tuple[int, str, int]]) -> None:
    """Let happen to the workers what the story tells, after so many turns each; one more comes at its end."""
    simulation.add_worker()
    for turns, action, number in story:
        for _ in range(turns):
            if simulation.server.ended is None:
                simulation.turn()
        # Longer than that nobody is to be silent, or a shard would count as gone.
        if simulation.server.ended is None and action != "wait":
            act(simulation, action, number)
    simulation.add_worker()

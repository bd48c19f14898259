"""Vectors of several frames: whatever is lost, doubled or late of them, the bits are those of one process."""

from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import MetricsRecorder, Setting
from lockstep.ps.setup import AdmissionPolicy, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.runs.single_process import SerialRun
from tests.simulation.cluster import Simulation, digest_with
from tests.simulation.small import digits, job_of

#: Three frames; eight pieces, so that leases are of one, two, four or all of them.
JOB = job_of(model="mlp", steps=2, global_batch=16, micro_batches=8, momentum=0.9, clip_norm=1.0)

#: Seconds after which a lease runs out.
TIMEOUT_S = 5.0


@cache
def alone() -> str:
    """Return the digest of one process without any transport: the oracle."""
    opening = open_run("alone", JOB, digits(), AdmissionPolicy())
    recorder = MetricsRecorder(opening.info, Setting(servers=0, transport="none", started=0.0), opening.layout, None)
    return SerialRun(opening, recorder, ManualClock(), lambda status: None).train().weights_sha256


def test_the_job_takes_several_frames() -> None:
    assert len(Simulation(JOB).server.shard.frames) == 3


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_any_number_of_workers_gives_the_bits_of_one_process(workers: int) -> None:
    assert digest_with(JOB, workers, seed=workers) == alone()


@pytest.mark.parametrize("seed", range(4))
def test_frames_that_arrive_twice_change_nothing(seed: int) -> None:
    simulation = Simulation(JOB, seed, AdmissionPolicy(min_workers=2))
    simulation.add_worker(doubles=True)
    simulation.add_worker()
    assert simulation.finish() == alone()


def with_a_death(parts: int, workers: int, seed: int = 0, kind: type[Shard] = Shard) -> Simulation:
    """Return a run in which one worker dies after so many frames, and with it what it had not sent."""
    simulation = Simulation(
        JOB, seed, AdmissionPolicy(min_workers=workers), shard_of=lambda it: kind(it.slots, it.policy, it.micro_batches)
    )
    simulation.add_worker(dies_after_parts=parts)
    for _ in range(workers - 1):
        simulation.add_worker()
    return simulation


@pytest.mark.parametrize("workers", [2, 3, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_a_worker_that_dies_in_the_middle_of_a_vector_changes_nothing(parts: int, workers: int) -> None:
    simulation = with_a_death(parts, workers)
    assert simulation.finish() == alone()
    assert [worker.is_dead for worker in simulation.workers] == [True] + [False] * (workers - 1)


def abandoned(parts: int, seed: int, kind: type[Shard] = Shard) -> Simulation:
    """Return a run in which one worker dies as above, the other with it, and a third gets all in one lease."""
    simulation = with_a_death(parts, 2, seed, kind)
    simulation.run(until=lambda: simulation.workers[0].is_dead)
    simulation.workers[1].die()
    simulation.run(until=lambda: not simulation.server.coordinator.membership.members)
    simulation.add_worker()
    return simulation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parts", [1, 2, 4, 5])
def test_what_is_half_sent_is_in_nobodys_way(parts: int, seed: int) -> None:
    assert abandoned(parts, seed).finish() == alone()


@dataclass
class PartlyKnown(Shard):
    """A planted mistake: a node is refused where a part of it is known, as if all of it were."""

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        if not any(self.trees[frame].tree.covers(Node(piece, piece + 1)) for piece in range(node.lo, node.hi)):
            super().add_frame(frame, node, sums)


def test_a_tree_in_which_what_is_half_known_is_in_the_way_is_found() -> None:
    def is_found(parts: int, seed: int) -> bool:
        try:
            abandoned(parts, seed, PartlyKnown).finish()
        except KeyError:  # the tree is never whole
            return True
        return False

    assert any(is_found(parts, seed) for parts in (1, 2, 4, 5) for seed in range(4))


def test_a_worker_whose_leases_run_out_half_sent_changes_nothing() -> None:
    simulation = Simulation(JOB, 5, AdmissionPolicy(min_workers=2, lease_timeout_s=TIMEOUT_S))
    slow, _ = simulation.add_worker(), simulation.add_worker()
    simulation.run(until=lambda: simulation.server.coordinator.is_running())
    while slow.act() or slow.runner.state.weights_step is None:
        pass
    # All is on its way, of which the server takes two frames before the lease runs out.
    for _ in range(2):
        assert simulation.server.step()
    simulation.wait(TIMEOUT_S)
    assert any("leased again" in text for text in simulation.said)
    assert simulation.finish() == alone()


ACTIONS = st.sampled_from(["add", "add", "double", "die", "die", "kill", "hang", "wake", "wait"])


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(1, 40), ACTIONS, st.integers(1, 16)), max_size=10))
def test_whatever_happens_to_workers_changes_nothing(seed: int, story: list[tuple[int, str, int]]) -> None:
    simulation = Simulation(JOB, seed, AdmissionPolicy(lease_timeout_s=TIMEOUT_S))
    simulation.add_worker()
    for turns, action, number in story:
        for _ in range(turns):
            if simulation.server.ended is None:
                simulation.turn()
        if simulation.server.ended is None:
            act(simulation, action, number)
    simulation.add_worker()
    assert simulation.finish() == alone()


def act(simulation: Simulation, action: str, number: int) -> None:
    worker = simulation.workers[number % len(simulation.workers)]
    match action:
        case "add" | "double":
            simulation.add_worker(doubles=action == "double")
        case "die":
            simulation.add_worker(dies_after_parts=number)
        case "kill" if worker.can_act():
            worker.die()
        case "hang" | "wake":
            worker.is_hanging = action == "hang"
        case "wait":
            simulation.wait(TIMEOUT_S)

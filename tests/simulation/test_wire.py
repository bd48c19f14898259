"""Whatever type the wire has: any number of workers and servers, any transport, the bits of a loop in one process.

The loop rounds by definitions of its own, in the plainest way; planted mistakes are told from what is right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.aggregation.quantization import EXACT, RoundingKey
from lockstep.common.aggregation.slices import Slice
from lockstep.common.aggregation.tree import Addition, Node, Vector
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.run.progress import Moved
from lockstep.ps.setup import open_run
from lockstep.ps.shard.shard import Shard
from lockstep.worker.compute import Compute
from tests.simulation.cluster import Simulation
from tests.simulation.plain_loop import JOB, Rounding, keep, reference
from tests.simulation.simulator.oracle import RunRecords, reference_run
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import digits, job_of, noisy_net, wide_net

NAMES = ("float16", "bfloat16", "int8")


def job_with(wire: str, wire_weights: str = "float32", **values: object) -> Job:
    """Return a job whose pieces differ in size."""
    fixed = {"model": "mlp", "steps": 3, "global_batch": 17, "micro_batches": 5, "lr": 0.1, "momentum": 0.9}
    return job_of(**fixed | values, wire=wire, wire_weights=wire_weights)


def digest_of(job: Job, workers: int, kind: Callable[..., Shard] = Shard, root: Path | None = None) -> str:
    """Return the digest of a run with a shard of that kind; with as many workers as pieces, each lease is one piece."""
    parts = Parts(shard=lambda it: kind(it.slots, it.policy, it.micro_batches, rounded=it.rounded))
    with Simulation(job, 1, RunOptions(min_workers=workers), root=root, parts=parts) as simulation:
        for _ in range(workers):
            simulation.add_worker()
        return simulation.finish()


# The loop's own definitions


def to_float16(sums: Vector, step: int, node: Node) -> Vector:
    return sums.astype(np.float16).astype(np.float32)


def to_bfloat16(weights: Vector) -> Vector:
    """Round by the nearest of two neighbours, found in float64: the even one of two that are as near."""
    below = (weights.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    above = ((weights.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    left, right = (np.abs(weights.astype(np.float64) - edge) for edge in (below, above))
    is_even = weights.view(np.uint32) >> np.uint32(16) & np.uint32(1) == 0
    return np.where((left < right) | ((left == right) & is_even), below, above).astype(np.float32)


def to_int8(sums: Vector, step: int, node: Node) -> Vector:
    """Round up where what is left of a value is more than its random number lacks to one, block by block."""
    rng = generator(3, Purpose.ROUND, at=step, micro_batch=node.lo, layer=node.hi)
    words = rng.bit_generator.random_raw(-(-sums.size // 4))
    rounding = ((words.view(np.uint16)[: sums.size] | 1) / 65536).astype(np.float32)
    found = np.zeros_like(sums)
    for start in range(0, sums.size, 32):
        block = sums[start : start + 32]
        most = float(np.abs(block).max())
        if most:
            scale = np.float32(2.0 ** max(-126, math.ceil(math.log2(most / 127))))
            found[start : start + 32] = np.floor(block / scale + rounding[start : start + 32]) * scale
    return found


ROUNDINGS: dict[str, Rounding] = {
    "float32": keep,
    "float16": to_float16,
    "bfloat16": lambda sums, step, node: to_bfloat16(sums),
    "int8": to_int8,
}


#: What the loop is soon through with: for int8, where it goes block by block, a small one.
PLAIN = {
    "float32": JOB,
    **{wire: job_with(wire) for wire in ("float16", "bfloat16")},
    "int8": job_with("int8", model="linear"),
}


@pytest.mark.parametrize(
    ("wire", "workers"), [*(("float32", count) for count in (1, 3, 5)), ("float16", 1), ("bfloat16", 3), ("int8", 2)]
)
def test_a_loop_of_plain_calls_arrives_at_the_same_bits(wire: str, workers: int) -> None:
    assert digest_of(PLAIN[wire], workers) == by_plain_calls(wire)


@cache
def by_plain_calls(wire: str) -> str:
    return reference(PLAIN[wire], ROUNDINGS[wire])


def test_weights_that_are_rounded_for_workers_stay_float32_at_the_server() -> None:
    job = job_with("int8", "bfloat16", model="linear")
    assert digest_of(job, 2) == reference(job, to_int8, to_bfloat16) != by_plain_calls("int8")


def test_the_types_have_bits_of_their_own() -> None:
    exact = reference_run(job_with("float32"), digits())
    assert len({run.result.weights_sha256 for run in (exact, *map(alone, NAMES))}) == len(ROUNDINGS)


# All ways to carry a job out

#: All types, of sums and of weights; with statistics, clipping and dropout.
JOBS = {
    **{f"{wire}": job_with(wire) for wire in NAMES},
    "both": job_with("int8", "bfloat16", clip_norm=0.5, optimizer="adam", lr=0.001),
    "noisy": job_with("int8", "bfloat16", model=noisy_net(), steps=4, global_batch=18, clip_norm=0.5, max_shift=2),
    # Three frames.
    "wide": job_with("int8", model=wide_net(), steps=2),
}


@cache
def alone(name: str) -> RunRecords:
    return reference_run(JOBS[name], digits())


#: Workers, servers, and how many workers share memory: each job has two of these.
SHAPES = [(1, 1, 0), (5, 3, 0), (2, 1, 1), (2, 3, 1)]


@pytest.mark.parametrize(
    ("name", "workers", "servers", "sharing"),
    [(name, *SHAPES[(number + more) % 4]) for number, name in enumerate(JOBS) for more in (0, 3)],
)
def test_any_number_of_workers_and_servers_gives_the_bits_of_one_process(
    name: str, workers: int, servers: int, sharing: int, short_root: Path
) -> None:
    # One vector is too short to be cut.
    options = RunOptions(min_workers=workers, servers=1 if name == "noisy" else servers)
    root = short_root if sharing else None
    with Simulation(JOBS[name], workers, options, root=root) as simulation:
        for number in range(workers):
            simulation.add_worker(shares=number == 0)
        simulation.prove(alone(name))


@cache
def moved(wire: str, wire_weights: str = "float32") -> Moved:
    """Return what a step of LeNet moves between a server and two workers, by the server's counters."""
    job = job_of(model="lenet", steps=2, micro_batches=2, wire=wire, wire_weights=wire_weights)
    simulation = Simulation(job, 1, RunOptions(min_workers=2))
    simulation.add_worker()
    simulation.add_worker()
    simulation.finish()
    return simulation.result().moved


@pytest.mark.parametrize(("wire", "share"), [("float16", 0.502), ("bfloat16", 0.502), ("int8", 0.26)])
def test_sums_take_so_much_of_float32s_bytes(wire: str, share: float) -> None:
    assert 0.9 * share < moved(wire).sums / moved("float32").sums <= share
    assert moved(wire).weights == moved("float32").weights


def test_rounded_weights_take_half_of_float32s_bytes() -> None:
    assert 0.49 < moved("float32", "bfloat16").weights / moved("float32").weights <= 0.502
    assert moved("float32", "bfloat16").sums == moved("float32").sums


def gradient(wire: str) -> Vector:
    """Return the sum of LeNet's gradients over a step of eight pieces."""
    opening = open_run("alone", job_of(model="lenet", micro_batches=8, wire=wire), digits(), RunOptions())
    compute = Compute(opening.info.job, opening.model, opening.data, opening.shard.served)
    return compute.train(0, Node(0, 8))[0].copy()


@pytest.mark.parametrize(("wire", "most"), [("float16", 0.001), ("bfloat16", 0.005), ("int8", 0.03)])
def test_what_rounding_adds_to_a_gradient_is_a_small_part_of_it(wire: str, most: float) -> None:
    # Beside the batches that a gradient is drawn from it is nothing: from one to the next it differs by its own length.
    exact = gradient("float32")
    assert 0.0 < float(np.linalg.norm(gradient(wire) - exact)) < most * float(np.linalg.norm(exact))


# Planted mistakes


@dataclass
class RoundsTheWholeAlone(Shard):
    """The mistake of rounding nothing but the sum: what the server adds is not rounded until all is there."""

    def _addition(self, frame: Slice) -> Addition | None:
        wire = self.policy.wire

        def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
            is_whole = node == Node(0, self.micro_batches)
            (wire if is_whole else EXACT).add(left, right, out, RoundingKey(self.updates, node, frame.start))

        return add


@dataclass
class RoundsNothing(Shard):
    """The mistake of a server that leaves rounding to its workers."""

    def _addition(self, frame: Slice) -> Addition | None:
        return None


@dataclass
class CountsFromTheFrame(Shard):
    """The mistake of random numbers that are counted by the place in a frame: another cut, other bits."""

    def _addition(self, frame: Slice) -> Addition | None:
        wire = self.policy.wire

        def add(node: Node, left: Vector, right: Vector, out: Vector) -> None:
            wire.add(left, right, out, RoundingKey(self.updates, node, 0))

        return add


@dataclass
class ServesTheWeightsThemselves(Shard):
    """The mistake of rounding weights only where they are sent, and not where they are shared."""

    def refresh_served(self) -> None:
        for slot, served in zip(self.slots, self.served, strict=True):
            served[:] = slot

    def end_update(self, at: UpdateStep, not_finite: int | None) -> None:
        super().end_update(at, not_finite)
        self.refresh_served()


@dataclass
class MeanOfMeans(Shard):
    """A planted mistake: each result is divided by its own share of the batch, as if all shares were equal."""

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        low, high = (bound * 17 // self.micro_batches for bound in (node.lo, node.hi))
        super().add_frame(frame, node, sums / np.float32(high - low) * np.float32(len(node) * 17 / self.micro_batches))


@dataclass
class HalvesInTheMiddle(Shard):
    """A planted mistake: the tree splits in the middle and not at a power of two."""

    leaves: dict[tuple[int, int], Vector] = field(default_factory=dict)

    def add_frame(self, frame: int, node: Node, sums: Vector) -> None:
        assert len(node) == 1
        self.leaves[frame, node.lo] = sums.copy()

    def terms(self) -> list[list[Vector]]:
        for frame in range(len(self.frames)):
            super().add_frame(frame, Node(0, self.micro_batches), self._sum(frame, 0, self.micro_batches))
        return super().terms()

    def _sum(self, frame: int, lo: int, hi: int) -> Vector:
        middle = (lo + hi) // 2
        if hi - lo == 1:
            return self.leaves[frame, lo]
        return self._sum(frame, lo, middle) + self._sum(frame, middle, hi)


@pytest.mark.parametrize(
    ("mistake", "job", "workers"),
    [
        (MeanOfMeans, JOB, 5),
        (HalvesInTheMiddle, JOB, 5),
        (RoundsTheWholeAlone, JOBS["int8"], 5),
        (RoundsNothing, JOBS["int8"], 5),
        (CountsFromTheFrame, JOBS["wide"], 5),
        (ServesTheWeightsThemselves, JOBS["both"], 1),
    ],
)
def test_a_planted_mistake_has_other_bits(mistake: type[Shard], job: Job, workers: int, short_root: Path) -> None:
    root = short_root if mistake is ServesTheWeightsThemselves else None
    assert digest_of(job, workers, mistake, root) != reference_run(job, digits()).result.weights_sha256

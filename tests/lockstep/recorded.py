"""Runs that are recorded in a folder, honestly or with a lie, on data that can be loaded again."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import UpdateStep
from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.job.tally import Tally
from lockstep.common.model.port import OnFinal
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.ps.records.recorder import NO_TRANSPORT, Setting
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.shard.shard import Shard
from lockstep.runs.run_dir import trust_own
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from lockstep.worker.compute import Compute
from lockstep.worker.node_sums import MicroBatchSums, NodeSums, Vectors
from tests.lockstep.tiny_data import write_tiny
from tests.simulation.cluster import Simulation


def job_in(folder: Path, **values: Any) -> Job:
    """Write a small dataset and return a job on it: four steps an epoch, seven in all."""
    path = folder / "tiny.npz"
    if not path.exists():
        write_tiny(folder)
    defaults = {"model": "linear", "data": str(path), "global_batch": 48, "micro_batches": 4, "steps": 7, "seed": 3}
    return msgspec.convert({**defaults, **values}, Job)


@dataclass
class LyingShard(Shard):
    """Flips one bit of one weight after the update of one step."""

    bit: int = 0
    step: int = 4

    def end_update(self, at: UpdateStep, not_finite: int | None) -> None:
        super().end_update(at, not_finite)
        if at.step == self.step:
            flip(self.weights, 100, self.bit)


def flip(weights: Vector, index: int, bit: int) -> None:
    """Flip a bit of a weight in place."""
    weights.view(np.uint32)[index] ^= np.uint32(1 << bit)


def lying(bit: int, step: int = 4) -> Callable[[RunSetup], RunSetup]:
    """Return what gives an opening a shard that flips that bit."""

    def lie(opening: RunSetup) -> RunSetup:
        shard = opening.shard
        return replace(opening, shard=LyingShard(shard.slots, shard.policy, shard.micro_batches, bit=bit, step=step))

    return lie


def record_alone(
    folder: Path, job: Job, lie: Callable[[RunSetup], RunSetup] = lambda opening: opening, *, every_steps: int = 3
) -> Path:
    """Train in one process; return the run's folder."""
    opening = lie(open_run("run", job, load(job.data), RunOptions()))
    launch = RunOptions(workers=0, checkpoint_every_steps=every_steps, checkpoint_keep=9)
    destination = Destination(folder=folder / "run", options=launch)
    setting = Setting(transport=NO_TRANSPORT, started=0.0)
    trust_own(job)
    session = open_session(opening, setting, destination, ManualClock(), lambda text: None)
    SerialRun(
        opening, session.recorder, ManualClock(), lambda status: None, session.start, session.checkpointer
    ).train()
    return folder / "run"


@dataclass
class LyingLeaf:
    """What one worker computes with: a bit of a weight is wrong while it computes one micro-batch."""

    leaf: MicroBatchSums
    compute_with: Compute
    step: int
    micro_batch: int

    def compute(self, step: int, micro_batch: int, at: Vectors, on_final: OnFinal | None) -> Tally:
        is_lying = (step, micro_batch) == (self.step, self.micro_batch)
        if is_lying:
            flip(self.compute_with.slots[step % 2], 3000, 30)
        tally = self.leaf.compute(step, micro_batch, at, on_final)
        if is_lying:
            flip(self.compute_with.slots[step % 2], 3000, 30)
        return tally


@dataclass
class LyingLocalStep:
    """What one worker takes local steps with: a bit of a weight is wrong from one of them on."""

    leaf: MicroBatchSums
    step: int
    local_batch: int

    def compute(self, step: int, micro_batch: int, at: Vectors, on_final: OnFinal | None) -> Tally:
        if (step, micro_batch) == (self.step, self.local_batch):
            flip(at.weights, 3000, 22)
        return self.leaf.compute(step, micro_batch, at, on_final)


def one_by_one(nodes: NodeSums) -> NodeSums:
    """Let one micro-batch be computed after the other from now on."""
    nodes.passes = None
    return nodes


def record_with_workers(folder: Path, job: Job, workers: int, lie: tuple[int, int] | None = None) -> Path:
    """Train with as many workers as pieces, one of which lies in that step and micro-batch; return the run's folder.

    In a job with local steps, the lie is in a local batch instead.
    """
    data = load(job.data)
    options = RunOptions(workers=workers, min_workers=workers, checkpoint_keep=9)
    trust_own(job)
    simulation = Simulation(job, options=options, data=lambda: data, folder=folder / "run")
    for _ in range(workers):
        simulation.add_worker()
    simulation.run(until=simulation.server.coordinator.is_running)
    for worker in simulation.workers:
        if lie is not None and worker.runner.session is not None:
            compute = worker.runner.session.setup.compute
            if compute.local is not None:
                nodes = one_by_one(compute.local._gradients)
                nodes.leaf = LyingLocalStep(nodes.leaf, *lie)
            else:
                nodes = one_by_one(compute._nodes)
                nodes.leaf = LyingLeaf(nodes.leaf, compute, *lie)
    simulation.run()
    return folder / "run"

"""Steps that a team makes by itself, in whole runs in virtual time: the bits and records are those of one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.coordinator.parts.assembly import part_of
from lockstep.ps.coordinator.parts.multi_step import MultiStep
from lockstep.ps.coordinator.transitions import RunPhase
from tests.simulation.cluster import Simulation
from tests.simulation.seeds.planted import coordinating
from tests.simulation.simulator.oracle import RunRecords, reference_run, violations
from tests.simulation.simulator.processes import Parts
from tests.simulation.small import digits, job_of

PLAIN = job_of(steps=45, global_batch=2, micro_batches=2, momentum=0.9)
#: By what needs more than a sum and its division.
JOBS = {
    "plain": PLAIN,
    "three micro-batches": msgspec.structs.replace(PLAIN, global_batch=3, micro_batches=3),
    "one micro-batch": msgspec.structs.replace(PLAIN, micro_batches=1),
    "clipped": msgspec.structs.replace(PLAIN, clip_norm=0.05),
    "weighted": msgspec.structs.replace(PLAIN, class_weights=tuple(0.1 * n for n in range(10)), ignore_index=7),
    "grouped": msgspec.structs.replace(PLAIN, lr_factors=("*.bias=2",), ema_decay=0.9, clip_norm=0.05),
    "rounded": msgspec.structs.replace(PLAIN, wire="int8", wire_weights="bfloat16"),
}


@cache
def alone(name: str) -> RunRecords:
    return reference_run(JOBS[name], digits())


@contextmanager
def simulated(root: Path, job: Job = PLAIN, **values: Any) -> Iterator[Simulation]:
    """Yield a run with a worker that shares memory, and may make steps by itself after the first."""
    with Simulation(job, root=root, parts=Parts(coordinator=coordinating(Coordinator)), **values) as simulation:
        simulation.add_worker()
        yield simulation


def run_into_a_lease(simulation: Simulation, steps: int) -> None:
    """Act until so many steps are recorded, and the team makes more."""
    coordinator = simulation.server.coordinator
    simulation.run(until=lambda: coordinator.progress.steps >= steps and coordinator.phase is RunPhase.MULTI_STEP)
    assert simulation.server.ended is None


@pytest.mark.parametrize("name", JOBS)
def test_a_run_in_leases_of_several_steps_has_the_bits_and_records_of_one_process(short_root: Path, name: str) -> None:
    with simulated(short_root, JOBS[name]) as simulation:
        simulation.prove(alone(name))
    # But for the first and the last of each epoch.
    assert part_of(simulation.server.coordinator, MultiStep).plan.lasted >= 30
    assert list(short_root.iterdir()) == []


def test_a_worker_that_comes_meanwhile_gets_its_share(short_root: Path) -> None:
    with simulated(short_root) as simulation:
        run_into_a_lease(simulation, 5)
        simulation.add_worker(shares=False)
        simulation.prove(alone("plain"))
        computed = {
            share.rank for step in RunRecords.of(simulation.started.folder).steps.values() for share in step.shares
        }
    assert (computed, simulation.result().teams) == ({0, 1}, 2)


def test_an_interrupt_keeps_what_the_team_has_made_and_the_run_resumes_there(short_root: Path, tmp_path: Path) -> None:
    options = RunOptions(checkpoint_keep=2)
    with simulated(short_root, folder=tmp_path, options=options) as simulation:
        run_into_a_lease(simulation, 5)
        simulation.server.interrupt()
        assert simulation.server.ended == Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
        kept = simulation.server.coordinator.progress.steps
    with simulated(short_root, folder=tmp_path, options=options) as simulation:
        assert any(f"resumes after step {kept} of {PLAIN.steps}" in text for text in simulation.said)
        simulation.finish()
    assert list(violations(PLAIN, digits(), tmp_path, alone("plain"))) == []


def test_a_lease_ends_where_a_checkpoint_is_due(short_root: Path, tmp_path: Path) -> None:
    options = RunOptions(checkpoint_keep=3, checkpoint_every_steps=9)
    with simulated(short_root, folder=tmp_path, options=options) as simulation:
        simulation.prove(alone("plain"))
    kept = [path.stem for path in (tmp_path / "checkpoints").glob("*.safetensors")]
    # In the middle of the second epoch.
    assert 36 in [int(name.rpartition("-")[2]) for name in kept]

"""Audited runs over the real workers and servers: the same bits, and who computes wrongly is named."""

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.errors import FailureKind
from lockstep.common.protocol.run_options import RunOptions
from tests.simulation.cluster import Simulation
from tests.simulation.simulator.oracle import RunRecords, reference_run, violations
from tests.simulation.small import JOBS, digits, job_of


def faulty(name: str) -> TrainTest:
    """Load the data as one does whose memory loses a bit after it was checked."""
    whole = digits()
    train = whole.train
    data = TrainTest(whole.name, Dataset(train.images[:].copy(), train.labels, train.classes), whole.test)
    assert data.digest == whole.digest
    data.train.images[:].reshape(-1)[:] ^= np.uint8(4)
    return data


#: One job, its sums and weights in float32 or rounded.
WIRES = {
    "float32": JOBS["mlp"],
    "rounded": msgspec.structs.replace(JOBS["mlp"], wire="int8", wire_weights="bfloat16"),
}


@cache
def unaudited(wire: str) -> RunRecords:
    return reference_run(WIRES[wire], digits())


def simulation_of(servers: int, root: Path | None, seed: int = 1, wire: str = "float32") -> Simulation:
    options = RunOptions(min_workers=3, servers=servers, audit=1.0, lease_timeout=30.0)
    return Simulation(WIRES[wire], seed, options, root=root)


@pytest.mark.parametrize(
    ("wire", "shares", "servers"),
    [("float32", False, 1), ("float32", True, 2), ("rounded", True, 1), ("rounded", False, 2)],
)
def test_an_audited_run_comes_to_the_same_bits(short_root: Path, servers: int, shares: bool, wire: str) -> None:
    with simulation_of(servers, short_root if shares else None, wire=wire) as simulation:
        for _ in range(3):
            simulation.add_worker()
        simulation.prove(unaudited(wire))
    steps = simulation.opening.info.plan.total_steps
    assert simulation.result().audited == steps * WIRES[wire].micro_batches
    assert simulation.result().unaudited == 0


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("servers", [1, 2])
def test_a_worker_that_computes_wrongly_is_named_before_its_step_is_applied(
    short_root: Path, servers: int, shares: bool
) -> None:
    with simulation_of(servers, short_root if shares else None) as simulation:
        simulation.add_worker()
        simulation.add_worker(load=faulty)
        simulation.add_worker()
        simulation.run()
    ended = simulation.server.ended
    assert ended is not None
    assert ended.kind is FailureKind.ROLLBACK, ended
    assert ended.failure.endswith(" (host host, pid 1) computes wrongly, and is evicted")
    assert "of step 0: " in ended.failure
    assert simulation.server.shard.updates == 0


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("shares", [False, True])
def test_the_server_knows_what_is_right_if_there_is_no_third_worker(short_root: Path, wire: str, shares: bool) -> None:
    options = RunOptions(min_workers=2, audit=1.0, audit_ends=True, lease_timeout=30.0)
    with Simulation(WIRES[wire], 1, options, root=short_root if shares else None) as simulation:
        simulation.add_worker()
        simulation.add_worker(load=faulty)
        simulation.run()
    ended = simulation.server.ended
    assert ended is not None
    assert ended.kind is FailureKind.AUDIT
    assert ended.conviction is not None
    (wrong,) = ended.conviction.wrong
    assert wrong.named.endswith(" (host host, pid 1)")
    assert ended.conviction.judges[-1] == "the server"
    assert "if it is resumed, the run goes back to its beginning" in ended.failure


def test_a_server_that_is_started_again_still_knows_who_was_evicted(tmp_path: Path) -> None:
    folder, options = tmp_path / "run", RunOptions(min_workers=2, audit=1.0)
    (tmp_path / "run").mkdir()
    with Simulation(WIRES["float32"], 1, options, folder=folder) as simulation:
        simulation.add_worker()
        simulation.add_worker(load=faulty)
        simulation.run()
    options = RunOptions(min_workers=1, audit=1.0)
    with Simulation(WIRES["float32"], 1, options, folder=folder) as simulation:
        simulation.add_worker()
        liar = simulation.add_worker(load=faulty)
        simulation.finish()
        assert list(violations(simulation.job, digits(), folder, unaudited("float32"))) == []
    assert liar.runner.ended is not None
    assert "wrongly, as an audit found" in liar.runner.ended.reason
    assert (folder / "ledger.jsonl").read_text().count('"kind":"convicted"') == 1


def test_one_worker_alone_is_audited_by_nobody() -> None:
    job = job_of(steps=3)
    simulation = Simulation(job, options=RunOptions(audit=0.5))
    simulation.add_worker()
    simulation.prove(reference_run(job, digits()))
    assert simulation.result().audited == 0
    assert len([text for text in simulation.said if "cannot audit" in text]) == 1

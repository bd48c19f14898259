"""Planted workers that compute wrongly: the audit finds them, and the run ends with the weights of the honest ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, Vector
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.job.tally import Tally
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Welcome
from lockstep.common.protocol.shard_messages import ShardWelcome
from lockstep.common.statemachine.client import ClientEvent
from lockstep.worker.compute import Compute
from lockstep.worker.gradient_sink import SendBucket
from lockstep.worker.setup import Loader
from lockstep.worker.shell import WorkerShell
from tests.lockstep.ps.coordinator.parts.test_audit import steps_to_find
from tests.simulation.simulator.jobs import AUDITED, data
from tests.simulation.simulator.oracle import SimulationOutcome, simulate
from tests.simulation.simulator.processes import Parts
from tests.simulation.simulator.scenario import Scenario, scenario_of

#: Seeds that are tried, and those with `--all`.
SEEDS, MORE_SEEDS = range(8), range(40)

#: How the message of a conviction goes on.
EVICTED = "computes wrongly, and is evicted"


def faulty(number: int, name: str) -> TrainTest:
    """Load the data as one does whose memory loses bits once it has been checked: each process others."""
    whole = data(name)
    train = whole.train
    found = TrainTest(whole.name, Dataset(train.images[:].copy(), train.labels, train.classes), whole.test)
    assert found.digest == whole.digest
    found.train.images[:].reshape(-1)[:] ^= np.uint8(64 + number % 64)
    return found


def every_third(number: int) -> Loader:
    """Give one of three processes a faulty memory."""
    return partial(faulty, number) if number % 3 == 2 else data


LYING = Parts(load=every_third)


def audited(seed: int, share: float = 1.0) -> Scenario:
    # With data of their own: what workers are sent is the server's, and true.
    return replace(scenario_of(seed, workers=3, processes=1), audit=share, ships=False)


def calm(seed: int, share: float = 1.0, workers: int = 3) -> Scenario:
    return replace(
        audited(seed, share), faults=(), early_kills=(0,) * 4, workers=workers, min_workers=workers, pauses=0.0
    )


def evictions(outcome: SimulationOutcome) -> list[str]:
    return [line for line in outcome.world.trace if "reports: warning: the audit found" in line and EVICTED in line]


@pytest.mark.parametrize("seeds", [SEEDS, pytest.param(MORE_SEEDS, marks=pytest.mark.slow)], ids=len)
def test_it_is_found_among_faults_of_all_kinds(seeds: range) -> None:
    outcomes = [simulate(audited(seed), LYING, is_traced=True) for seed in seeds]
    assert sum(bool(evictions(outcome)) for outcome in outcomes) > len(seeds) / 2
    # Without another worker to audit, the bits are wrong, as they would be in all runs without an audit. Without a
    # third one, a server with a slice of the weights cannot decide: here it cannot wait for the others' slices.
    allowed = ("weights", "loss", "no worker is left that could decide")
    texts = [outcome.violations[0] for outcome in outcomes if outcome.violations]
    assert all(any(words in text for words in allowed) for text in texts), texts
    assert len(texts) < len(seeds) / 4


#: In 37, a server is stopped for so long that all leave it before it listens again.
@pytest.mark.parametrize("seeds", [(*range(4), 37), pytest.param(MORE_SEEDS, marks=pytest.mark.slow)], ids=len)
def test_without_a_fault_the_audit_objects_to_nothing(seeds: range) -> None:
    for seed in seeds:
        assert simulate(audited(seed)).violations == (), f"seed {seed}"


#: Of four workers, the process number of the one that lies, in a run with one server.
LIAR = 3

#: The share of its micro-batches about which it lies, and the share that is audited.
LIES, SHARE = 0.5, 0.05

#: Steps within which the table of docs/how-to/audit.md says that it is found, but for one run in ten thousand.
WITHIN = steps_to_find(SHARE, LIES, 8, 0.9999)


class Liar(WorkerShell):
    """Adds one to the first gradient of some micro-batches, also of those that it audits."""

    seed = 0

    def prepare(self, welcome: Welcome | ShardWelcome) -> ClientEvent:
        prepared = super().prepare(welcome)
        if self.session is not None:
            compute: Any = self.session.setup.compute
            compute.train = partial(self._train, compute, compute.train)
        return prepared

    def _train(
        self,
        compute: Compute,
        train: Callable[..., tuple[Vector, Tally]],
        step: int,
        node: Node,
        send: SendBucket | None = None,
    ) -> tuple[Vector, Tally]:
        lies = any(lies_about(self.seed, step, micro_batch) for micro_batch in range(node.lo, node.hi))

        def lying(start: int, words: Vector) -> None:
            words = words.copy()
            words[0] += lies and start == 0
            if send is not None:
                send(start, words)

        sums, tally = train(step, node, lying if send is not None else None)
        compute.into[0] += lies
        return sums, tally


def lies_about(seed: int, step: int, micro_batch: int) -> bool:
    return bool(generator(seed, Purpose.SIMULATE, at=step, micro_batch=micro_batch, layer=20).random() < LIES)


def lying(seed: int) -> Callable[[WorkerShell], WorkerShell]:
    """Return what makes one of the workers a liar."""
    kind = type("SeededLiar", (Liar,), {"seed": seed})

    def change(shell: WorkerShell) -> WorkerShell:
        if shell.state.config.join.pid == LIAR:
            shell.__class__ = kind
        return shell

    return change


def run_with_liar(seed: int, **parts: object) -> SimulationOutcome:
    calmly = replace(calm(seed, SHARE, workers=4), servers=1, slowness=(1.0,))
    scenario = replace(calmly, job=AUDITED, steps=WITHIN + 4)
    return simulate(scenario, replace(Parts(worker=lying(seed)), **parts), is_traced=True)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(100), marks=pytest.mark.slow)], ids=len)
def test_a_worker_that_lies_now_and_then_is_evicted_within_the_steps_of_the_table(seeds: range) -> None:
    for seed in seeds:
        outcome = run_with_liar(seed)
        assert outcome.violations == (), f"seed {seed}"
        (line,) = evictions(outcome)
        assert line.rpartition(EVICTED)[0].endswith(f"pid {LIAR}) "), f"seed {seed}: {line}"
        step = int(line.partition(" of step ")[2].partition(":")[0])
        assert step < WITHIN, f"seed {seed}"

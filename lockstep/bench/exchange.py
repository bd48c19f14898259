"""Bench the exchange alone: real server and worker processes, with a gradient that is filled and not computed."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.bench.baseline import Baseline
from lockstep.bench.constant_gradient import CLASSES, source_of
from lockstep.bench.reports.rows import BaselineExchange, ExchangeRow
from lockstep.bench.step import FIRST
from lockstep.bench.timed_run import WARM_UP, DigestCheck, TimedRuns, timed_run
from lockstep.common.job.job import Job
from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import Transport
from lockstep.launch.cluster import check_launch
from lockstep.runs.cost_model import BYTES_PER_PARAMETER
from lockstep.runs.job_file import resolve
from lockstep.runs.launch_config import Launch


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What to measure: every combination."""

    parameters: tuple[int, ...]
    workers: tuple[int, ...]
    transports: tuple[Transport, ...]
    servers: tuple[int, ...]
    #: Formats of sums, and the format of weights.
    wires: tuple[str, ...] = ("float32",)
    wire_weights: str = "float32"
    #: Exchanges of each combination, and the turns in which they are measured.
    steps: int = 300
    rounds: int = 3
    peer_python: Path | None = None

    def turn_steps(self) -> int:
        """Return the exchanges of one turn."""
        return -(-self.steps // self.rounds)

    def job(self, folder: Path, parameters: int, workers: int, wire: str) -> Job:
        """Return a job whose workers push one gradient each per step; write its files into the folder."""
        steps = WARM_UP + self.turn_steps()
        model, data = folder / f"filler-{parameters}.py", folder / f"blank-{workers}.npz"
        model.write_text(source_of(parameters), encoding="utf-8")
        # One sample per worker and step, all in one epoch, so that nothing is evaluated in between.
        labels = np.arange(steps * workers) % CLASSES
        blank = np.zeros((labels.size, 1), dtype=np.uint8)
        np.savez(data, x_train=blank, y_train=labels, x_test=blank[:CLASSES], y_test=labels[:CLASSES])
        values: dict[str, Any] = {
            "model": f"{model}:build",
            "data": str(data),
            "global_batch": workers,
            "micro_batches": workers,
        }
        # The baseline has no momentum, which would cost the server a pass; the rate is too small to change a weight.
        values |= {"steps": steps, "wire": wire, "wire_weights": self.wire_weights}
        job, _ = resolve({**values, "optimizer": "sgd", "momentum": 0.0, "lr": 1e-9}, {})
        return job


@dataclass
class ExchangeBench:
    """A running bench, with a folder of its own."""

    exchange: Exchange
    folder: Path
    say: Callable[[str], None]

    def rows(self) -> Iterator[ExchangeRow]:
        """Measure, and yield each row as soon as it is known."""
        exchange = self.exchange
        setups = [(servers, transport) for servers in exchange.servers for transport in exchange.transports]
        for servers, transport in setups:
            check_launch(Launch(workers=1, servers=servers, transport=transport))
        for parameters in exchange.parameters:
            for workers in exchange.workers:
                # Without checkpoints: the one at the end, of weights that do not matter, may take longer than the rest.
                launches = [
                    Launch(workers=workers, servers=servers, transport=transport, checkpoint_keep=0)
                    for servers, transport in setups
                ]
                for wire in exchange.wires:
                    yield from self._measure(parameters, launches, wire)

    def _measure(self, parameters: int, launches: list[Launch], wire: str) -> Iterator[ExchangeRow]:
        exchange, workers = self.exchange, launches[0].workers
        job, digests = exchange.job(self.folder, parameters, workers, wire), DigestCheck()
        ours: dict[Launch, TimedRuns] = {launch: TimedRuns() for launch in launches}
        theirs: list[float] = []
        version = ""
        with ExitStack() as stack:
            baseline = self._baseline(parameters, workers, stack)
            for _ in range(exchange.rounds):
                for launch, runs in ours.items():
                    result, steps = timed_run(job, launch, self.folder, self.say)
                    digests.check(job, result)
                    runs.add(result, steps)
                if baseline is not None:
                    answer = baseline.steps(FIRST + exchange.turn_steps())
                    theirs += answer.seconds[FIRST:]
                    version = answer.version
        for launch, runs in ours.items():
            yield row_of(parameters, launch, runs, theirs, version)

    def _baseline(self, parameters: int, workers: int, stack: ExitStack) -> Baseline | None:
        if self.exchange.peer_python is None:
            return None
        baseline = Baseline.start(self.exchange.peer_python, ["allreduce", str(parameters), str(workers)])
        stack.callback(baseline.close)
        baseline.steps(WARM_UP)
        return baseline


def row_of(parameters: int, launch: Launch, runs: TimedRuns, theirs: list[float], version: str) -> ExchangeRow:
    """Return the row of one launch."""
    seconds = statistics.median(runs.steady())
    volume = BYTES_PER_PARAMETER * parameters * launch.workers
    baseline = None
    if theirs:
        baseline_s = statistics.median(theirs)
        baseline = BaselineExchange(
            version=version,
            ms_per_exchange=baseline_s * 1e3,
            gb_per_s=volume / baseline_s / 1e9,
            ratio=baseline_s / seconds,
        )
    return ExchangeRow(
        parameters=parameters,
        workers=launch.workers,
        servers=launch.servers,
        transport=launch.transport,
        carrier=runs.results[-1].transport,
        wire=runs.results[-1].wire,
        wire_weights=runs.results[-1].wire_weights,
        sums_bytes=runs.results[-1].moved.sums,
        weights_bytes=runs.results[-1].moved.weights,
        cores=cores(),
        steps=len(runs.steady()),
        ms_per_exchange=seconds * 1e3,
        gb_per_s=volume / seconds / 1e9,
        split=runs.split(),
        peer=baseline,
    )

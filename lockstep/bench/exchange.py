"""Bench the exchange alone, and its formats. Server and workers are real, gradients are filled with a number.

The second bench is of the formats of quantization: adding two children of a node with rounding, packing, and unpacking.
It runs in this process on one frame. Of each turn, the fastest of many calls counts: disturbances only add time."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median_high
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from lockstep.bench import bench as options
from lockstep.bench import peers, timed_run
from lockstep.bench.bench import (
    TORCH,
    Bench,
    Panel,
    TableColumn,
    described,
    over,
    split_columns,
    split_series,
    torch_marks,
    with_torch,
)
from lockstep.bench.peers import WARM_UP, BaselineRow, Stepper
from lockstep.bench.stand_ins import Filler, write_model, write_samples
from lockstep.bench.timed_run import BenchSession, TimedRun, least_s
from lockstep.cli.options.types import whole_number
from lockstep.common.aggregation.quantization import FORMATS, RoundingKey, quantization_of
from lockstep.common.aggregation.tree import Node
from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.environment import cores
from lockstep.common.transport.transports import Transport
from lockstep.launch.cluster import check_launch
from lockstep.ps.run.progress import Split
from lockstep.runs.cost_model import BYTES_PER_PARAMETER


class ExchangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange: gradients are pushed and summed, weights are updated and pulled. Gradients are only filled."""

    parameters: Annotated[int, TableColumn("parameters ", 11, unit=" ")]
    workers: int
    servers: int
    transport: Annotated[str, over("workers over", -12)]
    carrier: str
    cores: int
    #: Formats of sums and of weights, and bytes of messages with either that crossed sockets in an exchange.
    wire: Annotated[str, TableColumn("sums", -8)]
    wire_weights: str
    sums_bytes: int
    weights_bytes: int
    #: Exchanges measured; the median one of the middle turn, and those of the fastest and of the slowest turn.
    steps: int
    ms_per_exchange: Annotated[float, TableColumn("ms", 8, ".3f")]
    ms_spread: tuple[float, float] = (0.0, 0.0)
    #: Gradients pushed and weights pulled, 8 bytes per parameter and worker whatever the formats, over that time.
    gb_per_s: Annotated[float, TableColumn("GB/s ", 8, ".2f", " ")]
    #: The baseline's all-reduce and update among as many processes.
    peer: Annotated[BaselineRow | None, TORCH]
    #: The parts of the time of an exchange, over the middle half of them; `compute_s` is the filling.
    split: Annotated[Split, *split_columns(" fill", "exch", "updt", "wait")]


@dataclass(kw_only=True)
class ExchangeBench(Bench[ExchangeRow]):
    """Time only the exchange of gradients and weights. Workers fill a gradient with a number instead of computing one.

    Server and workers are those of `lockstep train`. With --peer-python, torch's all-reduce over gloo runs in turns
    with them, with as many processes, the same filling and the same update.

    \b
      lockstep bench exchange --params 535818,25000000 --transport auto,tcp
      lockstep bench exchange --transport tcp --wire float32,float16,int8
      lockstep bench exchange --workers 2,4 --peer-python ~/torch/bin/python
    """

    name: ClassVar = "exchange"
    summary: ClassVar = "The exchange of gradients and weights alone."
    row: ClassVar = ExchangeRow

    parameters: tuple[int, ...] = options.option(
        "--params", options.Several(whole_number(1, 2**30)), "sizes of the gradient, in parameters", "535818"
    )
    workers: tuple[int, ...] = options.workers("2")
    transports: tuple[Transport, ...] = options.transports()
    servers: tuple[int, ...] = options.servers("numbers of server processes", "1")
    steps: int = options.steps("exchanges to measure", "300")
    wires: tuple[str, ...] = options.option(
        "--wire", options.Several(options.WIRES), "types in which sums of gradients travel", "float32"
    )
    wire_weights: str = options.wire_weights("float32")
    rounds: int = options.rounds()
    peer_python: Path | None = options.peer_python()

    def measure(self, session: BenchSession) -> Iterator[ExchangeRow]:
        # Without checkpoints: the one at the end, of weights that do not matter, may take longer than the rest.
        setups = [
            RunOptions(workers=1, servers=servers, transport=transport, checkpoint_keep=0)
            for servers, transport in product(self.servers, self.transports)
        ]
        for launch in setups:
            check_launch(launch)
        for parameters, workers, wire in product(self.parameters, self.workers, self.wires):
            launches = [msgspec.structs.replace(launch, workers=workers) for launch in setups]
            yield from self._measure(session, parameters, launches, wire)

    def _measure(
        self, session: BenchSession, count: int, launches: list[RunOptions], wire: str
    ) -> Iterator[ExchangeRow]:
        workers, turn = launches[0].workers, timed_run.per_turn(self.steps, self.rounds)
        job = self._job(session.folder, count, workers, wire)
        ours: dict[tuple[RunOptions, int], list[TimedRun]] = {(launch, 1): [] for launch in launches}
        arguments = ["allreduce", str(count), str(workers)]
        with ExitStack() as stack:
            baselines = peers.start_baselines(self.peer_python, arguments, stack)
            peers.in_turns(self.rounds, turn, [baselines], partial(session.run_each, job, ours))
        for (launch, _), runs in ours.items():
            yield _row(count, launch, runs, baselines)

    def _job(self, folder: Path, parameters: int, workers: int, wire: str) -> Job:
        """Return a job whose workers push one gradient each per step; write its files into the folder."""
        steps = WARM_UP + timed_run.per_turn(self.steps, self.rounds)
        # One sample per worker and step, all in one epoch, so that nothing is evaluated in between.
        samples = write_samples(folder / f"samples-{workers}.npz", steps * workers)
        return timed_run.bench_job(
            model=write_model(folder / f"filler-{parameters}.py", Filler, parameters),
            data=samples,
            global_batch=workers,
            micro_batches=workers,
            steps=steps,
            wire=wire,
            wire_weights=self.wire_weights,
            # The baseline has no momentum, which would cost the server a pass; the rate changes no weight.
            optimizer="sgd",
            momentum=0.0,
            lr=1e-9,
        )

    def advice(self, rows: Sequence[ExchangeRow]) -> str:
        return peers.ADVICE if all(row.peer is None for row in rows) else ""

    def panels(self, rows: Sequence[ExchangeRow]) -> list[list[Panel]]:
        """Return a panel per size: the parts of each exchange as a bar, and the baseline's time as a marker."""
        sizes = dict.fromkeys(row.parameters for row in rows)
        return [[_panel(size, [row for row in rows if row.parameters == size])] for size in sizes]


def _row(parameters: int, launch: RunOptions, runs: list[TimedRun], baselines: list[Stepper]) -> ExchangeRow:
    turns, result, median = [run.seconds() for run in runs], runs[-1].result, statistics.median
    seconds, volume = timed_run.middle_s(turns, median), BYTES_PER_PARAMETER * parameters * launch.workers
    return ExchangeRow(
        parameters=parameters,
        workers=launch.workers,
        servers=launch.servers,
        transport=launch.transport,
        carrier=result.transport,
        cores=cores(),
        wire=result.wire,
        wire_weights=result.wire_weights,
        sums_bytes=result.moved.sums,
        weights_bytes=result.moved.weights,
        steps=len(timed_run.all_seconds(turns)),
        ms_per_exchange=seconds * 1e3,
        ms_spread=timed_run.spread_ms(turns, median),
        gb_per_s=volume / seconds / 1e9,
        peer=peers.faster(baselines, median, turns, result.global_batch),
        split=timed_run.undisturbed_split(runs),
    )


def _panel(size: int, rows: Sequence[ExchangeRow]) -> Panel:
    texts = [f"{row.ms_per_exchange:.2f} ms, {row.gb_per_s:.1f} GB/s" for row in rows]
    return Panel(
        f"{size:,} parameters: push, sum, update, pull",
        "ms",
        [*split_series(rows), torch_marks(rows, "ms_per_step")],
        [described(row) for row in rows],
        with_torch(texts, rows),
        end=1.35,
    )


class QuantizationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A format of quantization: nanoseconds per value of the middle turn, the fastest call of each turn."""

    wire: Annotated[str, TableColumn("sums", -8)]
    values: int
    bytes_a_value: Annotated[float, TableColumn("bytes/value", 13, ".3f")]
    #: Adding two halves with rounding, packing rounded values, and unpacking them.
    add_ns: Annotated[float, TableColumn("add+round ns", 13, ".2f")]
    pack_ns: Annotated[float, TableColumn("pack ns", 9, ".2f")]
    unpack_ns: Annotated[float, TableColumn("unpack ns", 10, ".2f")]
    #: The same of the fastest and of the slowest turn.
    add_spread: tuple[float, float] = (0.0, 0.0)
    pack_spread: tuple[float, float] = (0.0, 0.0)
    unpack_spread: tuple[float, float] = (0.0, 0.0)


@dataclass(kw_only=True)
class WireBench(Bench[QuantizationRow]):
    """Time what --wire adds to a step, in nanoseconds per value.

    Each node of the tree is the rounded sum of its two halves, which one process computes. Packing and unpacking are
    for each message.

    \b
      lockstep bench wire
    """

    name: ClassVar = "wire"
    summary: ClassVar = "The formats of --wire: nanoseconds per value."
    has_plot: ClassVar = False
    row: ClassVar = QuantizationRow

    values: int = options.option("--values", whole_number(1, 2**28), "values to round", "262144")
    repeats: int = options.option("--repeats", whole_number(1), "calls in a turn, the fastest counts", "20")
    rounds: int = options.rounds("5")

    def measure(self, session: BenchSession) -> Iterator[QuantizationRow]:
        left, right = generator(0, Purpose.CANARY).standard_normal((2, self.values), dtype=np.float32)
        out, at = np.empty_like(left), RoundingKey(0, Node(0, 2))
        for name in ("float32", *FORMATS):
            quantization = quantization_of(name, 0, self.values)
            quantization.add(left, right, out, at)
            words = quantization.pack(out, 0)
            calls: tuple[Callable[[], object], ...] = (
                partial(quantization.add, left, right, out, at),
                partial(quantization.pack, out, 0),
                partial(quantization.unpack, words, 0, out),
            )
            turns = [[self._ns(call, session) for call in calls] for _ in range(self.rounds)]
            (add, pack, unpack) = (median_high(each) for each in zip(*turns, strict=True))
            spreads = [(min(each), max(each)) for each in zip(*turns, strict=True)]
            yield QuantizationRow(
                wire=name,
                values=self.values,
                bytes_a_value=words.nbytes / self.values,
                add_ns=add,
                pack_ns=pack,
                unpack_ns=unpack,
                add_spread=spreads[0],
                pack_spread=spreads[1],
                unpack_spread=spreads[2],
            )

    def _ns(self, call: Callable[[], object], session: BenchSession) -> float:
        return least_s(call, self.repeats, session.clock) / self.values * 1e9

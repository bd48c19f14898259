"""Predict the speed of many machines from measurements on one, by the cost model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Annotated, ClassVar

import click
import msgspec

from lockstep.bench import parameters as options
from lockstep.bench.bench import PARTS, Bench, Panel, Series, TableColumn, counted, heading
from lockstep.bench.measuring.timed_run import BenchSession
from lockstep.bench.scaling import ScalingBench, ScalingRow
from lockstep.cli.options.types import WholeNumber
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.runtime.environment import cores
from lockstep.ps.records.run_folder import RunResult
from lockstep.runs.cost_model import CostModel, Measured, bytes_per_parameter, fitted


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model predicts for machines with one worker or one server each."""

    #: What was measured: model, batch, transport.
    basis: str
    workers: Annotated[int, TableColumn("workers", 7)]
    servers: Annotated[int, TableColumn("servers", 8)]
    ms_per_step: Annotated[float, TableColumn("ms/step", 10, ".2f")]
    images_per_s: Annotated[float, TableColumn("images/s", 13, ",.0f")]
    #: Images/s over those of one worker with as many servers.
    speedup: Annotated[float, TableColumn("speedup", 8, ".1f", "x")]
    #: Share of a step in which the busiest link carries vectors.
    link_share: Annotated[float, TableColumn("link", 5, ".0%")]
    #: Number of workers at which a step takes twice as long as with one server per worker; None if it never does.
    saturates_at: int | None
    #: Fewest servers with which a step does not take twice as long.
    shards: Annotated[int, TableColumn("shards needed", 14)]


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The measurements behind a prediction: one job on one machine, with one or more numbers of workers."""

    name: str
    is_weak: bool
    cores: int
    points: tuple[Measured, ...]
    #: Images/s by number of workers.
    speeds: dict[int, float]


def read_basis(path: Path, model: str | None = None, batch: int | None = None) -> Basis:
    """Return the basis in a `result.json` or the rows of a scaling bench. Raises UsageError if it is neither."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RunResult | list[ScalingRow])
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror}: expected a result.json, or rows of a scaling bench"
        ) from error
    except msgspec.MsgspecError as error:
        raise FileFormatError(
            f"{str(path)!r} is neither a run's result.json nor a file of `lockstep bench scaling --to FILE`: {error}"
        ) from error
    return basis_of_rows(matching_rows(found, model, batch)) if isinstance(found, list) else basis_of_result(found)


def basis_of_result(result: RunResult) -> Basis:
    """Return the basis of a run with workers, which is assumed to have run on this machine."""
    point = Measured.of(result)
    if point is None:
        raise UsageError(
            f"run {result.run!r} has no times of an exchange (workers = {result.workers}, steps = {result.steps}): "
            "expected a run with workers and at least two steps per epoch"
        )
    name = f"{result.model}, {result.global_batch} samples a step, {result.transport}"
    speeds = {result.workers: result.images_per_s}
    return Basis(name=name, is_weak=False, cores=cores(), points=(point,), speeds=speeds)


def basis_of_rows(rows: Sequence[ScalingRow]) -> Basis:
    """Return the basis of all rows with the model, batch and transport of the first one."""
    first = rows[0]
    similar = [row for row in rows if _setup(row) == _setup(first)]
    share = "each" if first.scaling == "weak" else "in all"
    return Basis(
        name=f"{first.model}, {first.batch} samples {share}, {first.carrier}",
        is_weak=first.scaling == "weak",
        cores=first.cores,
        points=tuple(msgspec.convert(row, Measured, from_attributes=True) for row in similar),
        speeds={row.workers: row.images_per_s for row in similar},
    )


def _setup(row: ScalingRow) -> tuple[str, str, int, str, int]:
    return row.model, row.scaling, row.batch, row.transport, row.servers


def matching_rows(rows: Sequence[ScalingRow], model: str | None, batch: int | None) -> list[ScalingRow]:
    """Return the rows of a model and a batch, None for any. Raises UsageError if there are none."""
    found = [row for row in rows if model in (None, row.model) and batch in (None, row.batch)]
    if not found:
        there = ", ".join(dict.fromkeys(f"{row.model} at {row.batch}" for row in rows)) or "none"
        asked = " at ".join(str(each) for each in (model, batch) if each is not None) or "row"
        raise UsageError(f"the scaling bench did not measure {asked}: expected one of {there}")
    return found


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Rows for each number of servers and workers, and the measurements that they are predicted from."""

    basis: Basis
    #: Bytes/s of each link.
    link: float
    #: Whether a server's link is the first bottleneck, or else its work per worker.
    is_bound_by_link: bool
    #: What the model predicts for the measured machine: images/s by number of workers.
    here: dict[int, float]
    rows: list[PredictionRow]

    def link_text(self) -> str:
        """Return the speed of a link as people name it."""
        return f"{self.link * 8 / 1e9:g} Gbit/s"

    def summary(self) -> list[str]:
        """Return in words at how many workers links saturate, and how many shards avoid that."""
        lines = []
        for servers, row in {row.servers: row for row in self.rows}.items():
            name = counted(servers, "server")
            if self.is_bound_by_link:
                name = f"the {self.link_text()} link of 1 server" if servers == 1 else f"the links of {name}"
            if row.saturates_at is None:
                lines.append(f"{name} would never be a bottleneck")
            else:
                at = counted(row.saturates_at, "worker")
                lines.append(f"{name} would saturate at {at}: a step takes twice as long as with one server per worker")
        most = max(self.rows, key=lambda row: row.workers)
        lines.append(f"{most.workers} workers would need {most.shards} shards to avoid that")
        return lines


def predict(
    basis: Basis, workers: Sequence[int], servers: Sequence[int], link: float, types: tuple[str, str] | None = None
) -> Prediction:
    """Return the prediction for machines with a link of `link` bytes/s and one worker each.

    `types` are the formats of sums and weights, if they differ from those of the basis.
    """
    here = fitted(basis.points, is_weak=basis.is_weak, cores=basis.cores)
    most = 4 * max(basis.cores, *(point.workers for point in basis.points))
    model = replace(here, cores=None)
    if types is not None:
        model = replace(model, bytes_per_parameter=bytes_per_parameter(*types))
    return Prediction(
        basis=basis,
        link=link,
        is_bound_by_link=model.is_bound_by_link(link),
        here={count: here.samples_per_s(count) for count in range(1, most + 1)},
        rows=[row for count in servers for row in _rows(basis.name, model, workers, count, link)],
    )


def _rows(basis: str, model: CostModel, workers: Sequence[int], servers: int, link: float) -> Iterator[PredictionRow]:
    one = model.samples_per_s(1, servers, link)
    for count in workers:
        speed = model.samples_per_s(count, servers, link)
        yield PredictionRow(
            basis=basis,
            workers=count,
            servers=servers,
            ms_per_step=model.step_s(count, servers, link) * 1e3,
            images_per_s=speed,
            speedup=speed / one,
            link_share=model.link_share(count, servers, link),
            saturates_at=model.saturation(servers, link),
            shards=model.shards(count, link),
        )


@dataclass(kw_only=True)
class PredictBench(Bench[PredictionRow]):
    """Predict the speed of many machines with one worker each, from measurements on one machine.

    The time of a step is the slowest worker's computing, the exchange and the update. In an exchange, each worker sends
    its sums of gradients to the servers and gets the weights back: 8 bytes per parameter, or fewer with --wire, over
    links of the given speed. The time for rounding is included only if the measurement includes it.

    \b
      lockstep bench predict --model mlp
      lockstep bench predict --from runs/mine/result.json --link 10Gbit
      lockstep bench predict --from scaling.json --servers 1,8 --plot p.png
    """

    name: ClassVar = "predict"
    summary: ClassVar = "The speed that more machines would bring."
    plots_one_model: ClassVar = True
    row: ClassVar = PredictionRow
    has_heading: ClassVar = False

    workers: tuple[int, ...] = options.option(
        "--workers", options.PowersRange(WholeNumber(1)), "numbers, or FROM..TO", "1..1024"
    )
    link: float = options.option(
        "--link", options.LinkParam(), "speed of each machine's network", "1Gbit", metavar="SPEED"
    )
    servers: tuple[int, ...] = options.servers("numbers of servers", "1,4,16")
    source: Path | None = options.option(
        "--from",
        click.Path(path_type=Path),
        "result.json of a run, or rows of `lockstep bench scaling --to FILE`",
        shown="measure this machine",
        metavar="FILE",
    )
    models: tuple[str, ...] | None = options.models(
        "--model", text="models to measure, or to take from FILE", shown="lenet"
    )
    batch: int | None = options.option(
        "--batch", WholeNumber(1), "batch size per worker to measure, or to take from FILE", shown="128"
    )
    steps: int = options.steps("steps to measure", "100")
    wire: str | None = options.option(
        "--wire", options.WIRES, "type in which sums of gradients travel", shown="as measured", metavar="TYPE"
    )
    wire_weights: str | None = options.wire_weights(shown="as measured")
    #: The last one.
    prediction: Prediction = field(init=False)

    def measure(self, session: BenchSession) -> Iterator[PredictionRow]:
        types = (self.wire or "float32", self.wire_weights or "float32") if self.wire or self.wire_weights else None
        for model in self.models or (None,):
            basis = self._basis(session, model)
            self.prediction = predict(basis, self.workers, self.servers, self.link, types)
            counts = " and ".join(str(point.workers) for point in basis.points)
            of_workers = f"{counts} worker" + ("" if counts == "1" else "s")
            session.say(f"from {basis.name}, measured with {of_workers} on {basis.cores} cores")
            session.say(heading(PredictionRow))
            yield from self.prediction.rows
            for line in self.prediction.summary():
                session.say(line)

    def _basis(self, session: BenchSession, model: str | None) -> Basis:
        """Return what a prediction is made from: a file, or one worker on this machine, and two if it has the cores."""
        if self.source is not None:
            return read_basis(self.source, model, self.batch)
        bench = ScalingBench(
            models=(model or "lenet",),
            batches=(self.batch or 128,),
            workers=(1, 2) if cores() > 1 else (1,),
            micro_batches_per_worker=2,
            steps=self.steps,
            rounds=1,
        )
        return basis_of_rows(list(bench.measure(session)))

    def panels(self, rows: Sequence[PredictionRow]) -> list[list[Panel]]:
        """Return images/s and the use of links, with a curve per number of servers, and the measurements."""
        speeds, shares = list[Series](), list[Series]()
        for colour, servers in zip(cycle(PARTS), dict.fromkeys(row.servers for row in rows), strict=False):
            curve, name = [row for row in rows if row.servers == servers], counted(servers, "server")
            counts = [row.workers for row in curve]
            images, percent = [row.images_per_s for row in curve], [row.link_share * 100 for row in curve]
            speeds.append(Series(name, colour, images, "o-", counts))
            shares.append(Series("", colour, percent, "o-", counts))
            if (at := curve[0].saturates_at) is not None and at <= counts[-1]:
                name = f"{name}: saturated at {counted(at, 'worker')}"
                shares.append(Series(name, colour, [at], "-"))
        basis, here = self.prediction.basis, self.prediction.here
        machine = f"the model of one machine ({basis.cores} cores)"
        speeds += [
            Series(machine, "model", [*here.values()], "--", [*here]),
            Series("measured", "torch", [*basis.speeds.values()], "D", [*basis.speeds]),
        ]
        title = f"use of the busiest link, {self.prediction.link_text()} each"
        left = Panel(f"{basis.name}: images/s", "images/s", speeds, is_log=True)
        return [[left, Panel(title, "% of a step", shares, end=100)]]

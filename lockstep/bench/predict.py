"""Predict the speed of several hosts from measurements on one machine, by the cost model."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Annotated, ClassVar

import click
import msgspec
from msgspec.structs import replace

from lockstep.bench import bench as options
from lockstep.bench.bench import CURVES, Bench, Panel, Series, TableColumn, heading
from lockstep.bench.performance import Measurements
from lockstep.bench.scaling import VALUES, ScalingBench, ScalingRow
from lockstep.bench.timed_run import BenchSession
from lockstep.cli.options.types import whole_number
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.runtime.environment import cores
from lockstep.ps.records.run_folder import RunResult
from lockstep.results.display import counted
from lockstep.runs.cost_model import (
    BYTES_PER_PARAMETER,
    HANDLING,
    MOST_HOSTS,
    UPDATE_S,
    CostModel,
    Machines,
    Measured,
    best_line,
    bytes_per_parameter,
    fitted,
)

#: Seconds per value to fill a gradient and check it (0.15 ms for 535,818 of them), if nothing is measured: `bench
#: exchange`.
FILL_S = 0.28e-9


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True):
    """The prediction of the cost model for hosts with a team each, and a core for each process."""

    #: The measured model, batch and transport.
    basis: str
    hosts: Annotated[int, TableColumn("hosts", 5)]
    #: Processes of each host's team.
    workers: Annotated[int, TableColumn("workers each", 12)]
    servers: Annotated[int, TableColumn("servers", 7)]
    ms_per_step: Annotated[float, TableColumn("ms/step", 9, ".2f")]
    images_per_s: Annotated[float, TableColumn("images/s", 12, ",.0f")]
    #: Images/s over those of one process, which shares the server's memory.
    speedup: Annotated[float, TableColumn("speedup", 8, ".1f", "x")]
    #: Share of a step in which the busiest link carries vectors.
    link_share: Annotated[float, TableColumn("link", 5, ".0%")]
    #: Number of hosts at which a step takes twice as long as with one server per host; None if it never does.
    saturates_at: int | None
    #: Whether each host has one of the servers.
    is_spread: bool = False
    #: Fewest servers with which a step does not take twice as long.
    shards: Annotated[int, TableColumn("shards needed", 14)]


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """The basis of a prediction: a job's costs on one machine, and the measurements that they were taken from."""

    name: str
    #: Of this machine, with its cores.
    model: CostModel
    #: The machines on which it was measured, with images/s; empty if it was not.
    measured: tuple[tuple[Machines, float], ...] = ()
    #: The local steps of each micro-batch that was measured.
    local_steps: int = 1

    def source(self) -> str:
        """Return in words what it was taken from."""
        if not self.measured:
            return f"calculated for {self.name}"
        counts = list(dict.fromkeys(str(at.workers) for at, _ in self.measured))
        of_workers = f"{' and '.join(counts)} worker" + ("" if counts == ["1"] else "s")
        return f"from {self.name}, measured with {of_workers} on {self.model.cores} cores"

    def largest_team(self) -> int:
        """Return the processes of the largest team that was measured."""
        return max((round(at.team) for at, _ in self.measured), default=1)


def read_basis(
    paths: Sequence[Path], model: str | None = None, batch: int | None = None, values: int | None = None
) -> Basis:
    """Return the basis in a `result.json`, or in the rows of benches. Raises UsageError if it is neither."""
    found = [_read(path) for path in paths]
    if isinstance(found[0], RunResult):
        if len(found) > 1:
            raise UsageError(f"--from {paths[0]},…: expected one result.json, or several files of a scaling bench")
        return basis_of_result(found[0])
    rows = [row for each in found if isinstance(each, list) for row in each]
    return basis_of_rows(matching_rows(rows, model, batch, values))


def _read(path: Path) -> RunResult | list[ScalingRow]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror}: expected a result.json, or rows of a scaling bench"
        ) from error
    try:
        return msgspec.json.decode(content, type=RunResult | list[ScalingRow])
    except msgspec.MsgspecError as error:
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(content, type=Measurements).rows_of(ScalingBench.name, ScalingRow)
        raise FileFormatError(
            f"{str(path)!r} is neither a run's result.json nor a file of `lockstep bench scaling --to FILE` or "
            f"`lockstep bench all --to FILE`: {error}"
        ) from error


def basis_of_result(result: RunResult) -> Basis:
    """Return the basis of a run with workers, which is assumed to have run on this machine."""
    point = Measured.of(result)
    if point is None:
        raise UsageError(
            f"run {result.run!r} has no times of an exchange (workers = {result.workers}, steps = {result.steps}): "
            "expected a run with workers and at least two steps per epoch"
        )
    return Basis(
        name=f"{result.model}, {result.global_batch} samples a step, {result.transport}",
        model=fitted([point], cores=cores()),
        measured=((point.machines(), result.images_per_s),),
        local_steps=result.local_steps,
    )


def basis_of_rows(rows: Sequence[ScalingRow]) -> Basis:
    """Return the basis of all rows that trained what the first one did, over memory and over one kind of socket."""
    same = [row for row in rows if row.subject() == rows[0].subject()]
    first = same[0]
    ways = dict.fromkeys((row.carrier, row.servers) for row in same if not row.is_local)
    similar = [row for row in same if row.is_local or (row.carrier, row.servers) == next(iter(ways))]
    points = [msgspec.convert(row, Measured, from_attributes=True) for row in similar]
    carriers, share = dict.fromkeys(row.carrier for row in similar), "each" if first.scaling == "weak" else "in all"
    model = fitted(points, is_weak=first.scaling == "weak", cores=first.cores)
    return Basis(
        name=f"{first.short_name()}, {counted(first.batch, 'sample')} {share}, {' and '.join(carriers)}",
        model=_of_hosts(model, similar) if all(map(_is_host, similar)) else model,
        measured=tuple((point.machines(), row.images_per_s) for point, row in zip(points, similar, strict=True)),
    )


def _is_host(row: ScalingRow) -> bool:
    """Return whether each worker of a row stands for a host: it sleeps, and has a connection of its own."""
    return row.sleep_s > 0 and row.teams == row.workers and not row.is_local and row.processors is not None


def _of_hosts(model: CostModel, rows: Sequence[ScalingRow]) -> CostModel:
    """Return a model with the costs of hosts by their processor time: the time of their steps is that of few cores."""
    spent = [(row, row.processors) for row in rows if row.processors is not None]
    served = [(row.teams / row.servers, found.server_ms / 1e3 - row.split.update_s) for row, found in spent]
    latency_s, per_host_s = best_line(served)
    return replace(
        model,
        # Sending and receiving is work of the host as well.
        micro_batch_s=model.sleep_s + mean(found.leader_ms or 0.0 for _, found in spent) / 1e3,
        latency_s=latency_s,
        per_host_s=per_host_s,
        update_s=mean(row.split.update_s * row.servers for row in rows),
        jitter_s=0.0,
    )


def basis_of_sleep(values: int, sleep_s: float, batch: int) -> Basis:
    """Return the basis of a model that sleeps: nothing is measured, only bytes and known rates count."""
    model = CostModel(
        parameters=values,
        micro_batch_samples=batch,
        micro_batch_s=sleep_s + FILL_S * values,
        sleep_s=sleep_s,
        micro_batches=1,
        is_weak=True,
        per_host_s=BYTES_PER_PARAMETER * values / HANDLING,
        update_s=UPDATE_S * values,
        cores=cores(),
    )
    return Basis(name=f"{values:,} values, sleeping {sleep_s * 1e3:g} ms, {batch} samples each", model=model)


def matching_rows(
    rows: Sequence[ScalingRow], model: str | None, batch: int | None, values: int | None = None
) -> list[ScalingRow]:
    """Return the rows of a model, a batch and a size, None for any. Raises UsageError without such rows."""
    found = [
        row
        for row in rows
        if model in (None, row.model) and batch in (None, row.batch) and values in (None, row.parameters)
    ]
    if not found:
        there = ", ".join(dict.fromkeys(f"{row.short_name()} at {row.batch}" for row in rows)) or "none"
        asked = " at ".join(str(each) for each in (model, values, batch) if each is not None) or "row"
        raise UsageError(f"the scaling bench did not measure {asked}: expected one of {there}")
    return found


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Rows for each number of servers, workers and hosts, and what they are predicted from."""

    basis: Basis
    #: Bytes/s of each link.
    link: float
    #: Whether a server's link is the first bottleneck, or else its work per host.
    is_bound_by_link: bool
    #: Predictions for the measured machine, for each measured number of teams, and whether it shares memory.
    here: dict[tuple[int, bool], list[Machines]]
    rows: list[PredictionRow]
    #: For each number of workers, and of hosts if there are several: a server on each host.
    spread: list[PredictionRow]

    def link_text(self) -> str:
        """Return the speed of a link as people name it."""
        return f"{self.link * 8 / 1e9:g} Gbit/s"

    def agreement(self) -> list[str]:
        """Return the measured steps next to those that are calculated for the same machine."""
        model, lines = self.basis.model, list[str]()
        for at, speed in self.basis.measured:
            measured_s, calculated_s = model.samples(at.workers) / speed, model.step_s(at)
            workers, teams = counted(at.workers, "worker"), counted(at.hosts, "team")
            lines.append(
                f"{workers} in {teams} on {counted(model.cores or 1, 'core')}: measured "
                f"{measured_s * 1e3:.1f} ms, calculated {calculated_s * 1e3:.1f} ms "
                f"({round(100 * (calculated_s / measured_s - 1)):+d}%)"
            )
        return lines

    def summary(self) -> list[str]:
        """Return in words at how many hosts links saturate, and how many shards avoid that."""
        lines = []
        for servers, row in {row.servers: row for row in self.rows}.items():
            name = counted(servers, "server")
            if self.is_bound_by_link:
                name = f"the {self.link_text()} link of 1 server" if servers == 1 else f"the links of {name}"
            if row.saturates_at is None:
                lines.append(f"{name} would never be a bottleneck")
            else:
                at = counted(row.saturates_at, "host")
                lines.append(f"{name} would saturate at {at}: a step takes twice as long as with one server per host")
        most = max(self.rows, key=lambda row: row.hosts)
        lines.append(f"{counted(most.hosts, 'host')} would need {counted(most.shards, 'shard')} to avoid that")
        return lines


def predict(
    basis: Basis,
    hosts: Sequence[int],
    workers: Sequence[int],
    servers: Sequence[int],
    link: float,
    types: tuple[str, str] | None = None,
    local_steps: int | None = None,
) -> Prediction:
    """Return the prediction for hosts with a link of `link` bytes/s and a core for each of their `workers`.

    `types` are the formats of sums and weights, and `local_steps` those of a micro-batch, if they differ from the
    basis.
    """
    model = replace(basis.model, cores=None)
    if local_steps is not None:
        model = model.with_local_steps(local_steps, basis.local_steps)
    if types is not None:
        model = replace(model, bytes_per_parameter=bytes_per_parameter(*types))
    setups = [machines(number, each, count, link) for count in servers for each in workers for number in hosts]
    spread = [machines(number, each, number, link) for each in workers for number in hosts if number > 1]
    return Prediction(
        basis=basis,
        link=link,
        is_bound_by_link=model.is_bound_by_link(link),
        here=_here(basis),
        rows=[_row(basis.name, model, at) for at in setups],
        spread=[_row(basis.name, model, replace(at, is_spread=True)) for at in spread],
    )


def machines(hosts: int, workers: int, servers: int, link: float) -> Machines:
    """Return so many hosts with so many workers each. A single host has its server in its memory.

    Other servers have hosts of their own.
    """
    is_local = hosts == servers == 1
    return Machines(workers=hosts * workers, hosts=hosts, servers=servers, link=link, is_local=is_local)


def _here(basis: Basis) -> dict[tuple[int, bool], list[Machines]]:
    """Return the numbers of workers to predict for the measured machine, by the number of teams."""
    most = max((at.workers for at, _ in basis.measured), default=0)
    most = max(most, 4 * (basis.model.cores or 1))
    kinds = {(at.hosts, at.is_local): at for at, _ in basis.measured}
    return {
        kind: [replace(at, workers=count) for count in range(at.hosts, most + 1, at.hosts)]
        for kind, at in sorted(kinds.items())
    }


def _row(basis: str, model: CostModel, at: Machines) -> PredictionRow:
    speed, fixed = model.samples_per_s(at), replace(at, is_spread=False)
    return PredictionRow(
        basis=basis,
        hosts=at.hosts,
        workers=round(at.team),
        servers=at.servers,
        ms_per_step=model.step_s(at) * 1e3,
        images_per_s=speed,
        speedup=speed / model.samples_per_s(Machines(is_local=True)),
        link_share=model.link_share(at),
        saturates_at=model.saturation(fixed),
        is_spread=at.is_spread,
        shards=model.shards(fixed),
    )


@dataclass(kw_only=True)
class PredictBench(Bench[PredictionRow]):
    """Predict the speed of several hosts with a team of processes each, from measurements on one machine.

    The time of a step is the slowest process's computing, the adding within each team, the exchange and the update. In
    an exchange, each host sends one vector of sums to the servers and gets the weights back: 8 bytes per parameter, or
    fewer with --wire, over links of the given speed, whatever the number of its processes. A single host has its
    server in its memory and sends nothing. The time for rounding is included only if the measurement includes it.

    With --local-steps, each process takes so many steps by itself between two exchanges, of as many samples as were
    measured: a step is that much longer, and has that many times the samples.

    The last rows are for as many servers as hosts, each next to a team: `lockstep train --spread`.

    With --sleep, nothing is measured: the prediction is that for a model that sleeps, from known rates of a machine.

    \b
      lockstep bench predict --model mlp
      lockstep bench predict --hosts 1..8 --workers 1,8 --link 10Gbit
      lockstep bench predict --model mlp --link 100Mbit --local-steps 16
      lockstep bench predict --model my_net.py:build --data my.npz --link 100Mbit
      lockstep bench predict --from runs/mine/result.json --link 10Gbit
      lockstep bench predict --from scaling.json --servers 1,8 --plot p.png
    """

    name: ClassVar = "predict"
    summary: ClassVar = "The speed that more hosts would bring."
    row: ClassVar = PredictionRow
    has_heading: ClassVar = False

    hosts: tuple[int, ...] = options.option(
        "--hosts",
        options.Several(whole_number(1, MOST_HOSTS), has_ranges=True),
        "numbers of hosts, or FROM..TO",
        "1..64",
    )
    workers: tuple[int, ...] | None = options.option(
        "--workers",
        options.Several(whole_number(1, options.MOST_PROCESSES), has_ranges=True),
        "processes of each host",
        shown="as many as were measured",
    )
    link: float = options.option("--link", options.link_speed, "speed of each host's network", "1Gbit", metavar="SPEED")
    servers: tuple[int, ...] = options.servers("numbers of servers", "1,4,16")
    sources: tuple[Path, ...] | None = options.option(
        "--from",
        options.Several(click.Path(path_type=Path)),
        "result.json of a run, or a file of `lockstep bench scaling` or `bench all`",
        shown="measure this machine",
        metavar="FILES",
    )
    models: tuple[str, ...] | None = options.models(
        "--model", text="models to measure, or to take from FILES", shown="lenet"
    )
    data: str = options.option("--data", click.STRING, "data to measure with, as of train", "mnist", metavar="DATA")
    batch: int | None = options.option(
        "--batch",
        whole_number(1),
        "batch size per worker to measure, or to take from FILES",
        shown="128; with --sleep, 32",
    )
    sleep_s: float | None = options.option(
        "--sleep", options.duration, "calculate for a model that sleeps so long", metavar="TIME"
    )
    values: int | None = options.option(
        "--values", whole_number(1, 2**30), "of the model that sleeps, its size", shown="535818"
    )
    steps: int = options.steps("steps to measure", "100")
    wire: str | None = options.option(
        "--wire", options.WIRES, "type in which sums of gradients travel", shown="as measured", metavar="TYPE"
    )
    wire_weights: str | None = options.wire_weights(shown="as measured")
    local_steps: int | None = options.option(
        "--local-steps", whole_number(1), "local steps of each micro-batch", shown="as measured", metavar="H"
    )
    #: One for each model.
    predictions: list[Prediction] = field(init=False, default_factory=list)

    def measure(self, session: BenchSession) -> Iterator[PredictionRow]:
        if self.sleep_s is not None and (self.sources or self.models):
            raise UsageError("--sleep with --from or --model: nothing is measured with --sleep; remove one of the two")
        types = (self.wire or "float32", self.wire_weights or "float32") if self.wire or self.wire_weights else None
        for model in self.models or (None,):
            basis = self._basis(session, model)
            workers = self.workers or (basis.largest_team(),)
            prediction = predict(basis, self.hosts, workers, self.servers, self.link, types, self.local_steps)
            self.predictions.append(prediction)
            session.say(basis.source())
            for line in prediction.agreement():
                session.say(line)
            session.say(heading(PredictionRow))
            yield from prediction.rows
            if prediction.spread:
                session.say("with a server on each host, as of `lockstep train --spread`:")
            yield from prediction.spread
            for line in prediction.summary():
                session.say(line)

    def _basis(self, session: BenchSession, model: str | None) -> Basis:
        """Return what a prediction is made from: files, one process on this machine and a team of two, or nothing."""
        if self.sleep_s is not None:
            return basis_of_sleep(self.values or VALUES, self.sleep_s, self.batch or 32)
        if self.sources is not None:
            return read_basis(self.sources, model, self.batch, self.values)
        bench = ScalingBench(
            models=(model or "lenet",),
            data=self.data,
            batches=(self.batch or 128,),
            workers=(1, 2) if cores() > 1 else (1,),
            cuts=(2,),
            steps=self.steps,
            rounds=1,
        )
        return basis_of_rows(list(bench.rows(session)))

    def panels(self, rows: Sequence[PredictionRow]) -> list[list[Panel]]:
        """Return images/s and the use of links as calculated, and below, the measurements next to their model.

        There is a curve for each number of hosts, or for each number of processes of a host if those are fewer.
        """
        panels = list[list[Panel]]()
        for prediction in self.predictions:
            panels.append(_calculated_panels(prediction))
            if prediction.basis.measured:
                panels.append(_measured_panels(prediction))
        return panels


def _calculated_panels(prediction: Prediction) -> list[Panel]:
    speeds, shares, rows = list[Series](), list[Series](), [*prediction.rows, *prediction.spread]
    for colour, (name, curve) in zip(cycle(CURVES), _curves(rows).items(), strict=False):
        counts = [row.hosts * row.workers for row in curve]
        speeds.append(Series(name, colour, [row.images_per_s for row in curve], "o-", counts))
        shares.append(Series("", colour, [row.link_share * 100 for row in curve], "o-", counts))
    speeds.append(_ideal(prediction.basis.model, [row.hosts * row.workers for row in rows]))
    title, along = f"calculated: {prediction.basis.name}", "workers, with a core each"
    left = Panel(title, "images/s", speeds, is_log=True, along=along)
    title = f"use of the busiest link, {prediction.link_text()} each"
    return [left, Panel(title, "% of a step", shares, end=100, along=along)]


def _ideal(model: CostModel, counts: Sequence[int]) -> Series:
    """Return the images/s of one process times the number of processes."""
    ends = (min(counts), max(counts))
    one = model.samples_per_s(Machines(is_local=True))
    return Series("one process times their number", "model", [one * count for count in ends], ":", ends)


def _curves(rows: Sequence[PredictionRow]) -> dict[str, list[PredictionRow]]:
    """Return the rows of each curve by its name."""
    is_by_hosts = 1 < len({row.hosts for row in rows}) <= len({row.workers for row in rows})
    has_one = len({row.servers for row in rows}) == 1 and not any(row.is_spread for row in rows)
    curves = dict[str, list[PredictionRow]]()
    for row in rows:
        name = counted(row.hosts, "host") if is_by_hosts else f"{counted(row.workers, 'worker')} each"
        servers = "a server on each host" if row.is_spread else counted(row.servers, "server")
        curves.setdefault(name if has_one else f"{name}, {servers}", []).append(row)
    return curves


def _measured_panels(prediction: Prediction) -> list[Panel]:
    """Return images/s and the times of steps of the measured machine: measured as marks, calculated as lines."""
    basis, speeds, times = prediction.basis, list[Series](), list[Series]()
    for colour, (kind, curve) in zip(cycle(CURVES), prediction.here.items(), strict=False):
        marks = [(at.workers, speed) for at, speed in basis.measured if (at.hosts, at.is_local) == kind]
        at, name = [each.workers for each in curve], counted(kind[0], "team") + (" sharing memory" if kind[1] else "")
        done, calculated = [speed for _, speed in marks], [basis.model.samples_per_s(each) for each in curve]
        steps = [basis.model.samples(count) / speed * 1e3 for count, speed in marks]
        speeds += [
            Series(f"{name}, measured", colour, done, "D", [count for count, _ in marks]),
            Series(f"{name}, calculated", colour, calculated, "--", at),
        ]
        times += [
            Series("", colour, steps, "D", [count for count, _ in marks]),
            Series("", colour, [basis.model.step_s(each) * 1e3 for each in curve], "--", at),
        ]
    cores = counted(basis.model.cores or 1, "core")
    left = Panel(f"on the machine that was measured ({cores})", "images/s", speeds, is_log=True)
    return [left, Panel("the same: time of a step", "ms", times)]

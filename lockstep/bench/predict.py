"""Predict the speed of many machines from measurements on one, by the cost model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from lockstep.bench.reports.rows import MeasuredSpeed, Prediction, PredictionRow, ScalingRow
from lockstep.common.errors import FileFormatError, UsageError
from lockstep.common.runtime.environment import cores
from lockstep.ps.records.run_folder import RunResult
from lockstep.runs.cost_model import CostModel, Measured, bytes_per_parameter, fitted

#: Bits per byte.
BITS = 8


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The measurements behind a prediction: one job on one machine, with one or more numbers of workers."""

    name: str
    is_weak: bool
    cores: int
    points: tuple[Measured, ...]
    speeds: tuple[MeasuredSpeed, ...]

    def model(self) -> CostModel:
        """Return the costs on the measured machine."""
        return fitted(self.points, is_weak=self.is_weak, cores=self.cores)


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
    speed = MeasuredSpeed(workers=result.workers, images_per_s=result.images_per_s)
    name = f"{result.model}, {result.global_batch} samples a step, {result.transport}"
    return Basis(name=name, is_weak=False, cores=cores(), points=(point,), speeds=(speed,))


def basis_of_rows(rows: Sequence[ScalingRow]) -> Basis:
    """Return the basis of all rows with the model, batch and transport of the first one."""
    first = rows[0]
    similar = [row for row in rows if _setup(row) == _setup(first)]
    points = [
        Measured(
            workers=row.workers,
            servers=row.servers,
            micro_batches=row.micro_batches,
            global_batch=row.global_batch,
            parameters=row.parameters,
            split=row.split,
        )
        for row in similar
    ]
    share = "each" if first.scaling == "weak" else "in all"
    return Basis(
        name=f"{first.model}, {first.batch} samples {share}, {first.carrier}",
        is_weak=first.scaling == "weak",
        cores=first.cores,
        points=tuple(points),
        speeds=tuple(MeasuredSpeed(workers=row.workers, images_per_s=row.images_per_s) for row in similar),
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


def predict(
    basis: Basis, workers: Sequence[int], servers: Sequence[int], link: float, types: tuple[str, str] | None = None
) -> Prediction:
    """Return the prediction for machines with a link of `link` bytes/s and one worker each.

    `types` are the formats of sums and weights, if they differ from those of the basis.
    """
    here = basis.model()
    model = replace(here, cores=None)
    if types is not None:
        model = replace(model, bytes_per_parameter=bytes_per_parameter(*types))
    return Prediction(
        name=basis.name,
        scaling="weak" if basis.is_weak else "strong",
        link_gbit=link * BITS / 1e9,
        is_bound_by_link=model.is_bound_by_link(link),
        cores=basis.cores,
        measured=list(basis.speeds),
        here=[MeasuredSpeed(workers=count, images_per_s=here.samples_per_s(count)) for count in _worker_range(basis)],
        rows=[row for count in servers for row in _rows(basis.name, model, workers, count, link)],
    )


def _worker_range(basis: Basis) -> range:
    """Return the numbers of workers for which to predict a single machine that they share."""
    return range(1, 4 * max(basis.cores, *(point.workers for point in basis.points)) + 1)


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

"""The rows that the benches measure, one per combination, and how they are written to JSON or plotted."""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from lockstep.common.errors import RunError
from lockstep.common.files.atomic import write_atomically
from lockstep.ps.run.timing import Split


class BaselineRow(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline with as many processes in its faster memory layout, measured in turns with ours."""

    version: str
    layout: str
    #: The mean of as many steps as ours, in the middle turn.
    ms_per_step: float
    images_per_s: float
    #: Our images/s over the baseline's; above 1 if we are faster.
    ratio: float


class ScalingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by a number of workers over one transport."""

    model: str
    #: Weak: each worker has `batch` samples per step. Strong: all workers share `batch` samples.
    scaling: Literal["weak", "strong"]
    batch: int
    workers: int
    servers: int
    #: The requested transport, and the one that carried the messages.
    transport: str
    carrier: str
    global_batch: int
    micro_batches: int
    parameters: int
    #: Cores of the machine, which workers, servers and the bench share.
    cores: int
    #: Steady steps measured in all turns, and their mean in the middle turn.
    steps: int
    ms_per_step: float
    images_per_s: float
    #: Where the time of the mean step of that turn went.
    split: Split
    #: Images/s per worker over the images/s of a single worker; None if a single worker was not measured.
    of_one_worker: float | None
    #: Images/s of as many independent processes at the same time, and our share of that.
    ceiling_images_per_s: float
    of_ceiling: float
    #: Digest of the weights at the end of each run; equal for equal jobs.
    weights_sha256: str
    peer: BaselineRow | None


class StragglerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by some workers of which the last one is slow, or by the fast ones alone, or with all fast."""

    model: str
    batch: int
    micro_batches: int
    workers: int
    #: Cores of the machine, which workers, server and the bench share.
    cores: int
    case: str
    #: The slow worker's share of its full speed; 1 if all are fast, and 0 if the fast ones are alone.
    speed: float
    #: Steps measured in all turns, and their mean in the middle turn.
    steps: int
    ms_per_step: float
    images_per_s: float
    #: Images/s over those of the fast workers alone, of all workers when all are fast, and of the ideal, in which the
    #: speeds of all add up: the median of the ratios within each turn.
    of_alone: float
    of_all: float
    of_ideal: float
    #: Micro-batches that were leased and not used, over those of all steps.
    duplicates: float
    #: Micro-batches of a step that each fast worker computed, and the slow one; None if there was none.
    micro_batches_of_fast: float
    micro_batches_of_slow: float | None
    weights_sha256: str


class BaselineExchange(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline's all-reduce and update among as many processes, measured in turns with ours."""

    version: str
    ms_per_exchange: float
    gb_per_s: float
    #: The baseline's time over ours; above 1 if we are faster.
    ratio: float


class ExchangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """An exchange: gradients are pushed and summed, weights are updated and pulled. Gradients are only filled."""

    parameters: int
    workers: int
    servers: int
    transport: str
    carrier: str
    cores: int
    #: Formats of sums and of weights, and bytes of messages with either that crossed sockets in an exchange.
    wire: str
    wire_weights: str
    sums_bytes: int
    weights_bytes: int
    #: Exchanges measured, and their median.
    steps: int
    ms_per_exchange: float
    #: Gradients pushed and weights pulled, 8 bytes per parameter and worker whatever the formats, over that time.
    gb_per_s: float
    #: Where the time of an exchange went, over the middle half of them; `compute_s` is the filling.
    split: Split
    peer: BaselineExchange | None


class CoordinatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """The costs of decisions of the real coordinator with simulated workers, in virtual time."""

    workers: int
    micro_batches: int
    #: Steps made, and events handled from the first step on.
    steps: int
    events: int
    #: Seconds that the coordinator took for them, including the look at its deadline before each.
    decide_s: float
    events_per_s: float
    us_per_event: float
    ms_per_step: float
    #: Microseconds per event over those with the fewest workers; 1 if the costs do not depend on their number.
    growth: float


class QuantizationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A format of quantization: nanoseconds per value, the fastest of its turns."""

    wire: str
    values: int
    bytes_a_value: float
    #: Adding two halves with rounding, packing rounded values, and unpacking them.
    add_ns: float
    pack_ns: float
    unpack_ns: float


class MeasuredSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Images/s with a number of workers."""

    workers: int
    images_per_s: float


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model predicts for machines with one worker or one server each."""

    #: What was measured: model, batch, transport.
    basis: str
    workers: int
    servers: int
    ms_per_step: float
    images_per_s: float
    #: Images/s over those of one worker with as many servers.
    speedup: float
    #: Share of a step in which the busiest link carries vectors.
    link_share: float
    #: Number of workers at which a step takes twice as long as with one server per worker; None if it never does.
    saturates_at: int | None
    #: Fewest servers with which a step does not take twice as long.
    shards: int


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Rows for each number of servers and workers, and the measurements that they are predicted from."""

    name: str
    scaling: Literal["weak", "strong"]
    link_gbit: float
    #: Whether a server's link is the first bottleneck, or else its work per worker.
    is_bound_by_link: bool
    #: Cores of the measured machine; the speeds measured there, and what the model predicts for it.
    cores: int
    measured: list[MeasuredSpeed]
    here: list[MeasuredSpeed]
    rows: list[PredictionRow]


def write_rows(path: Path, rows: Sequence[msgspec.Struct]) -> None:
    """Write rows as one JSON list, atomically."""
    write_atomically(path, [msgspec.json.format(msgspec.json.encode(rows), indent=2), b"\n"])


class BaselineFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The baseline in its faster memory layout."""

    version: str
    layout: str
    ms_per_step: float
    peak_rss_mb: float
    #: The baseline's time over ours; above 1 if we are faster.
    ratio: float


class StepFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row: a model at a batch size."""

    model: str
    batch: int
    micro_batches: int
    #: Median over `steps` steps.
    ms_per_step: float
    steps: int
    images_per_s: float
    peak_rss_mb: float
    #: Share of the step that its unavoidable matrix products take at the peak, and that peak.
    gemm_gflops_share: float
    gemm_peak_gflops: float
    peer: BaselineFigures | None = None


def median_ms(seconds: Sequence[float]) -> float:
    """Return the median in milliseconds."""
    return statistics.median(seconds) * 1e3


def mean_ratio(rows: Sequence[StepFigures]) -> float:
    """Return the geometric mean of the baseline's times over ours."""
    return statistics.geometric_mean(row.peer.ratio for row in rows if row.peer is not None)


def plot_rows(kind: str, rows: msgspec.Struct | Sequence[msgspec.Struct], path: Path) -> None:
    """Plot rows as a PNG, in another process, since matplotlib takes half a second to load.

    Raises RunError if that fails.
    """
    command = [sys.executable, "-P", "-m", "lockstep.bench.reports.plot", kind, str(path)]
    done = subprocess.run(command, input=msgspec.json.encode(rows), capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise RunError(f"the plot {str(path)!r} could not be made: {last}")

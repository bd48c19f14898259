"""What the benches over several processes measured: one row for each combination, as written to JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from common.files.atomic import write_atomically
from ps.run.timing import Split


class BaselineRow(msgspec.Struct, frozen=True, kw_only=True):
    """The peer with as many processes, in its faster memory layout, measured in turns with ours."""

    version: str
    layout: str
    #: Median over as many steps as ours.
    ms_per_step: float
    images_per_s: float
    #: Our images/s over the peer's: above 1 where we are faster.
    ratio: float


class ScalingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model trained by so many workers in one way."""

    model: str
    #: Weak: each worker has `batch` samples of a step. Strong: all of them have `batch` together.
    scaling: Literal["weak", "strong"]
    batch: int
    workers: int
    servers: int
    #: What was asked for, and what carried the messages.
    transport: str
    carrier: str
    global_batch: int
    micro_batches: int
    parameters: int
    #: Cores of the machine, which workers, servers and whoever measures share.
    cores: int
    #: Steady steps measured, and their median.
    steps: int
    ms_per_step: float
    images_per_s: float
    #: Where the time of a step went, over the middle half of the steps.
    split: Split
    #: Images/s for each worker over those of one worker in the same way; None where one worker was not measured.
    of_one_worker: float | None
    #: Images/s of as many processes that train alone, at the same time, and share nothing; and our part of that.
    ceiling_images_per_s: float
    of_ceiling: float
    #: Of the weights at the end of each run: equal for equal jobs.
    weights_sha256: str
    peer: BaselineRow | None


class BaselineExchange(msgspec.Struct, frozen=True, kw_only=True):
    """The peer's all-reduce and update among as many processes, measured in turns with ours."""

    version: str
    ms_per_exchange: float
    gb_per_s: float
    #: The peer's time over ours: above 1 where we are faster.
    ratio: float


class ExchangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Gradients pushed, summed, the weights updated and pulled: nothing is computed but the filling of a gradient."""

    parameters: int
    workers: int
    servers: int
    transport: str
    carrier: str
    cores: int
    #: Types of sums and of weights, and bytes of messages with either that crossed sockets in an exchange.
    wire: str
    wire_weights: str
    sums_bytes: int
    weights_bytes: int
    #: Exchanges measured, and their median.
    steps: int
    ms_per_exchange: float
    #: Gradients pushed and weights pulled, 8 bytes for each parameter and worker whatever the types, by that time.
    gb_per_s: float
    #: Where the time of an exchange went, over the middle half of them; `compute_s` is the filling.
    split: Split
    peer: BaselineExchange | None


class CoordinatorRow(msgspec.Struct, frozen=True, kw_only=True):
    """The real coordinator with simulated workers, in virtual time: what its decisions cost."""

    workers: int
    micro_batches: int
    #: Steps made and events handled, from the first step on.
    steps: int
    events: int
    #: Seconds that the coordinator took for them, the reading of its deadline before each included.
    decide_s: float
    events_per_s: float
    us_per_event: float
    ms_per_step: float
    #: Microseconds of an event over those with the fewest workers: 1 where an event costs the same for any number.
    growth: float


class WireRow(msgspec.Struct, frozen=True, kw_only=True):
    """A type of the wire: nanoseconds a value, each the least of its turns."""

    wire: str
    values: int
    bytes_a_value: float
    #: To add two halves and round, to pack rounded values, and to unpack them.
    add_ns: float
    pack_ns: float
    unpack_ns: float


class MeasuredSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Images/s with a number of workers."""

    workers: int
    images_per_s: float


class PredictionRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the cost model says of machines with a worker each, and servers with machines of their own."""

    workers: int
    servers: int
    ms_per_step: float
    images_per_s: float
    #: Images/s over those of one worker with as many servers.
    speedup: float
    #: Part of a step in which the busiest link carries vectors.
    link_share: float
    #: Number of workers from which on a step takes twice as long as with a server for each; None where no number does.
    saturates_at: int | None
    #: Fewest servers with which a step of so many workers does not take twice as long.
    shards: int


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Rows for each number of servers and of workers, beside what they are predicted from."""

    name: str
    scaling: Literal["weak", "strong"]
    link_gbit: float
    #: Whether a server's link is what gets in the way first, or else what a server does for each worker.
    is_bound_by_link: bool
    #: Cores of the machine that was measured; what was measured there, and what the model says of it.
    cores: int
    measured: list[MeasuredSpeed]
    here: list[MeasuredSpeed]
    rows: list[PredictionRow]


def write_rows(path: Path, rows: Sequence[msgspec.Struct]) -> None:
    """Write rows as one JSON list, whole or not at all."""
    write_atomically(path, [msgspec.json.format(msgspec.json.encode(rows), indent=2), b"\n"])

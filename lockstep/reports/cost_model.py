"""What a step would take with other workers, other servers and another link, from what it took as measured. Pure.

A step is: the slowest worker computes its pieces, sums and weights are exchanged, the server updates. Nothing of this
overlaps here, so that what hides an exchange behind computing can only make it better than predicted.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.aggregation.quantization.quantization import bytes_per_value
from ps.run.timing import Split

#: Bytes that cross the server's link for one worker and one parameter: a float32 of sums in, one of weights out.
BYTES_PER_PARAMETER = 8.0

#: Most workers that are looked through for the point at which a link saturates.
MOST_WORKERS = 65_536


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run whose steps were timed."""

    workers: int
    servers: int
    micro_batches: int
    global_batch: int
    #: Values in a gradient.
    parameters: int
    split: Split
    #: As `bytes_per_parameter` says it of the types on the wire.
    bytes_per_parameter: float = BYTES_PER_PARAMETER


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The costs of a step, in seconds."""

    parameters: int
    #: Samples of one micro-batch, and what one worker with a core of its own computes for it.
    piece_samples: float
    piece_s: float
    #: Micro-batches of a step: in all, or for each worker where `is_weak`.
    pieces: float
    #: Whether the step grows with the workers (weak scaling), or is the same for any number (strong scaling).
    is_weak: bool
    #: Parts of an exchange: what it takes at least, and what one server takes for each worker.
    latency_s: float
    per_worker_s: float
    #: One server's update of all weights.
    update_s: float
    #: What the slowest of several workers takes longer than its share of the pieces explains.
    jitter_s: float
    #: Cores that all workers share; None where each worker has one.
    cores: int | None = None
    #: What crosses a link for one worker, in and out.
    bytes_per_parameter: float = BYTES_PER_PARAMETER

    def samples(self, workers: int) -> float:
        """Return the samples of a step."""
        return self._pieces(workers) * self.piece_samples

    def _pieces(self, workers: int) -> float:
        return self.pieces * workers if self.is_weak else self.pieces

    def compute_s(self, workers: int) -> float:
        """Return the seconds until the slowest worker is done."""
        pieces = self._pieces(workers)
        # A piece is not divided: of 8 pieces the slowest of 3 workers has 3.
        share = self.pieces if self.is_weak else -(-pieces // workers)
        if self.cores is not None:
            share = max(share, pieces / self.cores)
        return self.piece_s * share + (self.jitter_s if workers > 1 else 0.0)

    def link_s(self, workers: int, servers: int, link: float) -> float:
        """Return the seconds for which the busiest link is in use; each machine's has `link` bytes/s each way.

        Pushing comes before pulling, so that both directions count although a link has both at once.
        """
        # A worker's own link carries the whole vector, whatever the number of servers.
        return self.bytes_per_parameter * self.parameters * max(1.0, workers / servers) / link

    def exchange_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the seconds of an exchange; `link` None stands for what was measured on one machine."""
        handling = self.per_worker_s * workers / servers
        # A server adds what has come while the rest is on its way: the slower of the two counts.
        return self.latency_s + (handling if link is None else max(handling, self.link_s(workers, servers, link)))

    def step_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the seconds of a step."""
        return self.compute_s(workers) + self.exchange_s(workers, servers, link) + self.update_s / servers

    def samples_per_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the training samples a second."""
        return self.samples(workers) / self.step_s(workers, servers, link)

    def link_share(self, workers: int, servers: int, link: float) -> float:
        """Return the share of a step for which the busiest link carries bytes."""
        return self.link_s(workers, servers, link) / self.step_s(workers, servers, link)

    def slowdown(self, workers: int, servers: int, link: float | None = None) -> float:
        """Return how much longer a step takes than it would with a server for each worker."""
        return self.step_s(workers, servers, link) / self.step_s(workers, workers, link)

    def saturation(self, servers: int, link: float | None = None) -> int | None:
        """Return the number of workers from which on the servers make a step take twice as long as it need, or longer.

        None where no number does: neither the servers' links nor what they do for each worker is ever in the way.
        """
        numbers = range(1, MOST_WORKERS + 1)
        place = bisect_left(numbers, True, key=lambda workers: self.slowdown(workers, servers, link) >= 2.0)
        return numbers[place] if place < len(numbers) else None

    def shards(self, workers: int, link: float | None = None) -> int:
        """Return the fewest servers with which a step does not take twice as long as with one for each worker."""
        numbers = range(1, workers + 1)
        return numbers[bisect_left(numbers, True, key=lambda servers: self.slowdown(workers, servers, link) < 2.0)]

    def is_bound_by_link(self, link: float) -> bool:
        """Tell whether a server's link and not the server itself is what gets in the way first."""
        return self.bytes_per_parameter * self.parameters / link > self.per_worker_s


def bytes_per_parameter(wire: str, wire_weights: str) -> float:
    """Return the bytes that cross the server's link for one worker and one parameter: sums in, weights out."""
    return bytes_per_value(wire) + bytes_per_value(wire_weights)


def fitted(points: Sequence[Measured], *, is_weak: bool = False, cores: int | None = None) -> CostModel:
    """Return the model of what was measured, at one or more numbers of workers that shared so many cores.

    The point with most workers tells what a piece and an update cost. Of an exchange measured at several numbers of
    workers, a straight line tells what grows with them; with one number all of it is taken to grow.
    """
    most = max(points, key=lambda point: point.workers)
    busy = min(most.workers, most.micro_batches)
    crowd = 1.0 if cores is None else max(1.0, busy / cores)
    piece_s = most.split.compute_s * busy / most.micro_batches / crowd
    latency_s, per_worker_s = _line([(p.workers / p.servers, max(0.0, p.split.exchange_s)) for p in points])
    pieces = most.micro_batches / most.workers if is_weak else float(most.micro_batches)
    model = CostModel(
        parameters=most.parameters,
        piece_samples=most.global_batch / most.micro_batches,
        piece_s=piece_s,
        pieces=pieces,
        is_weak=is_weak,
        latency_s=latency_s,
        per_worker_s=per_worker_s,
        update_s=most.split.update_s * most.servers,
        jitter_s=0.0,
        cores=cores,
        bytes_per_parameter=most.bytes_per_parameter,
    )
    slowest_s = most.split.compute_s + most.split.waiting_s
    jitter_s = max(0.0, slowest_s - model.compute_s(most.workers)) if most.workers > 1 else 0.0
    return replace(model, jitter_s=jitter_s)


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the constant and the slope, neither below zero, of the line that fits best."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    through_zero = sum(x * y for x, y in points) / sum(x * x for x, _ in points)
    if not spread:
        return 0.0, through_zero
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    constant = mean_y - slope * mean_x
    return (constant, slope) if constant >= 0.0 else (0.0, through_zero)

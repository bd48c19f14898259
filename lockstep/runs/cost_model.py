"""The cost model of a step with other numbers of workers and servers and another link, from measured times. Pure.

In a step, the slowest worker computes its micro-batches, sums and weights are exchanged, and the server updates. The
model assumes no overlap, so that hiding an exchange behind computing can only be faster than predicted.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lockstep.common.aggregation.quantization.quantization import bytes_per_value
from lockstep.ps.records.run_folder import RunResult
from lockstep.ps.run.timing import Split

#: Bytes that cross the link of the server per worker and parameter: a float32 of sums in, one of weights out.
BYTES_PER_PARAMETER = 8.0

#: Most workers to consider in the search for the point at which a link saturates.
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
    #: See `bytes_per_parameter`.
    bytes_per_parameter: float = BYTES_PER_PARAMETER

    @classmethod
    def of(cls, result: RunResult) -> "Measured | None":
        """Return what a run measured, None if it had no workers, or no step that was timed."""
        if result.split is None or not result.workers:
            return None
        return cls(
            workers=result.workers,
            servers=result.servers,
            micro_batches=result.micro_batches,
            global_batch=result.global_batch,
            parameters=result.parameters,
            split=result.split,
            bytes_per_parameter=bytes_per_parameter(result.wire, result.wire_weights),
        )


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The costs of a step, in seconds."""

    parameters: int
    #: Samples of a micro-batch, and the seconds that a worker with its own core takes for it.
    micro_batch_samples: float
    micro_batch_s: float
    #: Micro-batches of a step; per worker if `is_weak`.
    micro_batches: float
    #: Whether the step grows with the workers (weak scaling) or not (strong scaling).
    is_weak: bool
    #: An exchange: the least that it takes, and what one server takes per worker.
    latency_s: float
    per_worker_s: float
    #: One server's update of all weights.
    update_s: float
    #: What the slowest of several workers takes longer than its share of the micro-batches explains.
    jitter_s: float
    #: Cores that all workers share; None if each worker has its own.
    cores: int | None = None
    #: Bytes that cross a link per worker and parameter, in and out.
    bytes_per_parameter: float = BYTES_PER_PARAMETER

    def samples(self, workers: int) -> float:
        """Return the samples of a step."""
        return self._micro_batches(workers) * self.micro_batch_samples

    def _micro_batches(self, workers: int) -> float:
        return self.micro_batches * workers if self.is_weak else self.micro_batches

    def compute_s(self, workers: int) -> float:
        """Return the seconds until the slowest worker is done."""
        micro_batches = self._micro_batches(workers)
        # A micro-batch is not divided: of 8, the slowest of 3 workers has 3.
        share = self.micro_batches if self.is_weak else -(-micro_batches // workers)
        if self.cores is not None:
            share = max(share, micro_batches / self.cores)
        return self.micro_batch_s * share + (self.jitter_s if workers > 1 else 0.0)

    def link_s(self, workers: int, servers: int, link: float) -> float:
        """Return the seconds for which the busiest link is in use, with `link` bytes/s in each direction.

        Pushing comes before pulling, so that both directions count although a link can carry both at once.
        """
        # The link of a worker carries the whole vector, whatever the number of servers.
        return self.bytes_per_parameter * self.parameters * max(1.0, workers / servers) / link

    def exchange_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the seconds of an exchange; on one machine if `link` is None."""
        handling = self.per_worker_s * workers / servers
        # A server adds what has arrived while the rest is on its way, so that the slower of the two counts.
        return self.latency_s + (handling if link is None else max(handling, self.link_s(workers, servers, link)))

    def step_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the seconds of a step."""
        return self.compute_s(workers) + self.exchange_s(workers, servers, link) + self.update_s / servers

    def samples_per_s(self, workers: int, servers: int = 1, link: float | None = None) -> float:
        """Return the training samples per second."""
        return self.samples(workers) / self.step_s(workers, servers, link)

    def link_share(self, workers: int, servers: int, link: float) -> float:
        """Return the share of a step for which the busiest link carries bytes."""
        return self.link_s(workers, servers, link) / self.step_s(workers, servers, link)

    def slowdown(self, workers: int, servers: int, link: float | None = None) -> float:
        """Return how many times as long a step takes as with one server per worker."""
        return self.step_s(workers, servers, link) / self.step_s(workers, workers, link)

    def saturation(self, servers: int, link: float | None = None) -> int | None:
        """Return the number of workers from which on a step takes at least twice as long as with one server each.

        None if it never does.
        """
        numbers = range(1, MOST_WORKERS + 1)
        place = bisect_left(numbers, True, key=lambda workers: self.slowdown(workers, servers, link) >= 2.0)
        return numbers[place] if place < len(numbers) else None

    def shards(self, workers: int, link: float | None = None) -> int:
        """Return the fewest servers with which a step does not take twice as long as with one per worker."""
        numbers = range(1, workers + 1)
        return numbers[bisect_left(numbers, True, key=lambda servers: self.slowdown(workers, servers, link) < 2.0)]

    def is_bound_by_link(self, link: float) -> bool:
        """Return whether the link of a server, and not the server itself, is the first bottleneck."""
        return self.bytes_per_parameter * self.parameters / link > self.per_worker_s


def bytes_per_parameter(wire: str, wire_weights: str) -> float:
    """Return the bytes that cross the link of the server per worker and parameter: sums in, weights out."""
    return bytes_per_value(wire) + bytes_per_value(wire_weights)


def fitted(points: Sequence[Measured], *, is_weak: bool = False, cores: int | None = None) -> CostModel:
    """Return the model that fits measurements with one or more numbers of workers that shared `cores` cores.

    The point with the most workers gives the costs of a micro-batch and an update. The costs of an exchange are a
    straight line over the numbers of workers; with only one number, all of it is assumed to grow with the workers.
    """
    most = max(points, key=lambda point: point.workers)
    busy = min(most.workers, most.micro_batches)
    contention = 1.0 if cores is None else max(1.0, busy / cores)
    micro_batch_s = most.split.compute_s * busy / most.micro_batches / contention
    latency_s, per_worker_s = _line([(p.workers / p.servers, max(0.0, p.split.exchange_s)) for p in points])
    micro_batches = most.micro_batches / most.workers if is_weak else float(most.micro_batches)
    model = CostModel(
        parameters=most.parameters,
        micro_batch_samples=most.global_batch / most.micro_batches,
        micro_batch_s=micro_batch_s,
        micro_batches=micro_batches,
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
    """Return the constant and the slope of the best line, neither below zero."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    through_zero = sum(x * y for x, y in points) / sum(x * x for x, _ in points)
    if not spread:
        return 0.0, through_zero
    slope = max(0.0, sum((x - mean_x) * (y - mean_y) for x, y in points) / spread)
    constant = mean_y - slope * mean_x
    return (constant, slope) if constant >= 0.0 else (0.0, through_zero)

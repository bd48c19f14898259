"""The earliest time at which a round can be done, by the pace of its workers. Pure arithmetic."""

import math
from collections.abc import Sequence
from heapq import heapify, heapreplace

#: Differences of this part of a micro-batch are none: a clock that has run for months rounds by a millionth of one.
ROUNDING = 1e-4


def finishing_time_s(micro_batches: int, workers: Sequence[tuple[float, float]]) -> float:
    """Return in how many seconds so many micro-batches are done if each worker gets what it can do until then.

    `workers`, at least one, are `(seconds for which it is busy, seconds that a micro-batch takes it)`. It is the least
    time by which they all finish: first what they do until the time at which they would finish together if
    micro-batches could be divided, then, one by one, the worker that finishes the next one first.
    """
    even_s = _even_time_s(micro_batches, workers)
    last_s, left = 0.0, micro_batches
    following: list[tuple[float, float]] = []
    for busy_s, each_s in workers:
        done = whole(even_s - busy_s, each_s)
        left -= done
        if done:
            last_s = max(last_s, busy_s + done * each_s)
        following.append((busy_s + (done + 1) * each_s, each_s))
    if left > 0:
        heapify(following)
        for _ in range(left):
            last_s, each_s = following[0]
            heapreplace(following, (last_s + each_s, each_s))
    return last_s


def whole(seconds: float, each_s: float) -> int:
    """Return how many micro-batches fit into so many seconds."""
    return max(0, math.floor(seconds / each_s + ROUNDING))


def _even_time_s(micro_batches: int, workers: Sequence[tuple[float, float]]) -> float:
    """Return when the workers would finish together: those that are busy for longer take no part."""
    rate = work = even_s = 0.0
    for busy_s, each_s in sorted(workers):
        if rate and busy_s >= even_s:
            break
        rate += 1.0 / each_s
        work += busy_s / each_s
        even_s = (micro_batches + work) / rate
    return even_s

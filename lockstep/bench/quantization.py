"""Bench the formats of quantization: adding two children of a node with rounding, packing, and unpacking.

Runs in this process on one frame. The fastest of many turns counts, since disturbances only add time.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from lockstep.bench.reports.rows import QuantizationRow
from lockstep.common.aggregation.quantization.quantization import FORMATS, RoundingKey, quantization_of
from lockstep.common.aggregation.tree import Node
from lockstep.common.random import Purpose, generator
from lockstep.common.runtime.clock import Clock


def measure(count: int, repeats: int, clock: Clock) -> Iterator[QuantizationRow]:
    """Yield a row for each format, for `count` values."""
    left, right = generator(0, Purpose.CANARY).standard_normal((2, count), dtype=np.float32)
    for name in ("float32", *FORMATS):
        quantization, out, at = quantization_of(name, 0, count), np.empty_like(left), RoundingKey(0, Node(0, 2))
        quantization.add(left, right, out, at)
        words = quantization.pack(out, 0)
        turns: tuple[Callable[[], object], ...] = (
            partial(quantization.add, left, right, out, at),
            partial(quantization.pack, out, 0),
            partial(quantization.unpack, words, 0, out),
        )
        add, pack, unpack = (_least_s(turn, repeats, clock) / count * 1e9 for turn in turns)
        yield QuantizationRow(
            wire=name,
            values=count,
            bytes_a_value=words.nbytes / count,
            add_ns=add,
            pack_ns=pack,
            unpack_ns=unpack,
        )


def _least_s(turn: Callable[[], object], repeats: int, clock: Clock) -> float:
    def seconds() -> float:
        start = clock.now()
        turn()
        return clock.now() - start

    return min(seconds() for _ in range(repeats))

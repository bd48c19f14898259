"""What the wire's types cost where they are computed: to add two halves of a node and round, to pack, to unpack.

In this process, on one frame. The least of many turns is what counts: whatever else the machine does only adds to it.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from common.aggregation.quantization.quantization import FORMATS, RoundingKey, quantization_of
from common.aggregation.tree import Node
from common.random import Purpose, generator
from common.runtime.clock import Clock
from lockstep.bench.reports.rows import WireRow


def measure(count: int, repeats: int, clock: Clock) -> Iterator[WireRow]:
    """Yield a row for each type, for so many values."""
    left, right = generator(0, Purpose.CANARY).standard_normal((2, count), dtype=np.float32)
    for name in ("float32", *FORMATS):
        wire, out, at = quantization_of(name, 0, count), np.empty_like(left), RoundingKey(0, Node(0, 2))
        wire.add(left, right, out, at)
        words = wire.pack(out, 0)
        turns: tuple[Callable[[], object], ...] = (
            partial(wire.add, left, right, out, at),
            partial(wire.pack, out, 0),
            partial(wire.unpack, words, 0, out),
        )
        add, pack, unpack = (_least_s(turn, repeats, clock) / count * 1e9 for turn in turns)
        yield WireRow(
            wire=name,
            values=count,
            bytes_a_value=words.nbytes / count,
            add_ns=add,
            pack_ns=pack,
            unpack_ns=unpack,
        )


def _least_s(turn: Callable[[], object], repeats: int, clock: Clock) -> float:
    def seconds() -> float:
        began = clock.now()
        turn()
        return clock.now() - began

    return min(seconds() for _ in range(repeats))

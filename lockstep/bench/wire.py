"""Bench the formats of quantization: adding two children of a node with rounding, packing, and unpacking.

Runs in this process on one frame. Of each turn, the fastest of many calls counts, since disturbances only add time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median_high
from typing import Annotated, ClassVar

import msgspec
import numpy as np

from lockstep.bench import bench as options
from lockstep.bench.bench import Bench, TableColumn
from lockstep.bench.measuring.timed_run import BenchSession, least_s
from lockstep.cli.options.types import WholeNumber
from lockstep.common.aggregation.quantization import FORMATS, RoundingKey, quantization_of
from lockstep.common.aggregation.tree import Node
from lockstep.common.numerics.random import Purpose, generator


class QuantizationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A format of quantization: nanoseconds per value of the middle turn, the fastest call of each turn."""

    wire: Annotated[str, TableColumn("sums", -8)]
    values: int
    bytes_a_value: Annotated[float, TableColumn("bytes/value", 13, ".3f")]
    #: Adding two halves with rounding, packing rounded values, and unpacking them.
    add_ns: Annotated[float, TableColumn("add+round ns", 13, ".2f")]
    pack_ns: Annotated[float, TableColumn("pack ns", 9, ".2f")]
    unpack_ns: Annotated[float, TableColumn("unpack ns", 10, ".2f")]
    #: The same of the fastest and of the slowest turn.
    add_spread: tuple[float, float] = (0.0, 0.0)
    pack_spread: tuple[float, float] = (0.0, 0.0)
    unpack_spread: tuple[float, float] = (0.0, 0.0)


@dataclass(kw_only=True)
class WireBench(Bench[QuantizationRow]):
    """Time what --wire adds to a step, in nanoseconds per value.

    Each node of the tree is the rounded sum of its two halves, which one process computes. Packing and unpacking are
    for each message.

    \b
      lockstep bench wire
    """

    name: ClassVar = "wire"
    summary: ClassVar = "The formats of --wire: nanoseconds per value."
    has_plot: ClassVar = False
    row: ClassVar = QuantizationRow

    values: int = options.option("--values", WholeNumber(1, 2**28), "values to round", "262144")
    repeats: int = options.option("--repeats", WholeNumber(1), "calls in a turn, the fastest counts", "20")
    rounds: int = options.rounds("5")

    def measure(self, session: BenchSession) -> Iterator[QuantizationRow]:
        left, right = generator(0, Purpose.CANARY).standard_normal((2, self.values), dtype=np.float32)
        out, at = np.empty_like(left), RoundingKey(0, Node(0, 2))
        for name in ("float32", *FORMATS):
            quantization = quantization_of(name, 0, self.values)
            quantization.add(left, right, out, at)
            words = quantization.pack(out, 0)
            calls: tuple[Callable[[], object], ...] = (
                partial(quantization.add, left, right, out, at),
                partial(quantization.pack, out, 0),
                partial(quantization.unpack, words, 0, out),
            )
            turns = [[self._ns(call, session) for call in calls] for _ in range(self.rounds)]
            (add, pack, unpack) = (median_high(each) for each in zip(*turns, strict=True))
            spreads = [(min(each), max(each)) for each in zip(*turns, strict=True)]
            yield QuantizationRow(
                wire=name,
                values=self.values,
                bytes_a_value=words.nbytes / self.values,
                add_ns=add,
                pack_ns=pack,
                unpack_ns=unpack,
                add_spread=spreads[0],
                pack_spread=spreads[1],
                unpack_spread=spreads[2],
            )

    def _ns(self, call: Callable[[], object], session: BenchSession) -> float:
        return least_s(call, self.repeats, session.clock) / self.values * 1e9

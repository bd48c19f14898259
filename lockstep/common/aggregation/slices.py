"""Contiguous slices of the flat vector: those of servers, frames that travel, and spans that are updated alike.

Arithmetic only.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, NamedTuple

import msgspec

from lockstep.common.aggregation.tree import Vector
from lockstep.common.errors import JobError
from lockstep.common.optim.clipping import BLOCK

#: Elements of a frame, three MiB of float32: a whole vector in one would need a buffer of its size at both ends, and
#: would be of no use to its reader before the last byte. ZeroMQ gives each connection in turn one write of at most a
#: frame: with one of a MiB, the weights of all hosts arrive when the last ones do, and none computes meanwhile. A
#: multiple of `BLOCK`.
FRAME = 786_432


class Slice(msgspec.Struct, frozen=True, order=True):
    """The elements `[start, stop)`, 0 ≤ start ≤ stop."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def of(self, vector: Vector) -> Vector:
        """Return this part of the whole vector, as a view."""
        return vector[self.start : self.stop]

    def until(self, stop: int) -> "Slice":
        """Return the part before an element, which may be empty."""
        return Slice(self.start, max(self.start, min(self.stop, stop)))

    def cut(self, size: int) -> Iterator["Slice"]:
        """Yield slices of `size` elements from the start on, the last one perhaps shorter."""
        return (Slice(start, min(start + size, self.stop)) for start in range(self.start, self.stop, size))

    def cut_evenly(self, most: int) -> Iterator["Slice"]:
        """Yield slices of at most `most` elements, a multiple of `BLOCK`, as equal as cuts between blocks can be."""
        blocks = -(-len(self) // BLOCK)
        return self.cut(-(-blocks // -(-len(self) // most)) * BLOCK)

    def frames(self) -> list["Slice"]:
        """Return the frames in which the slice travels."""
        return list(self.cut(FRAME))


class Span(NamedTuple):
    """Parameters that follow one another and are updated alike: up to the element `stop` of the vector."""

    stop: Annotated[int, msgspec.Meta(ge=1)]
    decays: bool = True
    lr_factor: Annotated[float, msgspec.Meta(ge=0.0)] = 1.0


def frames_of(size: int, servers: int) -> list[Slice]:
    """Return the frames in which a vector of `size` elements travels to and from so many servers."""
    return [frame for owned in slices_for(size, servers) for frame in owned.frames()]


def most_servers(size: int) -> int:
    """Return how many servers a vector of `size` elements can have: each owns a block at least."""
    return -(-size // BLOCK)


def slices_for(size: int, servers: int) -> list[Slice]:
    """Return what each of `servers` owns of a vector of `size` elements: as equal as possible.

    Cut between blocks, since clipping adds up the squares of whole ones. `JobError` if a server would own nothing.
    """
    blocks = most_servers(size)
    if not 1 <= servers <= blocks:
        raise JobError(
            f"servers = {servers!r} for a model of {size:,} values: expected 1 to {blocks}, one per {BLOCK} values"
        )
    bounds = [min(blocks * place // servers * BLOCK, size) for place in range(servers + 1)]
    return [Slice(start, stop) for start, stop in pairwise(bounds)]

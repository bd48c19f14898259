"""What the shared memory of a run holds: where which vectors are, and who makes them.

The server makes one file with both slots of weights; each worker makes one with its slots of sums, once it has read
back what the server wrote. Either maps the other's for reading only, until slices of an update are leased to workers:
these write weights and the optimizer's slots, and read the sums of others.
"""

from collections.abc import Sequence

from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import Slots
from lockstep.common.protocol.messages import SLOTS
from lockstep.common.transport.shared_memory.segment import Shape

#: The file of the weights, of which those after step t are in slot t % 2.
WEIGHTS = "weights"

#: The file of the weights as they are, if those that workers compute with are rounded; otherwise there is none.
EXACT_WEIGHTS = "exact-weights"

#: The file of the optimizer's slots, all of the first set and then all of the second.
STATE = "state"

#: The socket where a worker asks the server for a shortcut, by the name of its file.
CALLERS = "callers"


def weights_shape(size: int) -> Shape:
    """Return what the file of weights holds, of `size` values each."""
    return Shape(vectors=2, size=size)


def sums_file(rank: int) -> str:
    """Return the name of a worker's file."""
    return f"sums-{rank}"


def sums_shape(size: int) -> Shape:
    """Return what a worker's file holds."""
    return Shape(vectors=SLOTS, size=size)


def partial_sums_file(slot: int) -> str:
    """Return the name of a file of sums that the server has added, a vector each."""
    return f"partial-sums-{slot}"


def partial_sums_shape(size: int) -> Shape:
    """Return what such a file holds."""
    return Shape(vectors=1, size=size)


def state_shape(names: Sequence[str], parameter_size: int) -> Shape:
    """Return what the file of the optimizer's slots holds."""
    return Shape(vectors=2 * len(names), size=parameter_size)


def state_sets(names: Sequence[str], vectors: Sequence[Vector]) -> tuple[Slots, Slots]:
    """Return both sets of the optimizer's slots, of those names, from the vectors of their file."""
    first, second = vectors[: len(names)], vectors[len(names) :]
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))

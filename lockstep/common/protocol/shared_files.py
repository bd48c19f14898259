"""The files in the shared memory of a run: their names and the vectors in them.

The server makes one file with both slots of weights, which workers map for reading only, until a team is to make
several steps: then its processes write weights and the optimizer's slots, slice by slice, and each slice under its
lock. The marks of a team's processes are in the team's own folder.
"""

from collections.abc import Sequence

from lockstep.common.aggregation.tree import Vector
from lockstep.common.aggregation.update import Slots
from lockstep.common.protocol.team_memory import ROWS
from lockstep.common.transport.shared_memory.segment import Shape

#: The file of the weights, of which those after step t are in slot t % 2.
WEIGHTS = "weights"

#: The file of the weights as they are, if those that workers compute with are rounded; otherwise there is no such file.
EXACT_WEIGHTS = "exact-weights"

#: The file of the optimizer's slots, all of the first set and then all of the second.
STATE = "state"

#: The file of a team's marks, in the team's own folder (`TeamMarks`).
MARKS = "marks"


def weights_shape(size: int) -> Shape:
    """Return what the file of weights holds, of `size` values each."""
    return Shape(vectors=2, size=size)


def update_file(rank: int) -> str:
    """Return the name of the file that says how far the team of that rank is with updates (`UpdateMarks`)."""
    return f"update-{rank}"


def lock_file(slice_: int) -> str:
    """Return the name of the file that is the lock of a slice of updates: its holder may write that slice."""
    return f"lock-{slice_}"


def process_file(process: int) -> str:
    """Return the name of the file of a team's process, in the team's own folder: its vectors of sums and of results."""
    return f"process-{process}"


def process_shape(size: int) -> Shape:
    """Return what such a file holds: a vector for each of its rows, and one for the slices that it adds up."""
    return Shape(vectors=ROWS + 1, size=size)


def state_shape(names: Sequence[str], parameter_size: int) -> Shape:
    """Return what the file of the optimizer's slots holds."""
    return Shape(vectors=2 * len(names), size=parameter_size)


def state_sets(names: Sequence[str], vectors: Sequence[Vector]) -> tuple[Slots, Slots]:
    """Return both sets of the optimizer's slots, of those names, from the vectors of their file."""
    first, second = vectors[: len(names)], vectors[len(names) :]
    return dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))

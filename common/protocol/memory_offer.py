"""What the shared memory of a run holds: where which vectors are, and who makes them.

The server makes one file with both slots of weights; each worker makes one with its slots of sums, once it has read
back what the server wrote. Either maps the other's for reading only.
"""

from common.protocol.messages import SLOTS
from common.transport.shared_memory.segment import Shape

#: The file of the weights, of which those after step t are in slot t % 2.
WEIGHTS = "weights"

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

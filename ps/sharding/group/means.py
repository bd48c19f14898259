"""What the server's end of its shards works with."""

from collections.abc import Callable
from dataclasses import dataclass

from common.runtime.clock import Clock
from common.transport.port import ServerPort
from ps.shared_memory import ServerSharedMemory


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a shell of servers works with."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    sharing: ServerSharedMemory | None
    #: Samples of the dataset, to train and to test.
    samples: tuple[int, int]

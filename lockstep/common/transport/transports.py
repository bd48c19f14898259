"""The transports that a run can ask for, with all that others need to know of each: a new one is a row of the table."""

from enum import Enum
from typing import Literal

import msgspec

Transport = Literal["auto", "shm", "ipc", "tcp"]

#: The help text of `--transport`.
DESCRIPTION = (
    "transport of gradients and weights; auto: shared memory where a worker can see it, else sockets; shm: shared "
    "memory only; ipc, tcp: sockets only"
)


class MemorySharing(Enum):
    """The use of shared memory for vectors."""

    NEVER = "never"
    IF_POSSIBLE = "if_possible"
    ALWAYS = "always"


class TransportProperties(msgspec.Struct, frozen=True, kw_only=True):
    """One transport."""

    memory: MemorySharing
    #: The address of a process of a run on this machine, with the run's private {folder} and the process's {name}.
    local_address: str
    #: Whether other users of this machine can reach that address, so that a token is needed.
    needs_token: bool = False
    reaches_other_machines: bool = False


_SOCKET_FILE = "ipc://{folder}/{name}.sock"

TRANSPORTS: dict[Transport, TransportProperties] = {
    "auto": TransportProperties(
        memory=MemorySharing.IF_POSSIBLE, local_address=_SOCKET_FILE, reaches_other_machines=True
    ),
    "shm": TransportProperties(memory=MemorySharing.ALWAYS, local_address=_SOCKET_FILE),
    "ipc": TransportProperties(memory=MemorySharing.NEVER, local_address=_SOCKET_FILE),
    "tcp": TransportProperties(
        memory=MemorySharing.NEVER, local_address="tcp://127.0.0.1:0", needs_token=True, reaches_other_machines=True
    ),
}

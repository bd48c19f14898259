"""The transports that a run can ask for, with all that others need to know of each: a new one is a row of the table."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

Transport = Literal["auto", "shm", "ipc", "tcp"]

#: The help text of `--transport`.
DESCRIPTION = (
    "transport of gradients and weights; auto: shared memory where a worker can see it, else sockets; shm: shared "
    "memory only; ipc, tcp: sockets only"
)


class MemorySharing(Enum):
    """Whether vectors go through shared memory."""

    NEVER = "never"
    IF_POSSIBLE = "if_possible"
    ALWAYS = "always"


@dataclass(frozen=True, kw_only=True)
class TransportProperties:
    """One transport."""

    memory: MemorySharing
    #: Returns where a process of a run on this machine listens, given the run's private folder and the process's name.
    local_address: Callable[[Path, str], str]
    #: Whether other users of this machine can reach that address, so that a token is needed.
    needs_token: bool = False
    reaches_other_machines: bool = False


def _socket_file(folder: Path, name: str) -> str:
    return f"ipc://{folder}/{name}.sock"


def _free_port(folder: Path, name: str) -> str:
    return "tcp://127.0.0.1:0"


TRANSPORTS: dict[Transport, TransportProperties] = {
    "auto": TransportProperties(
        memory=MemorySharing.IF_POSSIBLE, local_address=_socket_file, reaches_other_machines=True
    ),
    "shm": TransportProperties(memory=MemorySharing.ALWAYS, local_address=_socket_file),
    "ipc": TransportProperties(memory=MemorySharing.NEVER, local_address=_socket_file),
    "tcp": TransportProperties(
        memory=MemorySharing.NEVER, local_address=_free_port, needs_token=True, reaches_other_machines=True
    ),
}

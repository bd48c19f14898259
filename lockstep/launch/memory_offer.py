"""Whether a run's vectors stand in memory that its workers may share: offered where it can be, and swept."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import SharingError
from common.transport.shared_memory.folder import sweep
from lockstep.launch.signals import uninterrupted
from lockstep.runs.launch import Transport
from ps.setup import RunSetup
from ps.shared_memory import ServerSharedMemory, share


@dataclass(frozen=True)
class Offer:
    """A run, and the memory that it offers to its workers, if it does."""

    opening: RunSetup
    sharing: ServerSharedMemory | None = None
    #: Why there is no memory to share although it was meant to be.
    obstacle: str = ""


@contextmanager
def offered(opening: RunSetup, transport: Transport, root: Path) -> Iterator[Offer]:
    """Put a run's weights where workers can share them, for as long as the context lasts.

    `auto` goes on without where that cannot be, `shm` raises `SharingError`, and the others never do it.
    """
    # Whatever the transport is: those that were killed may have had another.
    sweep(root)
    offer = _offer(opening, transport, root)
    try:
        yield offer
    finally:
        if offer.sharing is not None:
            with uninterrupted():
                offer.sharing.close()


def _offer(opening: RunSetup, transport: Transport, root: Path) -> Offer:
    if transport not in ("auto", "shm"):
        return Offer(opening)
    try:
        shared, sharing = share(opening, root)
    except SharingError as error:
        if transport == "shm":
            raise
        return Offer(opening, obstacle=str(error))
    return Offer(replace(shared, facts=replace(shared.facts, needs_memory=transport == "shm")), sharing)

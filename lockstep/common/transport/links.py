"""Several ports of one process, received from as one. Sees frames and never a message."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

M_co = TypeVar("M_co", covariant=True)


class Receiver(Protocol[M_co]):
    """The receiving end of a port."""

    def receive(self, timeout_s: float | None) -> M_co | None: ...


#: Waits until one of some ports may have a message, or for so many seconds; None waits for ever.
Wait = Callable[[Sequence[Receiver[object]], float | None], None]


def wait_for_nothing(ports: Sequence[Receiver[object]], timeout_s: float | None) -> None:
    """Do not wait, as the ports in memory."""


@dataclass
class Links(Generic[M_co]):
    """Ports that are received from together."""

    ports: list[Receiver[M_co]]
    wait: Wait
    #: The port that is asked first next time: one that always has a message must not starve the others.
    first: int = 0

    def receive(self, timeout_s: float | None) -> tuple[int, M_co] | None:
        """Return the next message with the number of its port, or None if none came in time."""
        if len(self.ports) == 1:
            message = self.ports[0].receive(timeout_s)
            return None if message is None else (0, message)
        found = self._poll()
        if found is None and timeout_s != 0.0:
            self.wait(self.ports, timeout_s)
            found = self._poll()
        return found

    def _poll(self) -> tuple[int, M_co] | None:
        for offset in range(len(self.ports)):
            place = (self.first + offset) % len(self.ports)
            message = self.ports[place].receive(0.0)
            if message is not None:
                self.first = (place + 1) % len(self.ports)
                return place, message
        return None

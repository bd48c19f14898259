"""Several ports of one process, received from as one. Sees frames and never a message."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

M_co = TypeVar("M_co", covariant=True)


class Receiver(Protocol[M_co]):
    """The receiving end of a port."""

    def receive(self, timeout_s: float | None) -> M_co | None: ...


#: Waits until one of some ports may have a message, or for so many seconds, None for ever; returns the places of those
#: that may have one.
Wait = Callable[[Sequence[Receiver[object]], float | None], Sequence[int]]


def wait_for_nothing(ports: Sequence[Receiver[object]], timeout_s: float | None) -> Sequence[int]:
    """Do not wait, as the ports in memory."""
    return range(len(ports))


@dataclass
class Links(Generic[M_co]):
    """Ports that are received from together."""

    ports: list[Receiver[M_co]]
    wait: Wait
    #: The places of ports that may have a message, the next one first: one that always has some must not starve the
    #: others. To ask each port each time would take longer than to receive.
    _ready: deque[int] = field(default_factory=deque)

    def receive(self, timeout_s: float | None) -> tuple[int, M_co] | None:
        """Return the next message with the number of its port, or None if none came in time."""
        if len(self.ports) == 1:
            message = self.ports[0].receive(timeout_s)
            return None if message is None else (0, message)
        found = self._next()
        if found is None:
            self._ready.extend(self.wait(self.ports, timeout_s))
            found = self._next()
        return found

    def _next(self) -> tuple[int, M_co] | None:
        while self._ready:
            place = self._ready[0]
            message = self.ports[place].receive(0.0)
            if message is not None:
                self._ready.rotate(-1)
                return place, message
            self._ready.popleft()
        return None

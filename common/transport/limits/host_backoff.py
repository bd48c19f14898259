"""For how long a host is not let in again of which a connection was cut off. Pure: the time is an argument.

To cut off one that sends without measure costs time as well, and whoever is cut off can dial again at once: the others
would go on at half their speed beside somebody who does nothing else. Connections that are open stay.
"""

from dataclasses import dataclass, field

#: Seconds for the first time; each time that follows is twice as long, up to the most.
FIRST_S, MOST_S = 1.0, 8.0

#: Seconds without a cause, after those of the penalty, by which all is forgotten.
FORGOTTEN_S = 60.0

#: Hosts that are remembered: of more, the one that was cut off longest ago is forgotten.
REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class BackoffPeriod:
    """Of one host: how many seconds it takes, and when they are over."""

    seconds: float
    until: float


@dataclass
class HostBackoff:
    """Those of all hosts."""

    _of: dict[str, BackoffPeriod] = field(default_factory=dict)

    def book(self, host: str, now: float) -> None:
        """Book that a connection of a host was cut off; of one that is not let in now, this was opened before."""
        before = self._of.pop(host, None)
        if before is None or now >= before.until + FORGOTTEN_S:
            before = BackoffPeriod(FIRST_S, now + FIRST_S)
        elif now >= before.until:
            seconds = min(2.0 * before.seconds, MOST_S)
            before = BackoffPeriod(seconds, now + seconds)
        self._of[host] = before
        if len(self._of) > REMEMBERED:
            del self._of[next(iter(self._of))]

    def bars(self, host: str, now: float) -> bool:
        """Tell whether a host is not let in."""
        penalty = self._of.get(host)
        return penalty is not None and now < penalty.until

"""How long a host is blocked after one of its connections was cut off. Pure: the time is an argument.

Cutting off a client that sends without measure takes time too, and it can dial again at once: without a block, the
others would run at half their speed next to a client that does nothing else. Connections that are open stay.
"""

from dataclasses import dataclass, field

#: Seconds of the first block; each further one is twice as long, up to the most.
FIRST_S, MOST_S = 1.0, 8.0

#: Seconds after the end of a block without another until it is forgotten.
FORGOTTEN_S = 60.0

#: Most hosts that are remembered; the one that was cut off longest ago is forgotten first.
MOST_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class BackoffPeriod:
    """The block of one host: its length in seconds, and when it ends."""

    seconds: float
    until: float


@dataclass
class HostBackoff:
    """The blocks of all hosts."""

    _of: dict[str, BackoffPeriod] = field(default_factory=dict)

    def record(self, host: str, now: float) -> None:
        """Record that a connection of a host was cut off. If the host is blocked now, this one was opened before."""
        before = self._of.pop(host, None)
        if before is None or now >= before.until + FORGOTTEN_S:
            before = BackoffPeriod(FIRST_S, now + FIRST_S)
        elif now >= before.until:
            seconds = min(2.0 * before.seconds, MOST_S)
            before = BackoffPeriod(seconds, now + seconds)
        self._of[host] = before
        if len(self._of) > MOST_REMEMBERED:
            del self._of[next(iter(self._of))]

    def is_blocked(self, host: str, now: float) -> bool:
        """Tell whether a host is blocked."""
        period = self._of.get(host)
        return period is not None and now < period.until

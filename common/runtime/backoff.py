"""How long to wait before the next try: twice as long each time, and not all at the same moment. Pure."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Delays that double up to a limit, each shortened by up to a half.

    Shortened, so that a thousand workers whose server comes back do not all call in the same instant, again and again
    (Brooker, "Exponential Backoff and Jitter", 2015).
    """

    #: Seconds before the second try at most, and before any try.
    first_s: float
    most_s: float
    #: What tells one who tries from the others: the same one gives the same delays.
    seed: str

    def delay_s(self, tries: int) -> float:
        """Return the seconds to wait after so many tries, from 1."""
        full = min(self.most_s, self.first_s * 2.0 ** min(tries - 1, 60))
        draw = zlib.crc32(f"{self.seed}/{tries}".encode()) / 2**32
        return full * (1.0 - draw / 2)

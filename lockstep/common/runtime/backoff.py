"""How long to wait before the next attempt: twice as long each time, with jitter. Pure."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Delays that double up to a limit, each shortened by up to a half.

    Shortened, so that a thousand workers whose server comes back do not all call at the same instant, again and again
    (Brooker, "Exponential Backoff and Jitter", 2015).
    """

    #: Most seconds before the second attempt, and before any.
    first_s: float
    most_s: float
    #: Distinguishes one client from the others: the same seed gives the same delays.
    seed: str

    def delay_s(self, tries: int) -> float:
        """Return the seconds to wait after so many attempts, from 1."""
        full = min(self.most_s, self.first_s * 2.0 ** min(tries - 1, 60))
        draw = zlib.crc32(f"{self.seed}/{tries}".encode()) / 2**32
        return full * (1.0 - draw / 2)

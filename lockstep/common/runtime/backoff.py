"""The wait before the next attempt: twice as long each time, with jitter. Pure."""

import zlib
from functools import lru_cache


@lru_cache
def backoff_s(tries: int, *, first_s: float, most_s: float, seed: str) -> float:
    """Return the seconds to wait after so many attempts, from 1.

    At most `first_s` before the second attempt, twice as long before each later one, and at most `most_s` before any.
    Each is shortened by up to a half, so that a thousand workers whose server comes back do not all call at the same
    instant, again and again (Brooker, "Exponential Backoff and Jitter", 2015). The same seed gives the same delays.
    """
    full = min(most_s, first_s * 2.0 ** min(tries - 1, 60))
    draw = zlib.crc32(f"{seed}/{tries}".encode()) / 2**32
    return full * (1.0 - draw / 2)

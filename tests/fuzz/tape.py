"""Drawn bytes, read as numbers and choices: so that Hypothesis draws one value for many cases.

To draw each choice of each case by a strategy of its own would take it ten times as long as what is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Tape:
    """Choices from bytes; where these are used up, the simplest ones."""

    data: bytes
    _at: int = 0

    def below(self, limit: int) -> int:
        """Return a number in [0, limit)."""
        width = 1 if limit <= 256 else 2 if limit <= 65_536 else 8
        drawn = self.data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(drawn, "little") % max(1, limit)

    def choose(self, values: Sequence[T]) -> T:
        """Return one of some values."""
        return values[self.below(len(values))]

    def happens(self, of: int = 2) -> bool:
        """Tell whether what happens once in so many times happens."""
        return self.below(of) == of - 1

    def raw(self, count: int) -> bytes:
        """Return so many bytes."""
        drawn = self.data[self._at : self._at + count]
        self._at += count
        return drawn.ljust(count, b"\0")

"""Divides the cores of a cluster into teams: on each node one, with a process for each core of the run. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

#: A core that a run has on a node: which group of cores it belongs to, and which of them it is.
Core = tuple[int, int]


@dataclass
class TeamPlaces:
    """The places for teams that are free now."""

    #: Most processes of a team.
    most: int
    #: The cores of each node at the last look.
    _known: Mapping[str, Set[Core]] = field(default_factory=dict)
    _free: list[tuple[str, list[Core]]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is no place for another team."""
        return not self._free

    def look(self, cores: Mapping[str, Set[Core]], held: Set[Core]) -> None:
        """Take note of the run's cores on each node, of which teams have some.

        A node counts once it has the same cores as at the look before: a cluster gives them one after the other, and
        the first of them would be a team of its own.
        """
        settled = {node: sorted(found - held) for node, found in cores.items() if self._known.get(node) == found}
        self._known = cores
        self._free = [
            (node, free[first : first + self.most])
            for node, free in settled.items()
            for first in range(0, len(free), self.most)
        ]

    def take(self) -> tuple[str, list[Core]] | None:
        """Return a node and the cores there of the next team, None if there is no place for it."""
        return self._free.pop(0) if self._free else None

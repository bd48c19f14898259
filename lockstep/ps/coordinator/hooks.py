"""The port of the coordinator into which its parts plug: what a part may add to the flow of rounds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from lockstep.common.protocol.messages import Diverged, Result, Status, Work
from lockstep.ps.coordinator.effects import Effect
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.run.plan import Round


class RoundWatch(Protocol):
    """Follows each round."""

    def opened(self, at: Round) -> frozenset[int]:
        """Return which micro-batches of a round that begins are leased alone, and digested."""

    def accepted(self, member: Member, result: Result) -> None:
        """Record a result of a training step that counts."""

    def completed(self) -> bool:
        """Tell whether the round, all of whose results are there, goes on under this watch before it is complete."""


@dataclass
class Hooks:
    """Where parts plug in; all of these are empty in a coordinator without parts."""

    #: By the class of an event, or of the message that was received, the part that handles it.
    events: dict[type, Callable[[Any, float], list[Effect]]] = field(default_factory=dict)
    #: By the kind of work that a part has leased, where its answers go.
    answers: dict[Work, Callable[[Member, Result | Diverged, float], list[Effect]]] = field(default_factory=dict)
    rounds: list[RoundWatch] = field(default_factory=list)
    #: Each returns in which phase a round begins, or None if that is not changed.
    begins: list[Callable[[Round], RunPhase | None]] = field(default_factory=list)
    #: Each tells whether no work is to be leased now.
    holds: list[Callable[[], bool]] = field(default_factory=list)
    #: Each tells whether the run ends here after an update, for which the slices of all servers are gathered then.
    ends: list[Callable[[], bool]] = field(default_factory=list)
    #: Each returns what the run waits for, empty if it does not.
    waits: list[Callable[[], str]] = field(default_factory=list)
    #: Called after each event, unless the run is over.
    after: list[Callable[[float], list[Effect]]] = field(default_factory=list)
    #: Each returns a status with what the part adds to it.
    statuses: list[Callable[[Status], Status]] = field(default_factory=list)

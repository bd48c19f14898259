"""Limits of what a server does for any peer: which peers it blocks, how often it answers with the status of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.codec import Buffer, encode
from lockstep.common.protocol.messages import Message, Status, StatusRequest
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ServerPort
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.events import Event
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.shard.outbox import Outbox

#: Peers that were sent away and are remembered.
REMEMBERED = 1024

#: Messages of a peer that was sent away before it is cut off: as many may be on their way when it is refused.
TOLERATED = 64

#: Seconds for which a status is the answer to all requests, one to each peer, while the same workers are there and the
#: run has the same phase: for a long run, it takes a millisecond to compose one.
KEPT_S = 0.02


@dataclass
class PeerBlocklist:
    """The peers that one server has refused or sent away."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: Connections that were not let in.
    rejections: RejectionLog
    #: Peers that were let in, and broke the protocol.
    broken: RejectionLog = field(default_factory=RejectionLog)
    #: Those that broke nothing, and are not for this run.
    refused: RejectionLog = field(default_factory=RejectionLog)
    #: The last peers that were sent away, and how many messages each has sent since.
    _peers: dict[bytes, int] = field(default_factory=dict)

    def report(self) -> None:
        """Print new refusals, in as few lines as possible."""
        for log in (self.rejections, self.broken, self.refused):
            for text in log.due(self.clock.now()) if log.has_any() else ():
                self.say(text)

    def report_refusal(self, text: str) -> None:
        """Record and report that a peer was refused, which may come again."""
        self.refused.record(text)
        self.report()

    def add(self, peer: bytes, reason: str) -> None:
        """Record and report that a peer broke the protocol."""
        self.broken.record(f"refused a peer: {reason}")
        self.report()
        self._peers[peer] = 0
        if len(self._peers) > REMEMBERED:
            del self._peers[next(iter(self._peers))]

    def blocks(self, peer: bytes) -> bool:
        """Tell whether a peer that sends a message was sent away; if it goes on for ever, cut it off."""
        if peer not in self._peers:
            return False
        self._peers[peer] += 1
        if self._peers[peer] > TOLERATED:
            del self._peers[peer]
            self.port.cut(peer)
        return True


@dataclass
class StatusAnswers:
    """The part of a server that answers requests for the status of its run."""

    coordinator: Coordinator
    outbox: Outbox
    blocklist: PeerBlocklist
    clock: Clock
    #: The last answer, None before the first; when it was composed, and for which phase and workers.
    _answer: tuple[Status, list[Buffer]] | None = None
    _composed: float = 0.0
    _composed_for: tuple[RunPhase, list[bytes]] | None = None
    #: The peers that have got it, and those of them that have asked again: they get the next one.
    _answered: set[bytes] = field(default_factory=set)
    _waiting: dict[bytes, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coordinator.hooks.statuses.append(self.completed)

    def handles(self, peer: bytes, message: Message) -> bool:
        return isinstance(message, StatusRequest)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        answer = self._current(self.clock.now())
        if peer in self._answered:
            self._waiting[peer] = None
            return []
        self._answered.add(peer)
        return self.outbox.send_frames(peer, *answer)

    def deadline(self) -> float | None:
        return self._composed + KEPT_S if self._waiting else None

    def on_time(self, now: float) -> Sequence[Event]:
        answer, waiting = self._current(now), [*self._waiting]
        self._waiting.clear()
        self._answered.update(waiting)
        return [event for peer in waiting for event in self.outbox.send_frames(peer, *answer)]

    def _current(self, now: float) -> tuple[Status, list[Buffer]]:
        """Return the answer to a request that comes now."""
        wanted_for = self.coordinator.phase, list(self.coordinator.membership.members)
        if self._answer is None or now >= self._composed + KEPT_S or wanted_for != self._composed_for:
            status = self.coordinator.status(now)
            self._answer, self._composed, self._composed_for = (status, encode(status)), now, wanted_for
            self._answered.clear()
        return self._answer

    def completed(self, status: Status) -> Status:
        """Return a status with what the coordinator does not know: rejected connections and broken rules."""
        refused, broken = self.blocklist.rejections.count, self.blocklist.broken.count
        return replace(status, refused=refused, broken=broken)

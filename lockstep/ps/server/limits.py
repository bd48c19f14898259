"""Limits of what a server does for any peer: which peers it blocks, how often it answers with the status of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from lockstep.common.aggregation.tree import Vector
from lockstep.common.protocol.messages import Message, StandbyStatus, Status, StatusRequest
from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ServerPort
from lockstep.ps.coordinator.events import Event, Received

#: Peers that were sent away and are remembered.
REMEMBERED = 1024

#: Messages of a peer that was sent away before it is cut off: as many may be on their way when it is refused.
TOLERATED = 64

#: Requests that are answered at once, and how many more each second: as often as `train` asks at most.
AT_ONCE, PER_SECOND = 32.0, 50.0

#: Peers that are remembered: of more, the one that has not asked for longest is forgotten, and its request with it.
REMEMBERED_REQUESTS = 1024


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
class StatusRateLimit:
    """Limits how often each peer gets the status: a token bucket, and an answer that is due later. Pure.

    For a long run the answer takes a millisecond. Requests of a peer in between count as one.
    """

    #: By peer, the number of requests that were left to it, and when.
    _left: dict[bytes, tuple[float, float]] = field(default_factory=dict)
    #: By peer, from when on it may be answered.
    _postponed: dict[bytes, float] = field(default_factory=dict)

    def ask(self, peer: bytes, now: float) -> bool:
        """Record a request; tell whether to answer it now. Otherwise `due` returns its peer later."""
        if peer in self._postponed:
            return False
        left = self._take(peer, now)
        if left < 0.0:
            self._postponed[peer] = now - left / PER_SECOND
        return left >= 0.0

    def _take(self, peer: bytes, now: float) -> float:
        """Take a request off a peer's tokens; return the rest, negative if no token was left."""
        left, then = self._left.pop(peer, (AT_ONCE, now))
        left = min(AT_ONCE, left + PER_SECOND * (now - then)) - 1.0
        self._left[peer] = (left, now)
        if len(self._left) > REMEMBERED_REQUESTS:
            forgotten = next(iter(self._left))
            del self._left[forgotten]
            self._postponed.pop(forgotten, None)
        return left

    def deadline(self) -> float | None:
        """Return when the next postponed answer is due."""
        return min(self._postponed.values(), default=None)

    def due(self, now: float) -> list[bytes]:
        """Return the peers that are to be answered now, and forget their requests."""
        peers = [peer for peer, at in self._postponed.items() if at <= now]
        for peer in peers:
            del self._postponed[peer]
        return peers


@dataclass
class StatusAnswers:
    """The part of a server that handles requests for the status of its run."""

    blocklist: PeerBlocklist
    clock: Clock
    #: Returns the statuses of the standbys.
    standbys: Callable[[], Sequence[StandbyStatus]]
    limit: StatusRateLimit = field(default_factory=StatusRateLimit)

    def handles(self, peer: bytes, message: Message) -> bool:
        return isinstance(message, StatusRequest)

    def on_message(self, peer: bytes, message: Message, arrays: Sequence[Vector]) -> Sequence[Event]:
        return [self._requested(peer)] if self.limit.ask(peer, self.clock.now()) else []

    def deadline(self) -> float | None:
        return self.limit.deadline()

    def on_time(self, now: float) -> Sequence[Event]:
        return [self._requested(peer) for peer in self.limit.due(now)]

    def _requested(self, peer: bytes) -> Event:
        return Received(peer=peer, message=StatusRequest())

    def completed(self, status: Status) -> Status:
        """Return a status with what the coordinator does not know: rejected connections, broken rules and standbys."""
        refused, broken = self.blocklist.rejections.count, self.blocklist.broken.count
        return replace(status, refused=refused, broken=broken, standbys=[*self.standbys()])

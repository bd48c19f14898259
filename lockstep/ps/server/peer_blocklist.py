"""Peers that the server does not talk to: refused at the door, or sent away later. Counted, reported, cut off."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lockstep.common.runtime.clock import Clock
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.port import ServerPort

#: Peers that were sent away and are remembered.
REMEMBERED = 1024

#: Messages of a peer that was sent away before it is cut off: as many may be on their way when it is refused.
TOLERATED = 64


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
        """Print what is new, in as few lines as there may be."""
        for log in (self.rejections, self.broken, self.refused):
            if log.unreported:
                for text in log.due(self.clock.now()):
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

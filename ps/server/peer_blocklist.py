"""With whom a server does not speak: who was not let in, or was and is sent away. Counted, told, in the end cut off."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.runtime.clock import Clock
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import ServerPort

#: Peers that were sent away and are remembered.
REMEMBERED = 1024

#: Messages of one that was sent away before it is cut off: as many may be on their way when it is told.
TALKING_ON = 64


@dataclass
class PeerBlocklist:
    """The books of one server on whom it turned away."""

    port: ServerPort
    clock: Clock
    say: Callable[[str], None]
    #: Connections that were not let in.
    denials: RejectionLog
    #: Peers that were let in, and broke the protocol.
    broken: RejectionLog = field(default_factory=RejectionLog)
    #: Those that broke nothing, and are not for this run.
    misled: RejectionLog = field(default_factory=RejectionLog)
    #: The last peers that were sent away, and how often they have talked on.
    _peers: dict[bytes, int] = field(default_factory=dict)

    def tell(self) -> None:
        """Tell what is new, in as few lines as there may be."""
        for denials in (self.denials, self.broken, self.misled):
            if denials.untold:
                for text in denials.told(self.clock.now()):
                    self.say(text)

    def refuse(self, text: str) -> None:
        """Tell of somebody who may come again."""
        self.misled.note(text)
        self.tell()

    def add(self, peer: bytes, reason: str) -> None:
        """Book a peer that broke the protocol, and tell of it."""
        self.broken.note(f"refused a peer: {reason}")
        self.tell()
        self._peers[peer] = 0
        if len(self._peers) > REMEMBERED:
            del self._peers[next(iter(self._peers))]

    def has(self, peer: bytes) -> bool:
        """Tell whether a peer that says something was sent away; one that talks on for ever is cut off."""
        if peer not in self._peers:
            return False
        self._peers[peer] += 1
        if self._peers[peer] > TALKING_ON:
            del self._peers[peer]
            self.port.cut(peer)
        return True

"""How much a connection may send without completing a message. Pure.

ZeroMQ limits the bytes of a frame and the number of waiting messages, but not the frames of a message: it would keep
all frames of one that never ends.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from lockstep.common.transport.port import Limits

#: Bytes that the system itself may hold for a connection if it was tuned for fast networks.
SYSTEM_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The bytes received over one connection so far."""

    descriptor: int
    #: The peer that has sent a message over it, if any.
    peer: bytes | None
    received_bytes: int


@dataclass
class IngressQuota:
    """What each connection has sent since its last complete message."""

    limits: Limits
    #: Complete messages of each peer.
    messages: Counter[bytes] = field(default_factory=Counter)
    #: By descriptor, the number of messages when it was last found to have changed, and the bytes received by then.
    _since: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def allowance(self) -> int:
        """Bytes of one connection that may wait: a backlog of the largest messages."""
        return self.limits.backlog * self.limits.frames * self.limits.frame_bytes + SYSTEM_BYTES

    def over_quota(self, flows: Iterable[Flow]) -> list[int]:
        """Return the descriptors of the open connections that are over their quota; record the others."""
        since, found = self._since, list[int]()
        self._since = {}
        for flow in flows:
            messages = 0 if flow.peer is None else self.messages[flow.peer]
            # A new connection has sent all its bytes since it was opened.
            known = since.get(flow.descriptor, (0, 0))
            self._since[flow.descriptor] = known if known[0] == messages else (messages, flow.received_bytes)
            if known[0] == messages and flow.received_bytes - known[1] > self.allowance:
                found.append(flow.descriptor)
        return found

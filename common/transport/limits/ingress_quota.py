"""How much a connection may send while nothing of it comes out whole. Pure: counts what it is told.

ZeroMQ limits the bytes of a frame and the messages that wait, and not the frames of a message: of one that never ends
it would keep all.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from common.transport.port import Limits

#: Bytes that the system itself may hold of a connection, where it was tuned for fast networks.
SYSTEM_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What has come over one connection by now."""

    descriptor: int
    #: Who was heard over it, None where nobody was.
    peer: bytes | None
    received_bytes: int


@dataclass
class IngressQuota:
    """What each connection has sent since its last whole message."""

    limits: Limits
    #: Whole messages of each peer.
    heard: Counter[bytes] = field(default_factory=Counter)
    #: By descriptor, how many messages had been heard when this was last found to have changed, and the bytes by then.
    _since: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def allowance(self) -> int:
        """Bytes that may wait of one connection: a backlog of the largest messages."""
        return self.limits.backlog * self.limits.frames * self.limits.frame_bytes + SYSTEM_BYTES

    def gluttons(self, flows: Iterable[Flow]) -> list[int]:
        """Return those of all open connections, as descriptors, of which too much waits; book the others."""
        since, found = self._since, list[int]()
        self._since = {}
        for flow in flows:
            heard = 0 if flow.peer is None else self.heard[flow.peer]
            # One that is new has sent all that has come of it since it is there.
            known = since.get(flow.descriptor, (0, 0))
            self._since[flow.descriptor] = known if known[0] == heard else (heard, flow.received_bytes)
            if known[0] == heard and flow.received_bytes - known[1] > self.allowance:
                found.append(flow.descriptor)
        return found

"""What is known of the shards from the start, and of each of them once it is there."""

from dataclasses import dataclass

from common.protocol.numerics import Fingerprint
from common.protocol.shard_messages import ShardJoin


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """What is known of the shards from the start."""

    #: Servers in all, with the coordinator's own slice.
    servers: int
    fingerprint: Fingerprint
    allows_mixed_numerics: bool = False
    #: Turn away shards that do not share the server's memory.
    needs_memory: bool = False
    #: Seconds after which a shard that says nothing counts as gone.
    silence_s: float = 60.0


@dataclass
class ShardMember:
    """One shard's place."""

    peer: bytes
    #: Of its slice, from 1 on.
    index: int
    join: ShardJoin
    #: When it last said anything.
    heard: float
    is_ready: bool = False
    shares: bool = False
    obstacle: str = ""

    def named(self) -> str:
        """Return how a person is told of it."""
        return f"shard {self.index} (host {self.join.host}, pid {self.join.pid})"

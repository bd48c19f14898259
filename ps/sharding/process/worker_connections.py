"""The workers as one shard knows them: who is behind which connection, and what may come from there. Pure.

The server says who takes part and who is served at a step; a worker says who it is. Either may come first.
"""

from dataclasses import dataclass, field

from common.aggregation.tree import is_node
from common.errors import RemoteProtocolError
from common.protocol.messages import SumsFrame
from common.protocol.shard_messages import Admit, Hello
from ps.shard.frame_book import FrameBook

#: Connections that have said who they are and are nobody's yet.
STRANGERS = 4096


@dataclass
class WorkerConnection:
    """One worker."""

    admit: Admit
    #: Its connection, None before it greeted, or where it needs none.
    peer: bytes | None = None
    #: The step whose weights it is to be sent, and the one of which it was.
    wanted: int | None = None
    served: int | None = None


@dataclass
class WorkerConnections:
    """All workers of a run."""

    micro_batches: int
    book: FrameBook
    by_rank: dict[int, WorkerConnection] = field(default_factory=dict)
    #: Who is behind a connection, by its own words, the last ones.
    hellos: dict[bytes, Hello] = field(default_factory=dict)

    def admit(self, admit: Admit) -> None:
        """Book that a worker takes part."""
        visitor = self.by_rank.setdefault(admit.rank, WorkerConnection(admit))
        visitor.peer = next((peer for peer, hello in self.hellos.items() if _are_one(hello, visitor.admit)), None)

    def forget(self, rank: int) -> None:
        """Book that a worker is gone."""
        visitor = self.by_rank.pop(rank, None)
        if visitor is not None and visitor.peer is not None:
            self.forget_peer(visitor.peer)

    def forget_peer(self, peer: bytes) -> None:
        """Book that a connection is of no use any more."""
        self.hellos.pop(peer, None)
        self.book.forget(peer)

    def greet(self, peer: bytes, hello: Hello) -> WorkerConnection | None:
        """Book who is behind a connection; return the worker, if it takes part already."""
        before = self.by_rank.get(self.hellos.get(peer, hello).rank)
        if before is not None and before.peer == peer and not _are_one(hello, before.admit):
            before.peer = before.served = None  # who it was before is nobody's any more
        self.hellos[peer] = hello
        if len(self.hellos) > STRANGERS + len(self.by_rank):
            known = {visitor.peer for visitor in self.by_rank.values()}
            del self.hellos[next(peer for peer in self.hellos if peer not in known)]
        visitor = self.by_rank.get(hello.rank)
        if visitor is None or not _are_one(hello, visitor.admit):
            return None
        if visitor.peer != peer:
            visitor.peer, visitor.served = peer, None
        return visitor

    def rank_of(self, peer: bytes) -> int | None:
        """Return the worker behind a connection, None where it is nobody's."""
        hello = self.hellos.get(peer)
        visitor = None if hello is None else self.by_rank.get(hello.rank)
        return hello.rank if hello is not None and visitor is not None and visitor.peer == peer else None

    def is_due(self, visitor: WorkerConnection, step: int) -> bool:
        """Tell whether a worker is to be sent the weights of this step now; if so, it counts as served."""
        if visitor.peer is None or visitor.wanted != step or visitor.served == step:
            return False
        visitor.served = step
        return True

    def take(self, peer: bytes, part: SumsFrame, frame: int, step: int) -> bool:
        """Book a frame that came in the step at hand; return whether it is to be added.

        Of a worker that is served at this step any node of the tree is taken in, each once: what it was leased the
        server knows, and says later than the worker may be done with it. The tree holds each piece once, whoever
        sends what. `RemoteProtocolError` where there is no such node, or it sends for ever.
        """
        rank, node = self.rank_of(peer), part.node()
        if rank is None:
            return False
        if part.step != step or self.by_rank[rank].served != step:
            self.book.count(peer)
            return False
        if not is_node(node.lo, node.hi, self.micro_batches):
            raise RemoteProtocolError(f"sums over [{node.lo}, {node.hi}): no node of {self.micro_batches} pieces")
        if not self.book.has_any(peer, step, node):
            self.book.expect(peer, self.book.frames + 1)
        self.book.count(peer)
        return self.book.add(peer, step, node, frame)

    def validate(self) -> None:
        """Raise AssertionError where the books contradict one another: for tests, after each event."""
        peers = [visitor.peer for visitor in self.by_rank.values() if visitor.peer is not None]
        assert len(set(peers)) == len(peers), "two workers are behind one connection"
        assert all(self.hellos[peer].rank in self.by_rank for peer in peers)


def _are_one(hello: Hello, admit: Admit) -> bool:
    return (hello.rank, hello.incarnation) == (admit.rank, admit.incarnation)

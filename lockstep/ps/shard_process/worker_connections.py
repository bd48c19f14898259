"""The workers as one shard knows them: who is behind which connection, and what may come from there. Pure.

The server says who takes part and who is served at a step; a worker says who it is. Either may come first.
"""

from dataclasses import dataclass, field

from lockstep.common.aggregation.tree import is_node
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import SumsFrame
from lockstep.common.protocol.shard_messages import Admit, Hello
from lockstep.ps.received_frames import ReceivedFrames

#: Connections whose workers the server has not admitted yet.
MOST_UNIDENTIFIED = 4096


@dataclass
class WorkerConnection:
    """One worker."""

    admit: Admit
    #: Its connection, None before it said who it is, or if it needs none.
    peer: bytes | None = None
    #: The step whose weights it is to be sent, and the one of which it was.
    wanted_step: int | None = None
    served_step: int | None = None


@dataclass
class WorkerConnections:
    """All workers of a run."""

    micro_batches: int
    book: ReceivedFrames
    by_rank: dict[int, WorkerConnection] = field(default_factory=dict)
    #: Who is behind a connection, by its own last message.
    hellos: dict[bytes, Hello] = field(default_factory=dict)

    def admit(self, admit: Admit) -> None:
        """Record that a worker takes part: from now on it is sent weights, and its sums are added."""
        worker = self.by_rank.setdefault(admit.rank, WorkerConnection(admit))
        worker.peer = next((peer for peer, hello in self.hellos.items() if _are_one(hello, worker.admit)), None)

    def remove(self, rank: int) -> None:
        """Record that a worker is gone."""
        worker = self.by_rank.pop(rank, None)
        if worker is not None and worker.peer is not None:
            self.remove_peer(worker.peer)

    def remove_peer(self, peer: bytes) -> None:
        """Record that a connection is not used any more."""
        self.hellos.pop(peer, None)
        self.book.forget(peer)

    def identify(self, peer: bytes, hello: Hello) -> WorkerConnection | None:
        """Record who is behind a connection; return the worker, if it takes part already."""
        before = self.by_rank.get(self.hellos.get(peer, hello).rank)
        if before is not None and before.peer == peer and not _are_one(hello, before.admit):
            before.peer = before.served_step = None  # the worker that it was before has no connection any more
        self.hellos[peer] = hello
        if len(self.hellos) > MOST_UNIDENTIFIED + len(self.by_rank):
            known = {worker.peer for worker in self.by_rank.values()}
            del self.hellos[next(peer for peer in self.hellos if peer not in known)]
        worker = self.by_rank.get(hello.rank)
        if worker is None or not _are_one(hello, worker.admit):
            return None
        if worker.peer != peer:
            worker.peer, worker.served_step = peer, None
        return worker

    def rank_of(self, peer: bytes) -> int | None:
        """Return the rank of the worker behind a connection, None if there is none."""
        hello = self.hellos.get(peer)
        worker = None if hello is None else self.by_rank.get(hello.rank)
        return hello.rank if hello is not None and worker is not None and worker.peer == peer else None

    def is_due(self, worker: WorkerConnection, step: int) -> bool:
        """Tell whether a worker is to be sent the weights of this step now; if so, it counts as served."""
        if worker.peer is None or worker.wanted_step != step or worker.served_step == step:
            return False
        worker.served_step = step
        return True

    def accept(self, peer: bytes, sums: SumsFrame, frame: int, step: int) -> bool:
        """Record a frame that came in the step at hand; return whether it is to be added.

        A worker that was sent the weights of this step may send any node of the tree, each once: only the server knows
        what was leased, and a shard would learn of it later than the worker may be done. The tree holds each
        micro-batch once, whoever sends it. `RemoteProtocolError` if there is no such node, or it never stops sending.
        """
        rank, node = self.rank_of(peer), sums.node()
        if rank is None:
            return False
        if sums.step != step or self.by_rank[rank].served_step != step:
            self.book.count(peer)
            return False
        if not is_node(node.lo, node.hi, self.micro_batches):
            raise RemoteProtocolError(
                f"sums over [{node.lo}, {node.hi}): not a node of {self.micro_batches} micro-batches"
            )
        if not self.book.has_any(peer, step, node):
            self.book.expect(peer, self.book.frames + 1)
        self.book.count(peer)
        return self.book.add(peer, step, node, frame)

    def validate(self) -> None:
        """Raise AssertionError if the records contradict one another: for tests, after each event."""
        peers = [worker.peer for worker in self.by_rank.values() if worker.peer is not None]
        assert len(set(peers)) == len(peers), "two workers are behind one connection"
        assert all(self.hellos[peer].rank in self.by_rank for peer in peers)


def _are_one(hello: Hello, admit: Admit) -> bool:
    return (hello.rank, hello.incarnation) == (admit.rank, admit.incarnation)

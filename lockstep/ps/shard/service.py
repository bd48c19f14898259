"""The service for one slice of the weights: it knows the slice's workers, adds their sums, and sends them weights.

The server calls it for its own slice, and a shard's process for messages of the server and of workers. One rule decides
which sums are added: those of a worker that was sent the weights of this step, each once. In the server's own slice, a
sum is added only if it was also leased to this worker. A shard cannot check leases, because it would learn of a lease
after the worker has finished it. The tree holds each micro-batch once, whichever worker sends it, and the coordinator
refuses results that no lease asks for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node, Vector, is_node
from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.codec import Buffer, encode_header
from lockstep.common.protocol.messages import Lease, Result, SumsFrame, Weights
from lockstep.common.protocol.shard_messages import Admit, Hello
from lockstep.common.statemachine.machine import PeerLeft
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard.shard import Shard

#: How many times a worker may send a frame that it owes: it is leased again while it is late, or not acknowledged.
COPIES = 4

#: Connections whose workers the server has not admitted yet.
MOST_UNIDENTIFIED = 4096

#: A message with weights, and its frames.
EncodedMessage = tuple[Weights | Lease, list[Buffer]]

#: Returns whether a node was leased to the worker with this rank.
WasLeased = Callable[[int, Node], bool]


@dataclass
class SliceWorker:
    """One worker, as the service for a slice knows it."""

    admit: Admit
    #: Its connection, None before it has identified itself, or if it needs none.
    peer: bytes | None = None
    #: Whether it sees the weights in shared memory, so that they need not be sent.
    shares: bool = False
    #: The step whose weights it is to be sent, and the one whose weights it was sent last.
    wanted: int | None = None
    served: int | None = None
    #: How many more frames it may send.
    allowance: int = 0
    #: By node, for each frame of the step whether it is still to come.
    missing: dict[Node, bytearray] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        """Tell whether it is to be sent the weights of the current step."""
        return self.peer is not None and self.wanted == step != self.served

    def serve(self, step: int, frames: int) -> None:
        """Record that it is sent the weights of a step."""
        self.served = step
        self.missing.clear()
        self.allowance += COPIES * (1 + frames)

    def take(self, node: Node, frame: int, frames: int, *, is_late: bool) -> bool:
        """Record a frame; return whether to add it. `RemoteProtocolError` if the worker sends for ever.

        If the same sums are wanted again, after an expired lease, the frames that have come stay.
        """
        if not is_late and node not in self.missing:
            self.missing[node] = bytearray(b"\1") * frames
            self.allowance += COPIES * (1 + frames)
        if self.allowance == 0:
            raise RemoteProtocolError("it sends more than its leases ask for")
        self.allowance -= 1
        if is_late:
            return False
        missing = self.missing[node]
        is_first, missing[frame] = bool(missing[frame]), 0
        return is_first


@dataclass
class SliceService:
    """The workers of one slice, and what passes between them and the slice."""

    shard: Shard
    outbox: Outbox
    #: None if the leases are unknown, as in a shard's process.
    was_leased: WasLeased | None = None
    #: By rank.
    workers: dict[int, SliceWorker] = field(default_factory=dict)
    #: By connection, the worker behind it by its own last message.
    hellos: dict[bytes, Hello] = field(default_factory=dict)
    #: By its first element, the index of a frame.
    frame_at: dict[int, int] = field(init=False)
    #: The messages with the weights after so many updates: packed and copied once, for all workers.
    _messages: tuple[int, list[EncodedMessage]] = (-1, [])

    def __post_init__(self) -> None:
        self.frame_at = {frame.start: index for index, frame in enumerate(self.shard.frames)}

    # Workers come and go: the server names those that take part, and each names itself. Either may come first.

    def admit(self, admit: Admit, *, shares: bool = False) -> None:
        """Record that a worker takes part; one that shares memory sees the weights in it."""
        worker = self.workers.setdefault(admit.rank, SliceWorker(admit))
        worker.shares = shares
        worker.peer = next((peer for peer, hello in self.hellos.items() if _are_one(hello, worker.admit)), None)

    def identify(self, peer: bytes, hello: Hello) -> Sequence[PeerLeft]:
        """Record which worker is behind a connection; send it the weights if it waits for them."""
        before = self.workers.get(self.hellos.get(peer, hello).rank)
        if before is not None and before.peer == peer and not _are_one(hello, before.admit):
            before.peer = before.served = None  # the worker that it was before has no connection any more
        self.hellos[peer] = hello
        if len(self.hellos) > MOST_UNIDENTIFIED + len(self.workers):
            known = {worker.peer for worker in self.workers.values()}
            del self.hellos[next(peer for peer in self.hellos if peer not in known)]
        worker = self.workers.get(hello.rank)
        if worker is None or not _are_one(hello, worker.admit):
            return []
        if worker.peer != peer:
            worker.peer, worker.served = peer, None
        return self._serve(worker)

    def forget(self, rank: int) -> None:
        """Record that a worker is gone."""
        worker = self.workers.pop(rank, None)
        if worker is not None and worker.peer is not None:
            self.hellos.pop(worker.peer, None)

    def forget_peer(self, peer: bytes) -> int | None:
        """Record that a connection is gone; return the rank of the worker behind it, which is gone as well."""
        worker = self.worker_at(peer)
        self.hellos.pop(peer, None)
        if worker is None:
            return None
        self.forget(worker.admit.rank)
        return worker.admit.rank

    def worker_at(self, peer: bytes) -> SliceWorker | None:
        """Return the worker behind a connection."""
        hello = self.hellos.get(peer)
        worker = None if hello is None else self.workers.get(hello.rank)
        return worker if worker is not None and worker.peer == peer else None

    # Weights go to workers

    def send_weights(self, rank: int, step: int) -> Sequence[PeerLeft]:
        """Send a worker the weights of a step, now or as soon as it can be reached."""
        worker = self.workers.get(rank)
        if worker is None:
            return []
        worker.wanted = step
        return self._serve(worker)

    def lacks_weights(self, rank: int, step: int) -> bool:
        """Tell whether a worker has not been sent the weights of a step, and is not about to be."""
        return rank in self.workers and self.workers[rank].wanted != step

    def send_lease(self, rank: int, lease: Lease) -> Sequence[PeerLeft]:
        """Send a lease to a worker, with the weights of its step if they are due; it carries the last frame.

        Only for the slice of the server that decides, at which each worker has identified itself.
        """
        worker = self.workers.get(rank)
        if worker is None or worker.peer is None:
            return []
        worker.wanted = lease.step
        messages = self._due(worker)
        if not messages:
            return self.outbox.send_frames(worker.peer, lease, [encode_header(lease)])
        *before, (last, frames) = messages
        lease = replace(lease, start=last.start)
        return self._send(worker.peer, [*before, (lease, [encode_header(lease), *frames[1:]])])

    def _serve(self, worker: SliceWorker) -> Sequence[PeerLeft]:
        return [] if worker.peer is None else self._send(worker.peer, self._due(worker))

    def _due(self, worker: SliceWorker) -> list[EncodedMessage]:
        """Return the messages with the weights that a worker is to be sent now, and record that it is."""
        shard = self.shard
        if not worker.is_due(shard.updates):
            return []
        worker.serve(shard.updates, len(shard.frames))
        return [] if worker.shares else self._weights()

    def _send(self, peer: bytes, messages: Sequence[EncodedMessage]) -> Sequence[PeerLeft]:
        for message, frames in messages:
            if failed := self.outbox.send_frames(peer, message, frames):
                return failed
        return []

    def _weights(self) -> list[EncodedMessage]:
        """Return the messages with the current weights."""
        shard = self.shard
        if self._messages[0] != shard.updates:
            self._messages = shard.updates, []  # first, so that the memory of those before can be used again
            for frame in shard.frames:
                values = shard.served_weights[frame.start - shard.start : frame.stop - shard.start]
                message = Weights(step=shard.updates, start=frame.start)
                words = shard.policy.wire_weights.pack(values, frame.start)
                self._messages[1].append((message, self.outbox.shared(message, words)))
        return self._messages[1]

    # Sums come from workers

    def on_frame(self, peer: bytes, sums: SumsFrame | Result, words: Vector) -> bool:
        """Add a frame straight from the memory it was received in; return whether it was wanted, and the first copy."""
        worker = self.worker_at(peer)
        if worker is None:
            return False  # they may be from before the run was resumed, when this server had another slice
        node, frame = sums.node(), None if sums.start is None else self.frame_at.get(sums.start)
        if frame is None or not is_node(node.lo, node.hi, self.shard.micro_batches):
            raise RemoteProtocolError(f"sums over {node} from {sums.start} on: not a frame of this slice")
        expected = self.shard.policy.wire.words(self.shard.frames[frame])
        if len(words) != expected:
            raise RemoteProtocolError(f"sums of {len(words)} values: expected {expected}")
        if worker.served is None:
            return False
        is_late = not self._is_wanted(worker, sums.step, node)
        if not worker.take(node, frame, len(self.shard.frames), is_late=is_late):
            return False
        if not self.shard.is_finite(frame, words):
            # A worker that finds such a gradient reports it instead: one that sends it computes wrongly, or lies.
            raise RemoteProtocolError(f"a gradient that is not finite, of micro-batches {node} of step {sums.step}")
        self.shard.receive(frame, node, words)
        return True

    def on_result(self, peer: bytes, result: Result) -> bool:
        """Return False if the sums that a result is about have not all come."""
        return result.work != "train" or self.has_all(peer, result.step, result.node())

    def _is_wanted(self, worker: SliceWorker, step: int, node: Node) -> bool:
        """Tell whether a worker may send the sums of a node of a step.

        If other servers are still making a step's update, and this one has made it, frames of that step are late.
        """
        is_current = step == worker.served == self.shard.updates
        return is_current and (self.was_leased is None or self.was_leased(worker.admit.rank, node))

    def has_all(self, peer: bytes, step: int, node: Node) -> bool:
        """Tell whether all frames of the sums of a node have come, as far as the worker may send them at all."""
        worker = self.worker_at(peer)
        if worker is None or not self._is_wanted(worker, step, node):
            return True
        return node in worker.missing and 1 not in worker.missing[node]

    def validate(self) -> None:
        """Raise AssertionError if the records contradict one another: for tests, after each event."""
        peers = [worker.peer for worker in self.workers.values() if worker.peer is not None]
        assert len(set(peers)) == len(peers), "two workers are behind one connection"
        assert all(self.hellos[peer].rank in self.workers for peer in peers)


def _are_one(hello: Hello, admit: Admit) -> bool:
    return (hello.rank, hello.incarnation) == (admit.rank, admit.incarnation)

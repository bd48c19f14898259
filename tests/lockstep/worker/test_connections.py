"""Servers have turns; weights are whole once all their frames have come, and those of a newer step end the wait."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from lockstep.common.aggregation.slices import FRAME, Slice
from lockstep.common.optim.clipping import BLOCK
from lockstep.common.protocol.shard_messages import Hello
from lockstep.common.transport.port import ClientPort, Frames, ServerPort
from lockstep.worker.connections import ServerConnections, WeightsAssembly


@dataclass
class Queue:
    """A connection to a server, with its messages that have come."""

    messages: deque[bytes] = field(default_factory=deque)
    #: How often it was asked for one.
    asked: int = 0

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self.asked += 1
        return [memoryview(self.messages.popleft())] if self.messages else None

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None: ...
    def diagnosis(self) -> None: ...
    def close(self, linger_s: float = 0.0) -> None: ...


@dataclass
class Servers:
    """The connections to some servers, the first of which decides."""

    queues: list[Queue]
    #: The timeouts of the waits for them; each finds those that have a message.
    waits: list[float | None] = field(default_factory=list)

    def connect(self) -> ServerConnections:
        first, *others = self.queues
        connections = ServerConnections(first, lambda address: others[int(address)], self.wait)
        addresses = [str(place) for place in range(len(others))]
        connections.connect(addresses, len(self.queues) * BLOCK, Hello(rank=0, incarnation="a"))
        return connections

    def wait(self, ports: Sequence[ServerPort | ClientPort], timeout_s: float | None) -> Sequence[int]:
        assert ports == self.queues
        self.waits.append(timeout_s)
        return [place for place, queue in enumerate(self.queues) if queue.messages]


def next_of(connections: ServerConnections, timeout_s: float | None = None) -> bytes | None:
    frames = connections.receive(timeout_s)
    return None if frames is None else bytes(frames[0])


def test_servers_take_turns() -> None:
    servers = Servers([Queue(deque([b"a", b"b", b"c"])), Queue(deque([b"x"]))])
    connections = servers.connect()
    assert [next_of(connections) for _ in range(4)] == [b"a", b"x", b"b", b"c"]
    assert servers.waits == [None]


def test_only_servers_that_may_have_sent_a_message_are_asked() -> None:
    servers = Servers([Queue(), Queue(deque([b"x"])), Queue()])
    connections = servers.connect()
    assert next_of(connections, 3.0) == b"x"
    assert next_of(connections, 0.0) is None
    assert [queue.asked for queue in servers.queues] == [0, 2, 0]
    assert servers.waits == [3.0, 0.0]


def test_a_server_that_was_left_is_not_asked_again() -> None:
    servers = Servers([Queue(), Queue(deque([b"x", b"y"]))])
    connections = servers.connect()
    assert next_of(connections) == b"x"
    connections.disconnect()
    assert next_of(connections) is None
    assert servers.waits == [None]


def assembly() -> WeightsAssembly:
    return WeightsAssembly({frame.start: len(frame) for frame in Slice(0, 2 * FRAME + 5).frames()})


def test_the_last_frame_makes_them_whole_whichever_it_is() -> None:
    frames = assembly()
    assert [frames.add(0, start) for start in (FRAME, 2 * FRAME, 0)] == [False, False, True]


def test_a_frame_that_comes_twice_counts_once() -> None:
    frames = assembly()
    assert [frames.add(0, start) for start in (0, 0, FRAME, 0, 2 * FRAME, 0)] == [False] * 4 + [True, False]


def test_a_newer_step_ends_the_wait_for_an_older() -> None:
    frames = assembly()
    frames.add(3, 0)
    frames.add(3, FRAME)
    assert [frames.add(4, start) for start in (0, FRAME)] == [False, False]
    assert not frames.add(3, 2 * FRAME)
    assert frames.add(4, 2 * FRAME)


def test_lengths_are_those_of_the_frames() -> None:
    assert assembly().lengths == {0: FRAME, FRAME: FRAME, 2 * FRAME: 5}

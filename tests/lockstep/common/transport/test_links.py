"""Ports received from as one: each has its turn, and only those that may have a message are asked."""

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from lockstep.common.transport.links import Links, Receiver
from lockstep.common.transport.zeromq.ports import PortPoller, dial, serve


@dataclass
class Queue:
    messages: deque[str] = field(default_factory=deque)

    def receive(self, timeout_s: float | None) -> str | None:
        return self.messages.popleft() if self.messages else None


def test_ports_take_turns() -> None:
    loud, quiet, waits = Queue(deque(["a", "b", "c"])), Queue(deque(["x"])), list[float | None]()

    def wait(ports: Sequence[Receiver[object]], timeout_s: float | None) -> Sequence[int]:
        waits.append(timeout_s)
        return range(2)

    links = Links([loud, quiet], wait)
    assert [links.receive(None) for _ in range(4)] == [(0, "a"), (1, "x"), (0, "b"), (0, "c")]
    assert waits == [None]


class Silent(Queue):
    def receive(self, timeout_s: float | None) -> str | None:
        raise AssertionError("there is nothing to hear")


def test_only_ports_that_may_have_a_message_are_asked() -> None:
    late = Queue(deque(["x"]))
    links = Links([Silent(), late, Silent()], lambda ports, timeout_s: [1] if late.messages else [])
    assert links.receive(3.0) == (1, "x")
    assert links.receive(0.0) is None


def test_sockets_are_waited_for_together() -> None:
    with (
        closing(serve("tcp://127.0.0.1:0")) as quiet,
        closing(serve("tcp://127.0.0.1:0")) as loud,
        closing(dial(quiet.address)) as first,
        closing(dial(loud.address)) as second,
    ):
        second.send([b"hello"])
        received = loud.receive(30.0)
        assert received is not None
        links = Links[list[memoryview]]([first, second], PortPoller())
        assert links.receive(0.01) is None
        loud.send(received[0], [b"hello back"])
        place, frames = links.receive(30.0) or (None, [])
        assert (place, [bytes(frame) for frame in frames]) == (1, [b"hello back"])


def test_sockets_that_a_port_has_opened_instead_of_others_are_waited_for() -> None:
    wait = PortPoller()
    with closing(serve("tcp://127.0.0.1:0")) as server:
        assert wait([server], 0.0) == []
        server.make_room(10_000)
        with closing(dial(server.address)) as client:
            client.send([b"hello"])
            assert wait([server], 30.0) == [0]

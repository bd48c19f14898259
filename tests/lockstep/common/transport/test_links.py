"""Ports heard as one: none is drowned by another, and nobody waits where something has come."""

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from lockstep.common.transport.links import Links, Receiver
from lockstep.common.transport.zeromq.ports import dial, serve, wait_for_any


@dataclass
class Queue:
    messages: deque[str] = field(default_factory=deque)

    def receive(self, timeout_s: float | None) -> str | None:
        return self.messages.popleft() if self.messages else None


def never(ports: Sequence[Receiver[object]], timeout_s: float | None) -> None:
    raise AssertionError("there was something to hear")


def test_ports_take_turns() -> None:
    loud, quiet = Queue(deque(["a", "b", "c"])), Queue(deque(["x"]))
    links = Links([loud, quiet], never)
    assert [links.receive(None) for _ in range(4)] == [(0, "a"), (1, "x"), (0, "b"), (0, "c")]


def test_it_looks_again_after_waiting() -> None:
    late = Queue()

    def arrives(ports: Sequence[Receiver[object]], timeout_s: float | None) -> None:
        assert timeout_s == 3.0
        late.messages.append("x")

    assert Links([Queue(), late], arrives).receive(3.0) == (1, "x")
    assert Links([Queue(), late], lambda ports, timeout_s: None).receive(0.0) is None


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
        links = Links[list[memoryview]]([first, second], wait_for_any)
        assert links.receive(0.01) is None
        loud.send(received[0], [b"hello back"])
        place, frames = links.receive(30.0) or (None, [])
        assert (place, [bytes(frame) for frame in frames]) == (1, [b"hello back"])

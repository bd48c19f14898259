"""`lockstep server`: how it listens. What it serves is for tests/system."""

from contextlib import closing

from lockstep.common.transport.port import PeerSlow
from lockstep.common.transport.zeromq.ports import dial
from lockstep.launch.serve import Listening
from lockstep.ps.server.server import QUEUE

#: What the sockets' buffers and the backlog of a client may hold beside the queue, in frames of a MiB.
BUFFERED = 24


def test_before_the_model_is_known_little_waits_for_one_that_does_not_read() -> None:
    sent = 0
    with (
        closing(Listening("tcp://127.0.0.1:0", None, False).serve(1)) as server,
        closing(dial(server.address)) as client,
    ):
        client.send([b"hello"])
        received = server.receive(20.0)
        assert received is not None
        try:
            while sent <= QUEUE + BUFFERED:
                server.send(received[0], [bytes(2**20)])
                sent += 1
        except PeerSlow:
            pass
    assert QUEUE // 2 <= sent <= QUEUE + BUFFERED

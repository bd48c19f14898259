"""Ports are waited for together."""

from contextlib import closing

from lockstep.common.transport.zeromq.ports import PortPoller, dial, serve


def test_only_ports_that_may_have_a_message_are_found() -> None:
    wait = PortPoller()
    with (
        closing(serve("tcp://127.0.0.1:0")) as quiet,
        closing(serve("tcp://127.0.0.1:0")) as loud,
        closing(dial(quiet.address)) as first,
        closing(dial(loud.address)) as second,
    ):
        second.send([b"hello"])
        received = loud.receive(30.0)
        assert received is not None
        assert wait([first, second], 0.01) == []
        loud.send(received[0], [b"hello back"])
        assert wait([first, second], 30.0) == [1]


def test_sockets_that_a_port_has_opened_instead_of_others_are_waited_for() -> None:
    wait = PortPoller()
    with closing(serve("tcp://127.0.0.1:0")) as server:
        assert wait([server], 0.0) == []
        server.make_room(10_000)
        with closing(dial(server.address)) as client:
            client.send([b"hello"])
            assert wait([server], 30.0) == [0]

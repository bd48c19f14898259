"""The network in memory shuffles what is heard, by its seed alone, and never waits."""

import pytest

from lockstep.common.errors import AddressError
from lockstep.common.transport.in_memory import MemoryNetwork


def heard(seed: int, clients: int = 5, each: int = 6) -> list[tuple[int, int]]:
    """Return (client, number) of all messages in the order in which the server hears them."""
    network = MemoryNetwork(seed)
    server = network.server()
    for name, client in enumerate([network.client() for _ in range(clients)]):
        for number in range(each):
            client.send([bytes([name, number])])
    order = []
    while (received := server.receive(None)) is not None:
        name, number = received[1][0]
        order.append((name, number))
    return order


def test_the_same_seed_gives_the_same_trace() -> None:
    assert heard(1) == heard(1)


def test_another_seed_gives_another_order_of_the_same_messages() -> None:
    assert heard(1) != heard(2)
    assert sorted(heard(1)) == sorted(heard(2))
    assert sorted(heard(1)) != heard(1)


def test_the_order_within_a_connection_is_kept() -> None:
    order = heard(7)
    for name in range(5):
        assert [number for client, number in order if client == name] == list(range(6))


def test_a_second_server_is_refused_while_the_first_is_open() -> None:
    network = MemoryNetwork(0)
    server = network.server()
    with pytest.raises(AddressError, match="'memory://' is in use"):
        network.server()
    server.close()
    network.server().close()


def test_what_was_on_its_way_to_a_server_that_closed_is_lost() -> None:
    network = MemoryNetwork(0)
    server, client = network.server(), network.client()
    client.send([b"lost"])
    server.close()
    client.send([b"kept"])
    received = network.server().receive(None)
    assert received is not None
    assert received[1] == [b"kept"]

"""The network in virtual time keeps what the ports promise, and breaks what they do not."""

import pytest

from lockstep.common.transport.in_memory import SILENCE_S
from lockstep.common.transport.port import PeerGone
from tests.simulation.seeds.listeners import Scene, link_of

LETTERS = [bytes([letter]) for letter in b"abcdefgh"]


def send_all(scene: Scene) -> None:
    for letter in LETTERS:
        for number, port in enumerate(scene.ports):
            port.send([bytes([number]) + letter])


def heard_of(scene: Scene, number: int) -> list[bytes]:
    return [word[1:] for word in scene.server.words() if word[0] == number]


def test_one_connection_keeps_the_order_and_several_do_not() -> None:
    scene = Scene()
    send_all(scene)
    scene.run()
    assert heard_of(scene, 0) == heard_of(scene, 1) == LETTERS
    assert [word[0] for word in scene.server.words()] != [0, 1] * len(LETTERS)


def test_a_connection_that_breaks_loses_what_is_on_its_way_and_is_made_again() -> None:
    scene = Scene()
    scene.ports[0].send([b"before"])
    scene.run(1.0)
    scene.ports[0].send([b"lost"])
    scene.ports[0].disconnect()
    scene.ports[0].send([b"after"])
    scene.run(2.0)
    assert scene.server.words() == [b"before", b"after"]
    first, second = scene.server.peers
    assert first != second
    with pytest.raises(PeerGone):
        scene.server_port.send(first, [b"answer"])


@pytest.mark.parametrize("ways", ["up", "down", "both"])
def test_what_a_silent_wire_holds_back_comes_when_it_heals(ways: str) -> None:
    scene = Scene()
    scene.ports[0].send([b"first"])
    scene.run(1.0)
    scene.ports[0].silence(up=ways != "down", down=ways != "up")
    scene.ports[0].send([b"second"])
    scene.server_port.send(scene.server.peers[0], [b"answer"])
    scene.run(2.0)
    assert (b"second" in scene.server.words()) == (ways == "down")
    assert (b"answer" in scene.one.words()) == (ways == "up")
    scene.ports[0].heal()
    scene.run(3.0)
    assert scene.server.words() == [b"first", b"second"]
    assert scene.one.words() == [b"answer"]


def test_a_silence_that_lasts_breaks_the_connection() -> None:
    scene = Scene()
    scene.ports[0].send([b"first"])
    scene.run(1.0)
    scene.ports[0].silence(up=True, down=True)
    scene.ports[0].send([b"lost"])
    scene.run(2.0 + SILENCE_S)
    with pytest.raises(PeerGone):
        scene.server_port.send(scene.server.peers[0], [b"answer"])
    scene.ports[0].heal()
    scene.ports[0].send([b"after"])
    scene.run(4.0 + SILENCE_S)
    assert scene.server.words() == [b"first", b"after"]


def test_ended_connections_are_reported_to_the_server() -> None:
    scene = Scene()
    for port in scene.ports:
        port.send([b"here"])
    scene.run(1.0)
    lost = []
    for _ in range(20):
        scene.ports[0].disconnect()
        scene.run(scene.world.now + 1.0)
        scene.ports[0].send([b"again"])
        scene.run(scene.world.now + 1.0)
        lost += scene.server_port.lost()
    # A network may swallow some.
    assert 10 <= len(set(lost)) == len(lost) < 20


def test_a_message_that_may_be_said_again_is_now_and_then() -> None:
    scene = Scene(link=link_of(repeats=0.5, may_repeat=lambda message: bytes(message[0][1:]) != b"a"))
    send_all(scene)
    scene.run()
    assert heard_of(scene, 0).count(b"a") == 1
    assert {heard_of(scene, 0).count(letter) for letter in LETTERS[1:]} == {1, 2}

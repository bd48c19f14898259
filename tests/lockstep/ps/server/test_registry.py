"""A server knows its standbys by their addresses, and forgets those that are silent."""

import msgspec

from lockstep.common.protocol.messages import PROTOCOL_VERSION, STANDBYS_LIMIT, StandbyAddress, StandbyStatus
from lockstep.common.protocol.standby_messages import MirrorRequest
from lockstep.ps.server.succession import GONE_S, StandbyRegistry

FIRST = MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address="tcp://h:1", public="k", step=3, is_whole=True)
SECOND = msgspec.structs.replace(FIRST, address="tcp://h:2", public="", step=6, is_whole=False)


def registry() -> StandbyRegistry:
    made = StandbyRegistry()
    assert made.on_request(b"1", FIRST, 1.0) is True
    assert made.on_request(b"2", SECOND, 2.0) is True
    return made


def test_a_standby_is_new_once_unless_its_key_is_another() -> None:
    made = registry()
    assert made.on_request(b"1", FIRST, 3.0) is False
    # It has dialled again, and gone on.
    assert made.on_request(b"3", msgspec.structs.replace(FIRST, step=9), 3.0) is False
    assert made.on_request(b"3", msgspec.structs.replace(FIRST, public="other"), 3.0) is True
    assert made.addresses() == (
        StandbyAddress(address="tcp://h:1", public="other"),
        StandbyAddress(address="tcp://h:2"),
    )
    assert made.by_peer(b"1") is None


def test_no_more_than_so_many_are_known() -> None:
    made = StandbyRegistry()
    for number in range(STANDBYS_LIMIT):
        assert made.on_request(b"%d" % number, msgspec.structs.replace(FIRST, address=f"tcp://h:{number}"), 1.0)
    assert made.on_request(b"x", msgspec.structs.replace(FIRST, address="tcp://h:x"), 1.0) is None
    assert len(made.members) == STANDBYS_LIMIT
    # Those that are known may go on.
    assert made.on_request(b"0", msgspec.structs.replace(FIRST, address="tcp://h:0"), 2.0) is False


def test_what_is_known_of_them_is_what_they_last_asked_with() -> None:
    assert registry().statuses() == [
        StandbyStatus(address="tcp://h:1", host="h", step=3, is_whole=True),
        StandbyStatus(address="tcp://h:2", host="h", step=6, is_whole=False),
    ]
    member = registry().by_peer(b"2")
    assert member is not None
    assert (member.peer, member.request, member.heard) == (b"2", SECOND, 2.0)


def test_the_best_has_all_of_the_run_and_then_most_of_it() -> None:
    made = registry()
    best = made.best()
    assert best is not None
    assert best.request == FIRST
    made.on_request(b"2", msgspec.structs.replace(SECOND, is_whole=True), 2.0)
    best = made.best()
    assert best is not None
    assert best.request.step == 6
    assert StandbyRegistry().best() is None


def test_one_whose_connection_is_gone_is_forgotten() -> None:
    made = registry()
    assert made.remove_peer(b"x") is None
    gone = made.remove_peer(b"1")
    assert gone is not None
    assert gone.request == FIRST
    assert list(made.members) == ["tcp://h:2"]
    assert made.remove_peer(b"1") is None


def test_those_that_are_silent_are_forgotten_in_time() -> None:
    made = registry()
    assert made.deadline() == 1.0 + GONE_S
    assert made.expire(0.9 + GONE_S) == []
    assert [member.request for member in made.expire(1.0 + GONE_S)] == [FIRST]
    assert made.deadline() == 2.0 + GONE_S
    assert [member.request for member in made.expire(2.0 + GONE_S)] == [SECOND]
    assert (made.deadline(), made.addresses()) == (None, ())

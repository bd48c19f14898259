"""A worker that misbehaves takes little of the others' speed. For a machine with nothing else to do."""

from contextlib import closing

import pytest

from lockstep.common.transport.port import Limits
from lockstep.common.transport.zeromq.ports import dial
from tests.system.bad_worker import ACTS, Act, BadWorker, misbehaving, never_read
from tests.system.jobs import AT_FULL_SPEED
from tests.system.processes import Place
from tests.system.speed import speed_of, training

pytestmark = pytest.mark.slow

#: Seconds over which the speed is measured without the bad worker, before it comes and after, and beside it.
ALONE_S, BESIDE_S, BESIDE_UNREAD_S = 10.0, 30.0, 60.0

#: Seconds between two acts: what a fast sender takes of a core is not the server's doing, and shows only where there
#: are no more cores than processes. One that does not read lives on, and asks no more often than others do.
EVERY_S, ALIVE_S = 0.001, 0.05

#: The share of their speed that the others keep beside one that does not read, and beside one that sends too much.
KEPT_UNREAD, KEPT = 0.9, 0.8


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_the_others_keep_most_of_their_speed(place: Place, act: Act) -> None:
    seconds, kept, every_s = (BESIDE_UNREAD_S, KEPT_UNREAD, ALIVE_S) if act is never_read else (BESIDE_S, KEPT, EVERY_S)
    with (
        training(place, *AT_FULL_SPEED, "--transport", "tcp") as (server, address),
        closing(dial(address, limits=Limits(frame_bytes=2**30))) as port,
    ):
        before = speed_of(server, address, ALONE_S)
        with misbehaving(BadWorker(port), act, every_s):
            beside = speed_of(server, address, seconds)
        port.close()
        alone = (before + speed_of(server, address, ALONE_S)) / 2
        print(f"{beside:.0f} steps per second beside it, {alone:.0f} without: {beside / alone:.2f}")
        assert beside >= kept * alone

"""What `lockstep status` prints of a run."""

import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
import pytest

from lockstep.cli.machines.status import ask_run, status_lines
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import ShardStatus, StandbyAddress, StatusRequest
from lockstep.common.transport.auth.credentials import ClientKeys, ServerKeys
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.zeromq.client import ENOUGH_FAILURES
from lockstep.common.transport.zeromq.ports import serve
from tests.lockstep.statuses import EPOCH, status, worker


def test_a_standby_is_asked_with_a_key_of_its_own() -> None:
    first, standby, worker_key = new_pair(), new_pair(), new_pair()
    credential = ClientKeys(worker_key, first.public, (standby.public,))
    lock = ServerKeys(standby, lambda: {worker_key.public: "worker-1"})
    rejections = RejectionLog()
    with (
        closing(serve("tcp://127.0.0.1:0", lock=lock, rejections=rejections)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask_run, server.address, StatusRequest(), credential, 20.0)
        while (received := server.receive(20.0)) is None:
            server.lost()
        server.send(received[0], encode(status()))
        assert asked.result(20.0) == status()
        # Those are enough to know that the first key is not this server's: each is a line in its log.
        times = [re.search(r"\((\d+) times\)$", line) for line in rejections.due(0.0)]
        assert 0 < sum(1 if found is None else int(found[1]) for found in times) <= 8 * ENOUGH_FAILURES
        # It has refused none of them.
        assert rejections.count == 0


@pytest.mark.parametrize("is_led", [True, False])
def test_a_standby_that_is_asked_names_the_server_that_leads_the_run(is_led: bool) -> None:
    with (
        closing(serve("tcp://127.0.0.1:0", insecure=True)) as standby,
        closing(serve("tcp://127.0.0.1:0", insecure=True)) as leader,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask_run, standby.address, StatusRequest(), None, 20.0 if is_led else 0.5)
        of_standby = status(is_standby=True, leader=StandbyAddress(address=leader.address))
        for server, answer in ((standby, of_standby), (leader, status(step=7) if is_led else None)):
            while (received := server.receive(20.0)) is None:
                server.lost()
            if answer is not None:
                server.send(received[0], encode(answer))
        # If the leader does not answer, what the standby has of the run is shown.
        assert asked.result(20.0) == (status(step=7) if is_led else of_standby)


def test_workers_and_teams_are_counted() -> None:
    lines = status_lines(status(workers=[worker(0, processes=4), worker(1, processes=2)]))
    assert lines[-1] == "6 workers in 2 teams"
    assert not [line for line in status_lines(status(workers=[])) if "team" in line]


def test_of_many_epochs_some_are_shown() -> None:
    history = [msgspec.structs.replace(EPOCH, epoch=epoch) for epoch in range(1, 183)]
    lines = [line for line in status_lines(status(history=history, epochs=300)) if "test" in line]
    assert [line.split()[1] for line in lines] == [f"{epoch}/300" for epoch in (1, *range(10, 181, 10), 182)]


def test_the_host_of_each_slice_is_shown() -> None:
    shards = [ShardStatus(host="b", address="tcp://b:7"), ShardStatus(host="c", address="tcp://c:8")]
    lines = [line for line in status_lines(status(shards=shards)) if "slice" in line]
    assert lines == [
        "slice 2 of 3 of the weights is at tcp://b:7 (host b)",
        "slice 3 of 3 of the weights is at tcp://c:8 (host c)",
    ]

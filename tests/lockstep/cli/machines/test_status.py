"""What `lockstep status` prints of a run."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from lockstep.cli.machines.status import ask, status_lines
from lockstep.common.protocol.codec import encode
from lockstep.common.transport.auth.credentials import ClientKeys, ServerKeys
from lockstep.common.transport.auth.curve import new_pair
from lockstep.common.transport.diagnosis import ENOUGH_FAILURES
from lockstep.common.transport.limits import RejectionLog
from lockstep.common.transport.zeromq.ports import serve
from tests.lockstep.statuses import status, worker


def test_a_standby_is_asked_with_a_key_of_its_own() -> None:
    first, standby, worker_key = new_pair(), new_pair(), new_pair()
    credential = ClientKeys(worker_key, first.public, (standby.public,))
    lock = ServerKeys(standby, lambda: {worker_key.public: "worker-1"})
    rejections = RejectionLog()
    with (
        closing(serve("tcp://127.0.0.1:0", lock=lock, rejections=rejections)) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, server.address, 20.0, credential)
        while (received := server.receive(20.0)) is None:
            server.lost()
        server.send(received[0], encode(status()))
        assert asked.result(20.0) == status()
        # Those are enough to know that the first key is not this server's: each is a line in its log.
        assert ENOUGH_FAILURES <= rejections.count <= 8 * ENOUGH_FAILURES


def test_workers_and_teams_are_counted() -> None:
    lines = status_lines(status(workers=[worker(0, processes=4), worker(1, processes=2)]))
    assert lines[-1] == "6 workers in 2 teams"
    assert not [line for line in status_lines(status(workers=[])) if "team" in line]

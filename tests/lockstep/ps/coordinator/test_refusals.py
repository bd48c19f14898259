"""Who is not taken in may ask for ever: each is answered, few lines are written, and nothing is kept of them."""

import pytest

from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.common.protocol.messages import Join, Refused, ServerMessage
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.transport.in_memory import MemoryNetwork
from lockstep.common.transport.limits import WINDOW_S, RejectionLog
from lockstep.ps.run.progress import Traffic
from lockstep.ps.server.limits import PeerBlocklist, StatusAnswers
from lockstep.ps.shard.outbox import Outbox
from tests.lockstep.ps.runs import Drive, join_of
from tests.simulation.cluster import Simulation
from tests.simulation.small import JOBS

TIMES = 200

WORKER = join_of(1, protocol=99)
SHARD = ShardJoin(protocol=99, incarnation="s", host="h", pid=1, fingerprint=fingerprint(), address="memory://1")


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("join", [WORKER, SHARD], ids=["worker", "shard"])
def test_who_asks_for_ever_is_answered_and_seldom_told_of(join: Join | ShardJoin, servers: int) -> None:
    simulation = Simulation(JOBS["mlp"], options=RunOptions(servers=servers))
    client = simulation.network.client()

    def ask(times: int) -> list[str]:
        simulation.said.clear()
        for _ in range(times):
            client.send(encode(join))
            simulation.run_until_quiet()
            frames = client.receive(0.0)
            assert frames is not None
            assert isinstance(decode(frames, ServerMessage)[0], Refused)
        return [text for text in simulation.said if "refused" in text]

    (first,) = ask(TIMES)
    assert first.startswith("refused a ")
    simulation.advance(WINDOW_S)
    assert ask(1) == [f"{first} ({TIMES - 1} times)"]


def test_a_status_has_the_numbers_of_those_that_were_rejected() -> None:
    port, coordinator = MemoryNetwork(0).server(), Drive().coordinator
    blocklist = PeerBlocklist(port, ManualClock(), list[str]().append, RejectionLog())
    StatusAnswers(coordinator, Outbox(port, Traffic()), blocklist, ManualClock())
    blocklist.rejections.record("a connection")
    blocklist.add(b"bad", "it lies")
    status = coordinator.status(0.0)
    assert (status.refused, status.broken) == (1, 1)


def test_all_are_counted_and_few_are_told_of() -> None:
    said: list[str] = []
    blocklist = PeerBlocklist(MemoryNetwork(0).server(), ManualClock(), said.append, RejectionLog())
    for _ in range(TIMES):
        blocklist.report_refusal("refused a shard: x")
    assert said == ["refused a shard: x"]
    assert blocklist.refused.count == TIMES

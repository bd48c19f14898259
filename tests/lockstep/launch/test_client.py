"""Who a process is to the server that it joins."""

import os

from lockstep.common.errors import Diagnosis, Stage
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import CORES_LIMIT, PROTOCOL_VERSION, Status
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.common.transport.in_memory import ADDRESS, MemoryNetwork
from lockstep.launch.client import SILENCE_S, StatusClient, no_answer, own_join, shard_join


def test_this_process_knows_where_it_runs_and_is_another_each_time() -> None:
    join = own_join()
    assert (join.protocol, join.pid) == (PROTOCOL_VERSION, os.getpid())
    assert join.machine == (machine_id() or join.host)
    assert join.cores == core_numbers()[:CORES_LIMIT]
    assert own_join().incarnation != join.incarnation


def test_a_shard_joins_as_the_process_that_it_is() -> None:
    shard, worker = shard_join(own_join(), "ipc:///s"), own_join()
    assert (shard.protocol, shard.host, shard.pid) == (worker.protocol, worker.host, worker.pid)
    assert (shard.fingerprint, shard.address) == (worker.fingerprint, "ipc:///s")


def test_a_server_that_does_not_answer_is_reported_with_its_cause_and_by_that_alone_if_it_is_certain() -> None:
    certain = Diagnosis("the server at ipc:///s requires a key", Stage.KEY, is_final=True)
    assert str(no_answer("ipc:///s", 5.0, certain)) == certain.text
    likely = Diagnosis("nothing listens there", Stage.PORT)
    assert (
        str(no_answer("ipc:///s", 0.5, likely)) == "no server answered at ipc:///s within 0.5 s; nothing listens there"
    )
    assert str(no_answer("ipc:///s", 5.0, None)) == "no server answered at ipc:///s within 5 s"


def test_an_observer_asks_a_server_again_that_was_restarted() -> None:
    network, clock = MemoryNetwork(0), ManualClock()
    observer, server = StatusClient(network.client(ADDRESS), clock), network.server(ADDRESS)
    answer = Status(run="r", phase="training", step=4, steps=9)
    assert observer.ask(0.0) is None
    assert server.receive(0.0) is not None
    # The server is lost before it answers, and another one is there.
    assert observer.ask(0.0) is None
    assert server.receive(0.0) is None
    clock.advance(SILENCE_S + 0.1)
    assert observer.ask(0.0) is None
    received = server.receive(0.0)
    assert received is not None
    server.send(received[0], encode(answer))
    assert observer.ask(0.0) == answer

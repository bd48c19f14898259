"""Who a process is to the server that it joins."""

import os
from dataclasses import dataclass, field

import pytest

from lockstep.common.errors import Diagnosis, Stage
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import CORES_LIMIT, PROTOCOL_VERSION, StandbyAddress, StandbyStatus, Status
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.environment import core_numbers, machine_id
from lockstep.common.transport.in_memory import MemoryClient, MemoryNetwork, MemoryServer
from lockstep.launch.client import SILENCE_S, RunObserver, no_answer, own_join, shard_join


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


def led(term: int, *standbys: str) -> Status:
    """Return the status of a run that has these standbys."""
    others = [StandbyStatus(address=address, host="h", step=3, is_whole=True) for address in standbys]
    return Status(run="r", phase="training", step=4, steps=9, term=term, standbys=others)


def mirrored(leader: str = "") -> Status:
    """Return the status of a standby, which names the leader if it hears one."""
    named = StandbyAddress(address=leader) if leader else None
    return Status(run="r", phase="standby", step=3, steps=9, is_standby=True, leader=named)


@dataclass
class Watched:
    """Two servers of a run, and an observer that was given the address of one."""

    address: str
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(0))
    clock: ManualClock = field(default_factory=ManualClock)
    servers: dict[str, MemoryServer] = field(default_factory=dict)
    observer: RunObserver = field(init=False)

    def __post_init__(self) -> None:
        self.servers = {address: self.network.server(address) for address in ("memory://a", "memory://b")}
        self.observer = RunObserver(self.address, None, self._dial, self.clock)

    def _dial(self, address: str, public: str = "") -> MemoryClient:
        return self.network.client(address)

    def seen(self, a: Status | None = None, b: Status | None = None) -> int | None:
        """Return the term of the run that the observer is shown within some seconds, None if it is shown none."""
        answers, until = {"memory://a": a, "memory://b": b}, self.clock.now() + 2 * SILENCE_S
        while self.clock.now() < until:
            status = self.observer.ask(0.0)
            for address, server in self.servers.items():
                while (received := server.receive(0.0)) is not None:
                    answer = answers[address]
                    if answer is not None:
                        server.send(received[0], encode(answer))
            if status is not None:
                return status.term
            self.clock.advance(1.0)
        return None


def test_an_observer_follows_a_run_to_the_standby_that_leads_it_and_back() -> None:
    watched = Watched("memory://a")
    assert watched.seen(a=led(1, "memory://b")) == 1
    assert watched.seen(b=mirrored()) is None
    assert watched.seen(b=led(2)) == 2
    assert watched.seen(a=led(3, "memory://b"), b=mirrored("memory://a")) == 3


@pytest.mark.parametrize("address", ["memory://a", "memory://b"])
def test_an_observer_of_a_standby_asks_the_server_that_this_names(address: str) -> None:
    leader, own = ("b", "a") if address == "memory://a" else ("a", "b")
    assert Watched(address).seen(**{own: mirrored(f"memory://{leader}"), leader: led(1, address)}) == 1


def test_an_observer_asks_a_server_again_that_was_restarted() -> None:
    watched = Watched("memory://a")
    assert watched.seen() is None
    assert watched.seen(a=led(1)) == 1

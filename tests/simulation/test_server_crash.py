"""The server dies at any event, and another one goes on at its place: workers find it, and the bits are the same."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Join, Ping, Ready, Result, StatusRequest
from lockstep.common.statemachine.machine import kind_of
from lockstep.ps.checkpoint.resuming import Resumption
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Finish
from lockstep.ps.records.recorder import Setting
from lockstep.ps.server.server import Server
from lockstep.ps.setup import AdmissionPolicy
from lockstep.runs.session import open_session
from tests.simulation.cluster import Simulation
from tests.simulation.test_resuming import JOB, bits, calm, destination_in, opening_of

#: Seconds within which a worker is back.
BACK_S = 10.0


class CrashError(BaseException):
    """The end of a server, as by SIGKILL."""


@dataclass
class Crashing(Coordinator):
    """Dies with the so-many-th event of a kind: before it is handled, or when nothing of it has been done yet."""

    kind: type = events.TimePassed
    left: int = field(default=0, kw_only=True)
    is_after: bool = field(default=False, kw_only=True)

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        if kind_of(event) is not self.kind:
            return super().handle(event, now)
        self.left -= 1
        if self.left == 0 and self.is_after:
            super().handle(event, now)
        if self.left == 0:
            raise CrashError
        return super().handle(event, now)


def take_place(simulation: Simulation, folder: Path, crash: tuple[type, int, bool] | None) -> None:
    """Put a server at the simulation's address, which begins the run or goes on with it."""
    opening = opening_of()
    is_resumed = (folder / "ledger.jsonl").exists()
    setting = Setting(servers=1, transport="memory", started=simulation.clock.now())
    destination = destination_in(folder, is_resumed=is_resumed, every_steps=2)
    session = open_session(opening, setting, destination, simulation.clock, simulation.said.append)
    simulation.server.port.close()
    simulation.server = Server(
        coordinator_at(session.start, replace(opening.info, min_workers=1 if is_resumed else 2), crash),
        opening,
        session.recorder,
        simulation.network.server(),
        simulation.clock,
        simulation.said.append,
        checkpointer=session.checkpointer,
    )


def coordinator_at(start: Resumption, info: Any, crash: tuple[type, int, bool] | None) -> Coordinator:
    if crash is None:
        return Coordinator(info, progress=start.progress, start=start.round)
    kind, left, is_after = crash
    return Crashing(info, progress=start.progress, start=start.round, kind=kind, left=left, is_after=is_after)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return calm(tmp_path_factory.mktemp("calm"))


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (Join, 1),
        (Join, 2),
        (Ready, 1),
        (Ready, 2),
        *((Result, count) for count in range(1, 18, 2)),
        (Ping, 1),
        (events.StatusRequested, 1),
        (events.StatusRequested, 4),
        (events.TimePassed, 1),
        (events.PeerLeft, 1),
    ],
)
def test_a_server_that_dies_at_an_event_changes_nothing(
    tmp_path: Path, expected: dict[str, Any], kind: type, count: int, is_after: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    simulation = Simulation(JOB, seed=count, admission=AdmissionPolicy(min_workers=2))
    take_place(simulation, folder, (kind, count, is_after))
    workers = [simulation.add_worker(), simulation.add_worker()]
    observer = simulation.network.client()
    try:
        for turn in range(2000):
            if turn % 10 == 0:
                observer.send(encode(StatusRequest()))
                while observer.receive(0.0) is not None:
                    pass
            if kind is events.PeerLeft and turn == 30:
                workers[1].die()
                workers.append(simulation.add_worker())
            # One that waits for the others asks whether the server is there.
            if kind is Ping and turn in (4, 12, 20, 28):
                simulation.clock.advance(3.0)
            simulation.turn()
            if simulation.server.ended is not None:
                break
        raise AssertionError(f"{kind.__name__} did not happen {count} times")
    except CrashError:
        simulation.server.recorder.close()
    died = simulation.clock.now()
    take_place(simulation, folder, None)
    simulation.run(until=simulation.server.coordinator.is_running)
    assert simulation.clock.now() - died <= BACK_S
    simulation.run()
    assert simulation.server.ended == Finish()
    simulation.server.recorder.close()
    assert bits(folder) == expected

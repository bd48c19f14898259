"""Whom a server's run goes on at, and until when a server that is over waits for those that mirror it."""

from pathlib import Path

import pytest

from lockstep.common.errors import FailureKind
from lockstep.common.protocol.messages import PROTOCOL_VERSION, HandedOver, StandbyAddress
from lockstep.common.protocol.standby_messages import MirrorRequest
from lockstep.common.runtime.notice import Notice
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.server.succession import END_S, HAND_OVER_S, INTERRUPTED_S, Succession
from lockstep.ps.standby.source import MirrorSource
from tests.simulation.cluster import Simulation
from tests.simulation.small import job_of

#: When a run ends.
NOW = 7.0

STANDBY, OTHER = b"one", b"two"


def request_of(peer: bytes, *, is_whole: bool = False) -> MirrorRequest:
    address = f"memory://{peer.decode()}"
    return MirrorRequest(protocol=PROTOCOL_VERSION, host="h", address=address, is_whole=is_whole)


def mirrored() -> Succession:
    """Return the succession of a server that two standbys mirror: the first of them has all of the run."""
    succession = Simulation(job_of()).server.succession
    for peer, is_whole in ((STANDBY, True), (OTHER, False)):
        succession.registry.on_request(peer, request_of(peer, is_whole=is_whole), 0.0)
    return succession


@pytest.mark.parametrize(
    ("kind", "waits_s"),
    [
        (None, END_S),
        (FailureKind.DIVERGED, END_S),
        (FailureKind.HANDED_OVER, HAND_OVER_S),
        (FailureKind.INTERRUPTED, INTERRUPTED_S),
        # The run goes on elsewhere, or is begun again here: nobody is to get its end.
        (FailureKind.SUPERSEDED, 0.0),
    ],
)
def test_standbys_have_time_to_get_the_end_of_a_run(kind: FailureKind | None, waits_s: float) -> None:
    succession = mirrored()
    succession.end(Finish(kind=kind), NOW)
    assert succession.is_over(NOW + waits_s)
    assert not succession.is_over(NOW + waits_s - 0.1)


def test_a_person_sees_at_once_that_the_folder_lacks_files_and_sees_it_once(tmp_path: Path) -> None:
    succession, said = mirrored(), list[str]()
    succession.say, succession.source = said.append, MirrorSource(tmp_path)
    for _ in range(2):
        succession.on_message(STANDBY, request_of(STANDBY), [])
    assert [(type(line), str(tmp_path) in line) for line in said] == [(Notice, True)]


def test_a_run_is_handed_over_once_its_heir_has_said_that_it_has_all_of_it() -> None:
    succession = mirrored()
    succession.hand_over()
    succession.end(Finish(kind=FailureKind.HANDED_OVER), NOW)
    assert (succession.handed_over(), succession.was_in_vain()) == (None, True)
    # Another one that has all of it, or an successor that is gone without a word, takes nothing over.
    assert succession.on_left(OTHER, "", is_done=True) == []
    assert (succession.handed_over(), succession.is_over(NOW)) == (None, False)
    assert succession.on_left(STANDBY, "", is_done=True) == []
    assert succession.handed_over() == HandedOver(standby=StandbyAddress(address="memory://one"))
    assert (succession.was_in_vain(), succession.is_over(NOW)) == (False, True)


def test_a_run_whose_heir_is_gone_without_a_word_was_handed_over_in_vain() -> None:
    succession = mirrored()
    succession.hand_over()
    succession.end(Finish(kind=FailureKind.HANDED_OVER), NOW)
    succession.on_left(STANDBY, "it has ended")
    assert (succession.handed_over(), succession.was_in_vain()) == (None, True)
    # The other one may still come for what there is.
    assert not succession.is_over(NOW)
    succession.on_left(OTHER, "it has ended")
    assert succession.is_over(NOW)


def test_a_server_that_is_alone_for_long_ends_because_its_standby_may_have_ended_the_run() -> None:
    """As one that was cut off until its standby had led the run to its end: no process is left to report that."""
    simulation = Simulation(job_of())
    succession, worker = simulation.server.succession, simulation.add_worker()
    simulation.run_to(1)
    succession.on_message(STANDBY, request_of(STANDBY), [])
    worker.die()
    simulation.wait(5)
    succession.on_left(STANDBY, "it has been silent for too long")
    simulation.wait(20)
    assert simulation.server.ended is None
    simulation.wait(20)
    ended = simulation.server.ended
    assert ended is not None
    assert ended.kind is FailureKind.SUPERSEDED
    assert "no worker and no standby for 35 s: the run may have been led to its end at memory://one" in ended.failure


@pytest.mark.parametrize("was_alone", [False, True])
def test_a_server_that_was_stopped_listens_before_it_counts_as_alone(*, was_alone: bool) -> None:
    simulation = Simulation(job_of())
    succession, worker = simulation.server.succession, simulation.add_worker()
    simulation.run_to(1)
    succession.on_message(STANDBY, request_of(STANDBY), [])
    worker.die()
    if was_alone:
        simulation.wait(5)
        succession.on_left(STANDBY, "it has been silent for too long")
        simulation.wait(10)
    simulation.advance(60.0)
    if not was_alone:
        succession.on_left(STANDBY, "it has been silent for too long")
    simulation.wait(30)
    assert simulation.server.ended is None
    simulation.wait(20)
    assert simulation.server.ended is not None


@pytest.mark.parametrize("kind", ["has said that it leaves", "was never here", "no step was made"])
def test_a_server_that_no_standby_can_have_replaced_waits_for_good(kind: str) -> None:
    simulation = Simulation(job_of())
    succession, worker = simulation.server.succession, simulation.add_worker()
    if kind != "no step was made":
        simulation.run_to(1)
    if kind != "was never here":
        succession.on_message(STANDBY, request_of(STANDBY), [])
        succession.on_left(STANDBY, "", is_done=kind == "has said that it leaves")
    worker.die()
    simulation.wait(600)
    assert simulation.server.ended is None

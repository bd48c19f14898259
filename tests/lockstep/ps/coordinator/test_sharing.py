"""The coordinator and workers that share memory: they read the weights there."""

import pytest
from msgspec.structs import replace

from lockstep.common.errors import RefusalKind
from lockstep.common.protocol.messages import Lease, Refused
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import ForgetWorker
from tests.lockstep.ps.runs import Drive, facts_of, join_of, kinds, messages, peer_of, said


def test_a_run_of_workers_that_share_comes_to_its_end() -> None:
    drive = Drive(facts_of(min_workers=3))
    drive.enter(1, 2, 3, shares=True)
    drive.finish()
    assert drive.coordinator.membership.sharing == {True}


def test_why_a_worker_does_not_share_is_said() -> None:
    drive = Drive()
    drive.join(1)
    effects = drive.prepare(1, obstacle="no such folder")
    assert (
        said(effects)
        == "worker 0 (host host, pid 1) exchanges gradients and weights through its socket: no such folder"
    )
    assert Lease in kinds(effects, 1)
    assert drive.coordinator.membership.sharing == {False}


def test_a_second_team_on_too_few_cores_is_said_once() -> None:
    drive, found = Drive(), list[str]()
    for worker in (1, 2, 3):
        join = replace(join_of(worker, processes=2), machine="one", cores=[0, 1, 2])
        drive.happen(events.Received(peer=peer_of(worker), message=join))
        found.append(said(drive.prepare(worker)))
    shared = "2 teams share the 3 cores of host host and wait for one another"
    assert [shared in text for text in found] == [False, True, False]
    assert found[1].startswith("warning: 4 processes in ")


def test_where_memory_must_be_shared_whoever_does_not_is_sent_away() -> None:
    drive = Drive(replace(facts_of(), needs_memory=True))
    drive.join(1)
    effects = drive.prepare(1, obstacle="no such folder")
    (refused,) = messages(effects, 1)
    assert refused == Refused(reason="it does not share the server's memory: no such folder", kind=RefusalKind.MEMORY)
    assert said(effects).startswith("refused worker 0 (host host, pid 1): it does not share")
    assert ForgetWorker(rank=0) in effects
    assert not drive.coordinator.membership.members
    assert Lease in kinds(drive.enter(2, shares=True), 2)


@pytest.mark.parametrize("is_prepared", [True, False])
def test_what_was_kept_for_a_worker_is_given_back_when_it_goes(is_prepared: bool) -> None:
    drive = Drive()
    drive.enter(1)
    drive.join(2)
    if is_prepared:
        drive.prepare(2, shares=True)
    effects = drive.leave(2)
    assert ForgetWorker(rank=1) in effects

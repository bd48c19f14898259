"""A server offers memory where it can; what is made of a run's end; and one that others lead is left alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lockstep.common.errors import DivergedError, FailureKind, LedElsewhereError, RunError, SharingError
from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.run_options import RunOptions, Spread
from lockstep.common.protocol.standby_messages import LeaderNotice
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.interrupts import interrupt
from lockstep.common.transport.shared_memory.folder import NAME
from lockstep.common.transport.transports import Transport
from lockstep.launch.serve import (
    Losses,
    Service,
    check_leader,
    options_after,
    result_of,
    shared_memory,
)
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.standby.terms import TermHistory, write_terms
from lockstep.results.reports.display import Display, Lines
from lockstep.runs.session import Destination
from tests.lockstep.common.statemachine.answering import AnsweringPort
from tests.simulation.small import digits, job_of


def opened() -> RunSetup:
    return open_run("run", job_of(), digits(), RunOptions())


@pytest.mark.parametrize(("transport", "needs"), [("auto", False), ("shm", True)])
def test_memory_is_offered_and_taken_away_at_the_end(tmp_path: Path, transport: Transport, needs: bool) -> None:
    with shared_memory(opened(), transport, tmp_path) as offer:
        assert offer.memory is not None
        info = offer.setup.info
        assert (info.memory, info.needs_memory, offer.obstacle) == (offer.memory.folder.name, needs, "")
        assert [path.name for path in tmp_path.iterdir()] == [info.memory]
        assert offer.setup.shard.digest() == opened().shard.digest()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_sockets_offer_none(tmp_path: Path, transport: Transport) -> None:
    with shared_memory(opened(), transport, tmp_path) as offer:
        assert (offer.memory, offer.obstacle, offer.setup.info.memory) == (None, "", "")
        assert list(tmp_path.iterdir()) == []


def test_without_memory_auto_goes_on_and_says_why(tmp_path: Path) -> None:
    with shared_memory(opened(), "auto", tmp_path / "gone") as offer:
        assert (offer.memory, offer.setup.info.memory) == (None, "")
        assert "cannot be created: " in offer.obstacle


def test_without_memory_shm_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SharingError, match="cannot be created: "),
        shared_memory(opened(), "shm", tmp_path / "gone"),
    ):
        raise AssertionError("never begins")


def test_it_is_taken_away_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), shared_memory(opened(), "auto", tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


class InterruptedMemory(ServerSharedMemory):
    """A signal comes while it is taken away."""

    def close(self) -> None:
        interrupt()
        super().close()


def test_an_interrupt_while_it_is_taken_away_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), shared_memory(opened(), "auto", tmp_path) as offer:
        offer.memory.__class__ = InterruptedMemory
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("transport", ["auto", "shm", "ipc", "tcp"])
def test_what_killed_runs_left_is_swept_first(tmp_path: Path, transport: Transport) -> None:
    left = tmp_path / f"lockstep-{os.geteuid()}-1-{'0' * 16}"
    assert NAME.fullmatch(left.name)
    left.mkdir(mode=0o700)
    with shared_memory(opened(), transport, tmp_path):
        assert not left.exists()


# What is made of a run's end


def session(*steps: int, result: Any = None) -> Any:
    """Return a session that has checkpoints of these steps."""
    folder = SimpleNamespace(steps=lambda: list(steps))
    return SimpleNamespace(checkpointer=SimpleNamespace(folder=folder), recorder=SimpleNamespace(result=result))


def test_a_run_that_loses_servers_again_and_again_at_the_same_checkpoint_fails() -> None:
    losses = Losses(most=2)
    # Without a checkpoint, it begins again.
    assert [losses.may_resume(session()) for _ in range(3)] == [True, True, False]
    assert [losses.may_resume(session(1, 3)) for _ in range(3)] == [True, True, False]
    assert [losses.may_resume(session(3, 6)) for _ in range(3)] == [True, True, False]
    assert not Losses(most=0).may_resume(session(3))


@dataclass
class Shown(Display):
    """What is said of a run."""

    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)


def display() -> Shown:
    return Shown(Lines(Console(quiet=True).print), ManualClock())


def test_a_run_that_ended_well_has_a_result_and_one_that_goes_on_elsewhere_none() -> None:
    shown, result = display(), object()
    assert result_of(Finish(), session(result=result), shown) is result
    handed = Finish(failure="the run goes on at tcp://h:2", kind=FailureKind.HANDED_OVER)
    assert result_of(handed, session(result=result), shown) is None
    assert shown.said == ["notice: the run goes on at tcp://h:2"]
    with pytest.raises(KeyboardInterrupt):
        result_of(Finish(failure="interrupted", kind=FailureKind.INTERRUPTED), session(), shown)


@pytest.mark.parametrize(
    ("end", "spread", "servers"),
    [
        (Finish(kind=FailureKind.SPREAD, servers=5), "auto", 5),
        # Its host may be gone, and others take its part later.
        (Finish(kind=FailureKind.SERVER_LOST), "always", 1),
        (Finish(kind=FailureKind.SERVER_LOST), "never", 3),
        (Finish(kind=FailureKind.ROLLBACK), "never", 3),
        (Finish(kind=FailureKind.HANDED_OVER), "auto", 3),
    ],
)
def test_with_which_servers_a_run_is_continued_and_with_any_workers(end: Finish, spread: Spread, servers: int) -> None:
    options = RunOptions(servers=3, min_workers=4, spread=spread)
    assert options_after(end, options) == RunOptions(servers=servers, min_workers=1, spread=spread)


@pytest.mark.parametrize(
    ("kind", "error"), [(FailureKind.DIVERGED, DivergedError), (FailureKind.SERVER_LOST, RunError)]
)
def test_why_a_run_failed_is_an_error_of_its_kind(kind: FailureKind, error: type[RunError]) -> None:
    with pytest.raises(RunError) as raised:
        result_of(Finish(failure="it failed\n", kind=kind), session(), display())
    assert (type(raised.value), str(raised.value)) == (error, "it failed")


def test_a_run_that_a_standby_leads_by_now_is_not_resumed(tmp_path: Path) -> None:
    standby, own = StandbyAddress(address="tcp://h:9", public="k"), "tcp://own:1"
    history = TermHistory(standbys=[standby]).begin("a", number=3, step=0, address=own)
    write_terms(tmp_path, history)
    nothing: Any = None
    destination, notices = Destination(folder=tmp_path, options=RunOptions(), is_resumed=True), list[LeaderNotice]()

    def dial(address: str, public: str = "") -> AnsweringPort:
        assert StandbyAddress(address=address, public=public) == standby
        return AnsweringPort([*notices])

    service = Service(job=nothing, destination=destination, dial=dial)
    notices = [LeaderNotice(term=history.last, address=own)]
    check_leader(service, own, ManualClock())
    later = Term(run=history.run, number=4, server="b")
    notices = [LeaderNotice(term=later, address=standby.address, is_leader=True)]
    with pytest.raises(LedElsewhereError) as raised:
        check_leader(service, own, ManualClock())
    assert str(raised.value) == (
        f"the run in {str(tmp_path)!r} goes on at tcp://h:9, in term 4: mirror it in a new folder: lockstep server "
        "--standby-of tcp://h:9 --bind ADDRESS --run-dir DIR"
    )
    assert (raised.value.address, raised.value.public) == (standby.address, "k")

"""A server offers memory where it can; what is made of a run's end; and one that others lead is left alone."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from lockstep.common.errors import DivergedError, FailureKind, RunError, SharingError, UsageError
from lockstep.common.protocol.codec import decode, encode
from lockstep.common.protocol.messages import StandbyAddress, Term
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.standby_messages import LeaderNotice, LeaderRequest
from lockstep.common.runtime.clock import ManualClock
from lockstep.common.runtime.interrupts import interrupt
from lockstep.common.transport.port import Frames
from lockstep.common.transport.shared_memory.folder import NAME
from lockstep.common.transport.transports import Transport
from lockstep.launch.serve import (
    ASK_LEADER_S,
    LOOK_S,
    Losses,
    Service,
    check_leader,
    result_of,
    shared_memory,
    who_may_lead,
)
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.setup import RunSetup, open_run
from lockstep.ps.shared_memory.memory import ServerSharedMemory
from lockstep.ps.standby.terms import TermHistory, write_terms
from lockstep.results.reports.display import Display, Lines
from lockstep.runs.session import Destination
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
    assert not losses.may_resume(session())
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
    return Shown(Lines(Console(quiet=True)), ManualClock())


def test_a_run_that_ended_well_has_a_result_and_one_that_goes_on_elsewhere_none() -> None:
    shown, result = display(), object()
    assert result_of(Finish(), session(result=result), shown) is result
    handed = Finish(failure="the run goes on at tcp://h:2", kind=FailureKind.HANDED_OVER)
    assert result_of(handed, session(result=result), shown) is None
    assert shown.said == ["notice: the run goes on at tcp://h:2"]
    with pytest.raises(KeyboardInterrupt):
        result_of(Finish(failure="interrupted", kind=FailureKind.INTERRUPTED), session(), shown)


@pytest.mark.parametrize(
    ("kind", "error"), [(FailureKind.DIVERGED, DivergedError), (FailureKind.SERVER_LOST, RunError)]
)
def test_why_a_run_failed_is_an_error_of_its_kind(kind: FailureKind, error: type[RunError]) -> None:
    with pytest.raises(RunError) as raised:
        result_of(Finish(failure="it failed\n", kind=kind), session(), display())
    assert (type(raised.value), str(raised.value)) == (error, "it failed")


# Who leads a run that is resumed


@dataclass
class AnsweringPort:
    """A connection at which these answers come, one at each look; each takes a moment more than it may."""

    answers: list[LeaderNotice | None]
    clock: ManualClock = field(default_factory=ManualClock)
    sent: list[Any] = field(default_factory=list)
    looks: list[float | None] = field(default_factory=list)
    is_closed: bool = False

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self.looks.append(timeout_s)
        self.clock.advance((timeout_s or 0.0) + 0.4 * LOOK_S)
        answer = self.answers.pop(0) if self.answers else None
        return None if answer is None else [memoryview(frame).cast("B") for frame in encode(answer)]

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self.sent.append(decode([memoryview(frame).cast("B") for frame in frames], LeaderRequest)[0])

    def close(self, linger_s: float = 0.0) -> None:
        self.is_closed = True


def notice(number: int, address: str = "tcp://h:2") -> LeaderNotice:
    return LeaderNotice(term=Term(run="a", number=number, server="a"), address=address)


def check(folder: Path, clock: ManualClock | None = None, **ports: AnsweringPort) -> None:
    """Look who leads the run in a folder, whose standbys answer at these ports; each is asked once and left."""
    history = TermHistory(standbys=[StandbyAddress(address=name, public=name.upper()) for name in ports])
    write_terms(folder, history.begin("a", number=3, step=0))
    dialled: list[tuple[str, str]] = []

    def dial(address: str, public: str = "") -> Any:
        dialled.append((address, public))
        return ports[address]

    nothing: Any = None
    destination = Destination(folder=folder, options=RunOptions(), is_resumed=True)
    try:
        service = Service(job=nothing, destination=destination, dial=dial)
        check_leader(service, "tcp://own:1", clock or ManualClock())
    finally:
        assert dialled == [(name, name.upper()) for name in ports]
        for port in ports.values():
            assert (port.sent, port.is_closed) == ([LeaderRequest()], True)


def test_a_run_without_standbys_is_resumed_at_once(tmp_path: Path) -> None:
    check(tmp_path)


def test_a_run_is_resumed_once_all_standbys_have_said_that_they_do_not_lead_it(tmp_path: Path) -> None:
    first, second = AnsweringPort([notice(3)]), AnsweringPort([None, notice(2)])
    check(tmp_path, first=first, second=second)
    # Nobody who has answered is waited for, and nobody is waited for long while others may answer.
    assert (first.looks, second.looks) == ([LOOK_S], [LOOK_S, LOOK_S])


def test_a_standby_that_is_silent_is_waited_for_so_long(tmp_path: Path) -> None:
    silent = AnsweringPort([], ManualClock(7.0))
    check(tmp_path, silent.clock, silent=silent)
    *looks, last = silent.looks
    assert looks == [LOOK_S] * len(looks)
    # No longer than there is time.
    assert last == pytest.approx(ASK_LEADER_S - 1.4 * LOOK_S * len(looks))


def test_a_run_that_a_standby_leads_by_now_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        check(tmp_path, first=AnsweringPort([notice(3)]), second=AnsweringPort([notice(4, "tcp://h:9")]))
    assert str(raised.value) == (
        f"the run in {str(tmp_path)!r} goes on at tcp://h:9, in term 4: mirror it in a new folder: lockstep server "
        "--standby-of tcp://h:9 --bind ADDRESS --run-dir DIR"
    )


def test_who_is_asked_before_a_run_is_resumed_is_everybody_else_that_may_lead_it() -> None:
    one, two, three = (f"tcp://{name}:5555" for name in ("one", "two", "three"))
    two_with_key = StandbyAddress(address=two, public="k" * 40)
    history = TermHistory(standbys=[two_with_key])
    for number, address in enumerate((one, two)):
        history = history.begin(f"{number}", number=number + 1, step=0, address=address)
    named = (StandbyAddress(address=two), StandbyAddress(address=three))
    # The key is that of the folder, which a person does not name; and who led the run before may lead it again.
    assert who_may_lead(history, named, one) == [two_with_key, StandbyAddress(address=three)]
    assert who_may_lead(history, (), two) == [StandbyAddress(address=one)]
    assert who_may_lead(TermHistory(), (), one) == []

"""A server offers memory where it can, and what is made of a run's end."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockstep.common.errors import DivergedError, FailureKind, RunError, SharingError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.interrupts import interrupt
from lockstep.common.transport.shared_memory.folder import NAME
from lockstep.common.transport.transports import Transport
from lockstep.launch.serve import (
    Losses,
    result_of,
    shared_memory,
)
from lockstep.ps.coordinator.effects import Finish
from lockstep.ps.server.shared_memory import ServerSharedMemory
from lockstep.ps.setup import RunSetup, open_run
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


@pytest.mark.parametrize("kind", [FailureKind.INTERRUPTED, FailureKind.STOPPED])
def test_a_run_that_ended_well_has_a_result_and_one_that_was_interrupted_none(kind: FailureKind) -> None:
    result = object()
    assert result_of(Finish(), session(result=result)) is result
    with pytest.raises(KeyboardInterrupt):
        result_of(Finish(failure="interrupted", kind=kind), session())


@pytest.mark.parametrize(
    ("kind", "error"), [(FailureKind.DIVERGED, DivergedError), (FailureKind.SERVER_LOST, RunError)]
)
def test_why_a_run_failed_is_an_error_of_its_kind(kind: FailureKind, error: type[RunError]) -> None:
    with pytest.raises(RunError) as raised:
        result_of(Finish(failure="it failed\n", kind=kind), session())
    assert (type(raised.value), str(raised.value)) == (error, "it failed")

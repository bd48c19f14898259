"""Memory is offered where it may and can be; otherwise the run goes on without, or says why it cannot."""

import os
from pathlib import Path

import pytest

from lockstep.common.errors import SharingError
from lockstep.common.runtime.interrupts import interrupt
from lockstep.common.transport.shared_memory.folder import NAME
from lockstep.common.transport.transports import Transport
from lockstep.launch.serve import shared_memory
from lockstep.ps.setup import AdmissionPolicy, RunSetup, open_run
from lockstep.ps.shared_memory.memory import ServerSharedMemory
from tests.simulation.small import digits, job_of


def opened() -> RunSetup:
    return open_run("run", job_of(), digits(), AdmissionPolicy())


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
        assert "cannot be created: No such file or directory" in offer.obstacle


def test_without_memory_shm_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(SharingError, match="cannot be created: No such file or directory"),
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

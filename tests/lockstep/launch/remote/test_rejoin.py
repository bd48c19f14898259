"""A server that is started again: what its folder tells, who has more of the run, and where it keeps what it led."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lockstep.common.errors import UsageError
from lockstep.common.protocol.codec import encode
from lockstep.common.protocol.messages import Message, StandbyAddress
from lockstep.common.transport.port import Frames
from lockstep.launch.remote.rejoin import (
    FolderHolds,
    found_in,
    has_led_as_standby,
    has_more,
    set_aside,
    who_has_more,
)
from lockstep.ps.records.run_folder import RESULT
from lockstep.ps.standby.mirror import MIRROR
from lockstep.ps.standby.terms import TermHistory, write_terms
from lockstep.runs.run_dir import JOB
from tests.lockstep.statuses import status

FIRST, SECOND = "tcp://one:5555", "tcp://two:5555"


@pytest.mark.parametrize(
    ("files", "holds"),
    [
        ({}, FolderHolds.NOTHING),
        ({JOB: ""}, FolderHolds.NOTHING),
        ({MIRROR: ""}, FolderHolds.MIRROR),
        ({MIRROR: "{}", JOB: 'model = "mlp"'}, FolderHolds.MIRROR),
        ({JOB: 'model = "mlp"'}, FolderHolds.RUN),
    ],
)
def test_a_folder_tells_what_its_server_was(tmp_path: Path, files: dict[str, str], holds: FolderHolds) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert found_in(tmp_path) is holds
    assert found_in(tmp_path / "gone") is FolderHolds.NOTHING


def test_a_result_that_cannot_be_read_is_not_taken_for_the_end(tmp_path: Path) -> None:
    (tmp_path / JOB).write_text('model = "mlp"')
    (tmp_path / RESULT).write_text("{")
    with pytest.raises(UsageError, match=RESULT):
        found_in(tmp_path)


def led(folder: Path, *servers: str, standbys: Sequence[str] = (SECOND,)) -> None:
    """Write a run's folder that these servers have led, one after the other."""
    (folder / JOB).write_text('model = "mlp"')
    history = TermHistory(standbys=[StandbyAddress(address=standby) for standby in standbys])
    for number, address in enumerate(servers):
        history = history.begin(f"{number}", number=number + 1, step=0, address=address)
    write_terms(folder, history)


@pytest.mark.parametrize(
    ("servers", "standbys", "has_led"),
    [
        ((FIRST, SECOND), (SECOND,), True),
        ((FIRST, SECOND, FIRST, SECOND), (FIRST, SECOND), True),
        # A run of this server alone, and one that has never had a standby: somebody has mixed up two folders.
        ((SECOND,), (SECOND,), False),
        ((FIRST,), (), False),
    ],
)
def test_only_a_run_that_was_led_after_another_server_is_led_again(
    tmp_path: Path, servers: tuple[str, ...], standbys: tuple[str, ...], has_led: bool
) -> None:
    led(tmp_path, *servers, standbys=standbys)
    assert has_led_as_standby(tmp_path, SECOND) is has_led
    (tmp_path / RESULT).touch()
    assert has_led_as_standby(tmp_path, SECOND) is has_led
    (tmp_path / MIRROR).touch()
    assert not has_led_as_standby(tmp_path, SECOND)


def test_what_was_led_is_kept_under_its_term(tmp_path: Path) -> None:
    for expected in ("run-term-2", "run-term-2-2"):
        (tmp_path / "run").mkdir()
        led(tmp_path / "run", FIRST, SECOND)
        assert set_aside(tmp_path / "run") == tmp_path / expected
        assert (tmp_path / expected / JOB).exists()
        assert not (tmp_path / "run").exists()


def test_a_leader_and_a_standby_with_a_checkpoint_have_more_than_an_empty_folder() -> None:
    assert has_more(status(is_standby=False, step=0))
    assert has_more(status(is_standby=True, step=10))
    assert not has_more(status(is_standby=True, step=0))


class StatusPort:
    """A client's port whose server has sent this, or nothing."""

    def __init__(self, answer: Message | None) -> None:
        self.waiting = [] if answer is None else [answer]
        self.is_closed = False

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        assert not self.is_closed

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        return [memoryview(bytes(frame)) for frame in encode(self.waiting.pop())] if self.waiting else None

    def close(self, linger_s: float = 0.0) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (status(is_standby=True, step=0), status(is_standby=False, step=7), SECOND),
        (None, status(is_standby=True, step=10), SECOND),
        (status(is_standby=True, step=0), status(is_standby=True, step=0), None),
    ],
)
def test_one_of_the_others_is_found_that_has_something_of_the_run(
    first: Message | None, second: Message, found: str | None
) -> None:
    ports = {FIRST: StatusPort(first), SECOND: StatusPort(second)}
    servers = [StandbyAddress(address=address) for address in ports]
    other = who_has_more(servers, lambda address, public="": ports[address])
    assert (None if other is None else other.address) == found
    assert all(port.is_closed for port in ports.values())

"""A server that is started again: what its folder tells, who has more of the run, and where it keeps what it led."""

import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from lockstep.common.errors import UsageError
from lockstep.common.protocol.messages import NO_TERM, StandbyAddress
from lockstep.common.protocol.standby_messages import LeaderNotice
from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.remote.standby import (
    FolderHolds,
    announce,
    found_in,
    has_led_as_standby,
    server_with_more,
)
from lockstep.ps.records.run_folder import JOB, RESULT
from lockstep.ps.standby.mirror import MIRROR
from lockstep.ps.standby.terms import TermHistory, write_terms
from lockstep.runs.run_dir import (
    set_aside,
)
from tests.lockstep.common.statemachine.answering import AnsweringPort


def notice(*, step: int, is_leader: bool = False) -> LeaderNotice:
    return LeaderNotice(term=NO_TERM, address="", step=step, is_leader=is_leader)


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


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        (notice(step=0), notice(step=7, is_leader=True), SECOND),
        (notice(step=0), notice(step=0, is_leader=True), SECOND),
        (None, notice(step=10), SECOND),
        (notice(step=0), notice(step=0), None),
    ],
)
def test_another_server_is_found_that_leads_the_run_or_has_a_checkpoint(
    first: LeaderNotice | None, second: LeaderNotice, found: str | None
) -> None:
    clock = ManualClock()
    ports = {FIRST: AnsweringPort([first], clock), SECOND: AnsweringPort([second], clock)}
    servers = tuple(StandbyAddress(address=address) for address in ports)
    other = server_with_more(servers, lambda address, public="": ports[address], clock)
    assert (None if other is None else other.address) == found


@pytest.mark.parametrize(
    ("values", "ending"),
    [
        ({}, ""),
        ({"keys": Path("keys")}, " --key keys/server.key"),
        ({"key": Path("my keys/standby-1.key")}, " --key 'my keys/standby-1.key'"),
    ],
)
def test_a_standby_prints_the_command_that_promotes_it_with_the_key_that_it_takes(
    values: dict[str, Path], ending: str
) -> None:
    flags = SimpleNamespace(**{"insecure": False, "key": None, "keys": None, **values})
    request, port = SimpleNamespace(flags=flags, server=StandbyAddress(address=FIRST)), SimpleNamespace(address=SECOND)
    console = Console(file=io.StringIO(), record=True, width=200)
    announce(console, request, port)  # type: ignore[arg-type]  # no more of both is asked for
    assert console.export_text().splitlines() == [
        f"standby of {FIRST}, listening on {SECOND}; let it lead the run with:",
        f"  lockstep promote {SECOND}{ending}",
    ]

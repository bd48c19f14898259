"""The table of outcomes in docs/how-to/restart.md: each row has a test that makes it, here or elsewhere."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.architecture.source import ROOT
from tests.lockstep.launch.supervision import test_child
from tests.lockstep.ps.shard_group import test_members
from tests.simulation import test_shards
from tests.system import (
    test_bad_network,
    test_by_hand,
    test_failures,
    test_faults,
    test_full_disk,
    test_interrupts,
    test_restarts,
    test_teams,
)
from tests.system.processes import GONE_S, Place, Process
from tests.system.test_faults import OFTEN, calm, job

#: Flags of a server whose workers could share its memory.
OVER_SOCKETS = ("--transport", "tcp")

#: Seconds of silence after which a shard or a worker counts as gone.
LEASE_S = 2.0


def served(place: Place, flags: tuple[str, ...], *more: str) -> tuple[Process, str]:
    """Start a server, and return it with its address."""
    bound = ("--bind", "tcp://127.0.0.1:0", "--run-dir", "run", "--min-workers", "1")
    server = place.start("server", *flags, *OFTEN, *OVER_SOCKETS, *bound, *more)
    return server, server.line_with("lockstep worker ").split()[2]


def shards_of(place: Place, flags: tuple[str, ...]) -> tuple[Process, str, Process, Process]:
    """Start a server of two, its shard and a worker; return them once the run can be resumed."""
    server, address = served(place, flags, "--servers", "2", "--lease-timeout", str(LEASE_S))
    shard, worker = place.start("shard", address), place.start("worker", address, "--workers", "1")
    server.line_with("epoch 5/")
    return server, address, shard, worker


def delete(folder: Path) -> None:
    """Delete a folder into which a process may be writing: it is gone at once."""
    gone = folder.with_name(f"{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def test_a_server_whose_folder_is_deleted_fails_with_its_workers(place: Place) -> None:
    server, address = served(place, job(100))
    worker = place.start("worker", address, "--workers", "1")
    server.line_with("epoch 5/")
    delete(place.folder / "run")
    code, out, error = server.end()
    assert (code, error.count("\n")) == (1, 1), error
    assert ": the run continues without it, and there is no checkpoint yet" in out
    assert worker.end()[0] == 1


def test_a_shard_that_gets_sigterm_is_replaced_by_another(place: Place) -> None:
    flags = job(150)
    expected = calm(150)
    server, address, shard, worker = shards_of(place, flags)
    shard.send(signal.SIGTERM)
    assert shard.end(GONE_S)[0] == 130
    server.line_with("waiting for shards: 0 of 1 are ready")
    following = place.start("shard", address)
    assert [process.end()[0] for process in (server, following, worker)] == [0, 0, 0]
    assert place.digest() == expected


def test_a_page_that_is_killed_costs_the_run_nothing(place: Place) -> None:
    pytest.importorskip("starlette", reason="the page is served by Starlette: .venv/bin/pip install -e '.[watch]'")
    flags = job(150)
    train = place.start("train", *flags, "--workers", "1", "--run-dir", "run", "--watch")
    train.line_with("epoch 2/")
    (page,) = place.pids("lockstep watch")
    os.kill(page, signal.SIGKILL)
    assert train.end()[0::2] == (0, "")
    assert place.is_empty(GONE_S)


#: By process and fault, the test that makes a row of the table.
ROWS = {
    ("server", "kill -9"): test_faults.test_a_run_whose_server_is_killed_goes_on_to_the_same_bits,
    ("server", "SIGTERM"): test_restarts.test_a_server_that_is_stopped_and_started_again_by_the_same_command_goes_on,
    ("server", "cut off"): test_bad_network.test_ten_seconds_of_silence_are_survived,
    ("server", "SIGSTOP"): test_faults.test_a_server_that_is_stopped_holds_it_against_nobody,
    ("server", "folder deleted"): test_a_server_whose_folder_is_deleted_fails_with_its_workers,
    ("server", "disk full"): test_full_disk.test_a_run_waits_for_room_on_a_full_disk,
    ("shard", "kill -9"): test_faults.test_a_shard_that_is_killed_costs_the_steps_since_the_checkpoint,
    ("shard", "SIGTERM"): test_a_shard_that_gets_sigterm_is_replaced_by_another,
    ("shard", "cut off"): test_members.test_a_silent_shard_is_lost_after_its_time_and_one_that_answers_is_not,
    ("shard", "SIGSTOP"): test_shards.test_a_shard_that_hangs_fails_the_run_in_the_end,
    ("worker", "kill -9"): test_failures.test_a_worker_that_is_killed_is_told_and_the_run_goes_on,
    ("worker", "SIGTERM"): test_by_hand.test_a_worker_may_join_later_and_a_status_tells_so,
    ("worker", "cut off"): test_bad_network.test_a_cut_is_survived,
    ("worker", "SIGSTOP"): test_faults.test_a_worker_that_is_stopped_is_told_of_loses_its_place_and_joins_anew,
    ("process of a team", "kill -9"): test_teams.test_who_is_killed_is_back_in_the_team_and_the_others_stay,
    ("template", "kill -9"): test_child.test_without_its_template_a_process_goes_on_and_others_are_started_anew,
    ("page", "kill -9"): test_a_page_that_is_killed_costs_the_run_nothing,
    ("`train`", "kill -9, SIGTERM"): test_interrupts.test_everything_is_gone,
}


def test_each_row_of_the_table_has_a_test_and_each_test_a_row() -> None:
    page = (ROOT / "docs/how-to/restart.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| process | fault |")
    lines = [line for line in table.partition("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    found = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in lines]
    assert found == list(ROWS)

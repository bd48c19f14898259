"""What is made of a server's end: whether it was killed, failed, or found that its standby leads the run."""

import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockstep.common.errors import DivergedError, FailureKind, JobError, RunError, UsageError
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import ManualClock
from lockstep.launch.channel import ChildReport, EndReport
from lockstep.launch.child import INTERRUPTED, USAGE, ProcessLog
from lockstep.launch.cluster import (
    BEFORE_TAKEOVER,
    LATE_S,
    STANDBY,
    Cluster,
    bring_home,
    check_launch,
    has_left,
    is_heir,
    is_leaderless,
    was_killed,
)
from lockstep.launch.worker_supervisor import Restarts
from lockstep.ps.standby.storage import MIRROR
from lockstep.runs.session import Destination
from tests.lockstep.launch.processes import Pretended
from tests.lockstep.statuses import status


def ended(folder: Path, code: int, error: str) -> Pretended:
    """Return a server that has ended with a code, and has reported an error if it is not empty."""
    server = Pretended("the server", ProcessLog.at_end_of(folder / "server.log"), ended=code)
    if error:
        server.fail(error)
    return server


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (-9, "", True),
        (1, "", True),
        (1, "the loss is not finite", False),
        (2, "", False),
        # By somebody: an interrupt of the run's own process ends that first.
        (130, "interrupted", True),
    ],
)
def test_a_server_was_killed_if_it_reports_nothing(tmp_path: Path, code: int, text: str, expected: bool) -> None:
    assert was_killed(ended(tmp_path, code, text)) == expected


@pytest.mark.parametrize(
    ("code", "text", "stage", "is_followed"),
    [
        (-9, "", "mirrors", False),
        (-9, "", "can lead", True),
        (-9, "", "leads", True),
        # It has told its standby that the run is over.
        (INTERRUPTED, "interrupted", "can lead", False),
        (INTERRUPTED, "interrupted", "leads", True),
        # It has handed the run over, or found that its standby leads.
        (0, "", "can lead", True),
        (0, "", "leads", True),
        (1, "another server leads run run in term 2, and this one in term 1", "leads", True),
        (USAGE, "the run in 'run' goes on at tcp://127.0.0.1:5556, in term 2", "leads", True),
        # It has failed.
        (0, "", "mirrors", False),
        (1, "the loss is not finite", "can lead", False),
        (USAGE, "no dataset", "mirrors", False),
    ],
)
def test_a_server_that_ends_is_followed_to_a_standby_that_leads_or_can(
    tmp_path: Path, code: int, text: str, stage: str, is_followed: bool
) -> None:
    server, standby = ended(tmp_path, code, text), tmp_path / "standby"
    (standby / "checkpoints").mkdir(parents=True)
    (standby / "job.toml").write_text("[job]\n")
    if stage != "leads":
        (standby / MIRROR).touch()
    if stage != "mirrors":
        (standby / "checkpoints" / "step-00000003.safetensors").touch()
    is_over = was_killed(server) or has_left(standby, server)
    assert (is_over and is_heir(standby, server)) == is_followed


@pytest.mark.parametrize(
    ("is_standby", "waited_s", "expected"),
    [(True, 2.0 + LATE_S, True), (True, 1.9 + LATE_S, False), (False, 100.0, False)],
)
def test_a_standby_whose_workers_had_the_time_to_ask_for_it_is_to_lead(
    is_standby: bool, waited_s: float, expected: bool
) -> None:
    assert is_leaderless(status(is_standby=is_standby), waited_s, takeover_s=2.0) == expected


# What a cluster makes of its processes' ends

SHARD_LOST = "the connection to shard 1 is gone"


@dataclass
class Run:
    """The processes of a run, none of which is there."""

    folder: Path
    said: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.home / "checkpoints").mkdir(parents=True)
        (self.home / "job.toml").write_text("seed = 1\n")
        destination = Destination(folder=self.home, options=RunOptions(workers=1, takeover_seconds=2.5))
        clock = ManualClock(7.0)
        nothing: Any = None
        self.cluster = Cluster(nothing, destination, self.said.append, nothing, nothing, clock=clock)
        self.cluster.home, self.cluster.folder = self.home, self.folder
        self.cluster.job = SimpleNamespace(numerics="portable")  # type: ignore[assignment]
        self.cluster._restarts = Restarts(0, seed="server")

    @property
    def home(self) -> Path:
        return self.folder / "run"

    def process(self, name: str, code: int | None, *reports: ChildReport) -> Any:
        log = ProcessLog.at_end_of(self.folder / f"{name}.log")
        return Pretended(f"the {name}", log, ended=code, next_reports=list(reports))

    def server(self, code: int | None, error: str = "", kind: FailureKind | None = None) -> Cluster:
        """Return the cluster whose server has ended in this way."""
        self.cluster.server = self.process("server", code, *([EndReport(kind=kind, text=error)] if error else []))
        return self.cluster

    def shards(self, *codes: int | None) -> None:
        self.cluster.shards = [self.process(f"shard-{number}", code) for number, code in enumerate(codes, 1)]

    def standby(self, code: int | None = None, *, has_checkpoint: bool = True) -> Any:
        folder = self.home / STANDBY / "checkpoints"
        folder.mkdir(parents=True)
        (folder.parent / "job.toml").write_text("seed = 1\n")
        (folder.parent / MIRROR).touch()
        if has_checkpoint:
            (folder / "step-00000003.safetensors").touch()
        self.cluster.standby, self.cluster._standby_address = self.process("standby", code), "tcp://h:2"
        return self.cluster.standby


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("code", "text", "is_dead"),
    [(0, "", False), (-9, "", True), (1, "", True), (1, "no space", False), (2, "", False)],
)
def test_a_server_that_ended_by_itself_is_not_started_again(run: Run, code: int, text: str, is_dead: bool) -> None:
    run.shards(0, None)
    cluster = run.server(code, text)
    assert cluster._dead_server() is (cluster.server if is_dead else None)


def test_a_server_that_is_killed_after_the_end_of_its_run_is_not_started_again(run: Run) -> None:
    (run.home / "result.json").touch()
    assert run.server(-9)._dead_server() is None


def test_of_a_server_that_misses_a_shard_which_was_killed_that_is_started_again(run: Run) -> None:
    run.shards(None, -9, -15)
    cluster = run.server(1, SHARD_LOST)
    assert cluster._dead_server() is cluster.shards[1]
    assert run.server(2, SHARD_LOST)._dead_server() is None
    run.shards(None, 1)
    assert run.server(1, SHARD_LOST)._dead_server() is None


def test_a_server_that_crashes_before_the_run_has_begun_would_do_so_again(run: Run) -> None:
    (run.home / "job.toml").unlink()
    with pytest.raises(RunError, match=r"the server \(pid 4711\) was killed by SIGILL before it was ready"):
        run.server(-4)._dead_server()
    # To be killed is no crash.
    assert run.server(-9)._dead_server() is run.cluster.server


def test_a_server_that_finds_its_standby_leading_is_left_for_it(run: Run) -> None:
    cluster = run.server(USAGE, "the run goes on at tcp://h:2")
    assert cluster._dead_server() is None
    run.standby()
    assert cluster._dead_server() is None
    (run.home / STANDBY / MIRROR).unlink()
    assert cluster._dead_server() is cluster.server


@pytest.mark.parametrize(
    ("code", "has_checkpoint", "expected"), [(None, True, True), (None, False, False), (0, True, False)]
)
def test_a_standby_that_can_lead_the_run_is_there_and_has_a_checkpoint(
    run: Run, code: int | None, has_checkpoint: bool, expected: bool
) -> None:
    run.server(-9)
    assert not run.cluster._has_heir()
    run.standby(code, has_checkpoint=has_checkpoint)
    assert run.cluster._has_heir() is expected


def test_if_the_server_is_gone_its_standby_is_followed_into_its_folder(run: Run) -> None:
    standby, cluster = run.standby(), run.server(-9)
    assert cluster._revive("tcp://h:1") == "tcp://h:2"
    assert run.said == [
        "the server (pid 4711) was killed by SIGKILL; its workers go to the standby after 2.5 s without it"
    ]
    assert (cluster.server, cluster.standby) == (standby, None)
    assert (cluster.run_dir, cluster.destination.is_resumed) == (run.home / STANDBY, True)
    assert (cluster._address, cluster._started_s, cluster._is_second) == ("tcp://h:2", 7.0, True)


def test_a_shard_that_is_gone_is_not_made_up_for_by_the_standby(run: Run) -> None:
    run.standby()
    run.shards(-9)
    # And after so many deaths nobody is started again.
    assert run.server(1, SHARD_LOST)._revive("tcp://h:1") == ""
    assert run.said == []


def test_why_a_run_failed_is_what_its_server_says(run: Run) -> None:
    cluster = run.server(1, "the loss is nan", FailureKind.DIVERGED)
    assert cluster._dead_server() is None
    assert repr(cluster._server_failure()) == repr(DivergedError("the loss is nan"))
    for code, words, error in (
        (1, "something", RunError("something")),
        (2, "something", UsageError("something")),
        (1, "", RunError("the server (pid 4711) ended with exit code 1")),
        (-9, "", RunError("the server (pid 4711) was killed by SIGKILL")),
    ):
        run = Run(run.folder / "next")
        assert repr(run.server(code, words)._server_failure()) == repr(error)
    run.shards(-9)
    gone = "the shard-1 (pid 4711) was killed by SIGKILL, and its slice of the weights is gone with it"
    assert repr(run.server(1, SHARD_LOST)._server_failure()) == repr(RunError(gone))


def test_a_server_that_misses_a_shard_is_ended_if_it_does_not_end_by_itself(run: Run) -> None:
    cluster = run.server(None)
    run.shards(None, 0)
    cluster._check_shards()
    assert not cluster.server.has_ended()
    run.shards(None, -9)
    cluster._check_shards()
    assert (cluster.server.code, run.cluster.server.graces) == (-9, [0.0])  # type: ignore[attr-defined]
    run.shards(None, 1)
    with pytest.raises(RunError, match=r"without a server: the shard-2 \(pid 4711\) ended with exit code 1"):
        run.server(None)._check_shards()
    # One that has ended says why.
    run.server(1)._check_shards()


def test_a_shard_that_was_killed_is_started_again_from_a_checkpoint_but_not_for_ever(run: Run) -> None:
    (run.home / "checkpoints" / "step-00000003.safetensors").touch()
    run.shards(None, -9)
    gone = "the shard-2 (pid 4711) was killed by SIGKILL, and its slice of the weights is gone with it"
    with pytest.raises(RunError, match=re.escape(gone)):
        run.server(None)._check_shards()
    # The server resumes without it, or says why not.
    run.server(1)._check_shards()


def test_what_a_standby_has_led_to_its_end_is_brought_home(tmp_path: Path) -> None:
    home, folder = tmp_path / "run", tmp_path / "run" / STANDBY
    folder.mkdir(parents=True)
    for path in (home / "ledger.jsonl", home / "server.log", folder / "ledger.jsonl", folder / "result.json"):
        path.write_text(path.parent.name)
    # It was so once before.
    (home / BEFORE_TAKEOVER).mkdir()
    bring_home(folder, home)
    there = {path.relative_to(home).as_posix(): path.read_text() for path in home.rglob("*") if path.is_file()}
    kept = f"{BEFORE_TAKEOVER}/ledger.jsonl"
    assert there == {"ledger.jsonl": STANDBY, "result.json": STANDBY, "server.log": "run", kept: "run"}
    assert not folder.exists()


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        (RunOptions(workers=0, servers=2), "servers = 2 with workers = 0, which trains in one process alone"),
        (RunOptions(workers=2, min_workers=3), "min_workers = 3 is more than workers = 2"),
        (RunOptions(workers=0, servers=1), ""),
        (RunOptions(workers=2, servers=2, min_workers=2), ""),
        (RunOptions(workers=0, min_workers=3), ""),
    ],
)
def test_values_that_contradict_one_another_are_refused(launch: RunOptions, text: str) -> None:
    with pytest.raises(JobError, match=text) if text else nullcontext():
        check_launch(launch)

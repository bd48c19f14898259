"""How a run that has failed is reported, and which options are refused."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from lockstep.common.errors import DivergedError, FailureKind, JobError, LockstepError, RunError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.launch.cluster import Cluster, check_launch, server_error
from lockstep.launch.process_backend import LocalBackend
from lockstep.launch.run_starter import RunStarter
from lockstep.launch.supervision.channel import EndReport
from lockstep.launch.supervision.child import ProcessLog
from lockstep.launch.supervision.restarts import SERVER, USAGE, ProcessPlace, Role
from lockstep.launch.supervision.supervisor import Outlook
from lockstep.runs.session import Destination
from tests.lockstep.launch.processes import Pretended


@pytest.mark.parametrize(
    ("code", "report", "error"),
    [
        (1, EndReport(kind=FailureKind.DIVERGED, text="the loss is nan"), DivergedError("the loss is nan")),
        (1, EndReport(text="something"), RunError("something")),
        (USAGE, EndReport(text="something"), UsageError("something")),
        (1, None, RunError("the server (pid 4711) ended with exit code 1: its log")),
        (-9, None, RunError("the server (pid 4711) was killed by SIGKILL")),
    ],
)
def test_why_a_run_failed_is_what_its_server_reports(
    tmp_path: Path, code: int, report: EndReport | None, error: LockstepError
) -> None:
    log = ProcessLog.at_end_of(tmp_path / "server.log")
    log.add(b"its log\n")
    server = Pretended("the server", log, ended=code, next_reports=[] if report is None else [report])
    assert repr(server_error(server)) == repr(error)


@pytest.mark.parametrize("place", [SERVER, ProcessPlace(Role.SHARD, 1)])
def test_from_where_a_run_is_resumed_is_left_to_its_server(tmp_path: Path, place: ProcessPlace) -> None:
    launch, said = RunOptions(workers=2, servers=2), list[str]()
    starter = RunStarter(Job(), Destination(folder=tmp_path / "run", options=launch), LocalBackend(launch), tmp_path)
    cluster = Cluster(starter, said.append, lambda status: None, SystemClock())
    log = ProcessLog.at_end_of(tmp_path / "process.log")
    cluster.crew.processes[place] = Pretended(place.name, log, ended=-9)
    cluster.report(place, Outlook.RESTARTED, 0.1)
    # There may be no checkpoint.
    assert said == [f"{place.name} (pid 4711) was killed by SIGKILL; restarting in 0.1 s"]


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

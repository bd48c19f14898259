"""Trains a job on this machine, alone or with a cluster of processes."""

from collections.abc import Callable, Sequence

from common.data.source import load
from common.errors import JobError
from common.job.job import Job
from common.protocol.messages import EpochStatus
from common.runtime.clock import SystemClock
from lockstep.launch.chaos import Chaos
from lockstep.launch.cluster import Cluster, check_launch
from lockstep.launch.process_backend import LocalBackend, ProcessBackend
from lockstep.reports.display import Display
from lockstep.runs.session import Destination, open_session
from lockstep.runs.single_process import SerialRun
from ps.records.recorder import Setting
from ps.records.run_folder import RunResult
from ps.setup import AdmissionPolicy, open_run

#: Called with the epochs so far, between two of them; returns whether the run ends with the last.
IsToStop = Callable[[Sequence[EpochStatus]], bool]


def train_here(
    job: Job,
    destination: Destination,
    display: Display,
    chaos: Chaos | None = None,
    is_to_stop: IsToStop | None = None,
) -> RunResult:
    """Train to the end on this machine, showing the progress; the result is in the folder too."""
    launch = destination.launch
    check_launch(launch)
    if launch.workers == 0:
        return train_alone(job, destination, display, is_to_stop)
    return train_on(LocalBackend(launch), job, destination, display, chaos, is_to_stop)


def train_on(
    backend: ProcessBackend,
    job: Job,
    destination: Destination,
    display: Display,
    chaos: Chaos | None = None,
    is_to_stop: IsToStop | None = None,
) -> RunResult:
    """Train to the end with the processes of that backend."""
    launch = destination.launch
    if launch.min_workers is not None and launch.min_workers > launch.workers:
        raise JobError(
            f"min_workers = {launch.min_workers!r} is more than workers = {launch.workers!r}, so the run would never "
            "begin: expected at most as many"
        )
    say, watch = display.say, display.show
    return Cluster(job, destination, say=say, watch=watch, backend=backend, chaos=chaos, is_to_stop=is_to_stop).run()


def train_alone(job: Job, destination: Destination, display: Display, is_to_stop: IsToStop | None = None) -> RunResult:
    """Train in this process, without any transport."""
    clock = SystemClock()
    started = clock.now()
    setup = open_run(destination.folder.name, job, load(job.data), AdmissionPolicy(pauses=is_to_stop is not None))
    setting = Setting(servers=0, transport="none", started=started)
    session = open_session(setup, setting, destination, clock, display.say)
    if destination.launch.audit:
        display.say("nothing is audited: this process computes alone")
    run = SerialRun(setup, session.recorder, clock, display.show, session.start, session.checkpointer, is_to_stop)
    return run.train()

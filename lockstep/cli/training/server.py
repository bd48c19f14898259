"""`lockstep server`: the parameter server of one run."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.data.source import load
from common.errors import RunError, UsageError
from common.job.job import Job
from common.job.score import Score
from common.runtime.clock import SystemClock
from common.transport.auth.credentials import Lock, ServerKeys
from common.transport.limits.rejection_log import RejectionLog
from common.transport.port import Limits, ServerPort
from common.transport.shared_memory.folder import shared_root
from common.transport.zeromq.ports import serve
from common.transport.zeromq.server import ZeroMqServer
from lockstep.cli.options.job import CHECKPOINT_FIELDS, JOB_FIELDS, GroupedCommand, job_options
from lockstep.cli.options.keys import INSECURE_OPTION, KEYS_OPTION
from lockstep.cli.options.run import (
    JOB_OPTION,
    LEASE_TIMEOUT_OPTION,
    PAUSE_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    SUPERVISED_OPTION,
)
from lockstep.launch.addresses import dialled
from lockstep.launch.credentials import WARNING, lock_of
from lockstep.launch.local import kept_on_failure
from lockstep.launch.memory_offer import offered
from lockstep.launch.parent_watch import held
from lockstep.reports.display import Display, PlainDisplay, display_for, print_plainly
from lockstep.reports.summary import show_summary
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch import Launch, default_launch
from lockstep.runs.resume import check_alone, finished, resumed_job
from lockstep.runs.run_dir import claimed_run_dir, unclaim
from lockstep.runs.session import Destination, open_session
from ps.checkpoint.resuming import coordinator_of
from ps.records.metrics import Setting
from ps.records.run_folder import RunResult
from ps.server.server import QUEUE, Server
from ps.setup import AdmissionPolicy, open_run

#: What the coordinator gives as the failure of a run that was interrupted.
INTERRUPTED = "interrupted"


@click.command(cls=GroupedCommand, short_help="Serve one run to any number of workers.")
@click.option(
    "--bind",
    required=True,
    metavar="ADDRESS",
    help="where to listen: tcp://HOST:PORT (port 0: a free one) or ipc://PATH",
)
@JOB_OPTION
@RUN_DIR_OPTION
@RESUME_OPTION
@LEASE_TIMEOUT_OPTION
@click.option("--allow-mixed-numerics", is_flag=True, help="admit workers whose bits may differ")
@KEYS_OPTION
@INSECURE_OPTION
@SUPERVISED_OPTION
@PAUSE_OPTION
@job_options((*JOB_FIELDS, "min_workers", "servers", "transport", "audit", "ship_data", *CHECKPOINT_FIELDS))
def server(
    job: Path | None,
    bind: str,
    run_dir: Path | None,
    resume: Path | None,
    keys: Path | None,
    insecure: bool,
    supervised: Path | None,
    pause: bool,
    **values: Any,
) -> None:
    """Serve one run to any number of workers, which may come before or after.

    Each worker is started by `lockstep worker ADDRESS`, on this machine or another; with `--servers S`, S - 1 other
    servers by `lockstep shard ADDRESS`. The values of the job are those of `lockstep train`.

    \b
      lockstep server --job examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
      lockstep server --model cnn --bind tcp://127.0.0.1:5555 --servers 2
      lockstep server --model cnn --bind tcp://0.0.0.0:5555 --keys keys
    """
    lease_timeout_s, allows_mixed = values.pop("lease_timeout"), values.pop("allow_mixed_numerics")
    given = {key: value for key, value in values.items() if value is not None}
    listening = Listening(bind, lock_of(keys, supervised, is_insecure=insecure), insecure)
    with held(supervised, resume or run_dir) if supervised else nullcontext():
        if supervised:
            resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
            folder = resume or run_dir
            assert folder is not None  # `train` has claimed it, and perhaps written data into it
            admission = replace(admission_of(launch, lease_timeout_s, allows_mixed), pauses=pause)
            try:
                destination = Destination(folder=folder, launch=launch, is_resumed=resume is not None)
                serve_supervised(Service(resolved, admission, destination), listening)
            finally:
                unclaim(folder, [folder])  # for a `train` that was killed, and cannot
            return
        if resume is not None:
            check_alone(job=job, run_dir=run_dir)
            resolved, launch = resumed_job(resume, given)
            if (result := finished(resume)) is not None:
                score = Score(result.test_accuracy, result.test_r2)
                raise UsageError(
                    f"the run in {str(resume)!r} is finished, with a test {score.name} of {score.told()}: nothing is "
                    "left to serve"
                )
            admission = admission_of(launch, lease_timeout_s, allows_mixed)
            destination = Destination(folder=resume, launch=launch, is_resumed=True)
            serve_by_hand(Service(resolved, admission, destination), listening)
            return
        resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
        admission = admission_of(launch, lease_timeout_s, allows_mixed)
        with claimed_run_dir(run_dir, resolved.model_name()) as folder:
            destination = Destination(folder=folder, launch=launch)
            serve_by_hand(Service(resolved, admission, destination), listening)


def admission_of(launch: Launch, lease_timeout_s: float, allows_mixed_numerics: bool) -> AdmissionPolicy:
    """Return whom the run takes in."""
    return AdmissionPolicy(
        min_workers=launch.min_workers or 1,
        lease_timeout_s=lease_timeout_s,
        allows_mixed_numerics=allows_mixed_numerics,
        servers=launch.servers,
        audit=launch.audit,
        ships_data=launch.ship_data,
    )


@dataclass(frozen=True)
class Service:
    """What is served: a job, whom it takes in, and where its results go."""

    job: Job
    admission: AdmissionPolicy
    destination: Destination


@dataclass(frozen=True)
class Listening:
    """Where a server listens, whom it lets in, and whom it did not."""

    bind: str
    lock: Lock
    is_insecure: bool
    denials: RejectionLog = field(default_factory=RejectionLog)

    def serve(self, servers: int) -> ZeroMqServer:
        """Listen, for a run of so many servers."""
        # The vectors that may wait for a worker come on top of it, once the model is known. Shards are told more.
        limits = Limits(queue=QUEUE) if servers == 1 else Limits()
        return serve(self.bind, lock=self.lock, insecure=self.is_insecure, limits=limits, denials=self.denials)


def serve_supervised(service: Service, listening: Listening) -> None:
    """Serve the run of a `train` that reads our standard output, and shows the progress itself."""
    console = Console(highlight=False, stderr=True)
    with closing(listening.serve(service.admission.servers)) as port:
        # Before the data is loaded, so that the workers start at the same time.
        click.echo(port.address)
        serve_run(service, port, PlainDisplay(console, SystemClock()), listening.denials)


def serve_by_hand(service: Service, listening: Listening) -> None:
    """Serve a run that a person has started, and show it."""
    console = Console(highlight=False)
    has_keys = isinstance(listening.lock, ServerKeys)
    with closing(listening.serve(service.admission.servers)) as port:
        if listening.is_insecure:
            print_plainly(console, WARNING)
        print_plainly(console, f"listening on {port.address}; start workers by:")
        print_plainly(console, f"  lockstep worker {dialled(port.address)}{' --key FILE' if has_keys else ''}")
        shards = service.admission.servers - 1
        if shards:
            print_plainly(console, f"and {shards} {'shards' if shards > 1 else 'shard'} by:")
            print_plainly(console, f"  lockstep shard {dialled(port.address)}{' --keys DIR' if has_keys else ''}")
        with kept_on_failure(console, service.destination.folder), display_for(console, SystemClock()) as display:
            result = serve_run(service, port, display, listening.denials)
    show_summary(console, result, service.destination.folder)


def serve_run(service: Service, port: ServerPort, display: Display, denials: RejectionLog) -> RunResult:
    """Serve a run to its end; `RunError` where it fails, `KeyboardInterrupt` where it was interrupted."""
    clock = SystemClock()
    started = clock.now()
    job, launch = service.job, service.destination.launch
    opened = open_run(service.destination.folder.name, job, load(job.data), service.admission)
    with offered(opened, launch.transport, shared_root()) as offer:
        opening = offer.opening
        setting = Setting(
            servers=launch.servers,
            transport=port.address.partition(":")[0],
            obstacle=offer.obstacle,
            started=started,
        )
        say = with_address(display, port.address)
        books = open_session(opening, setting, service.destination, clock, say)
        recorder, coordinator = books.recorder, coordinator_of(opening.facts, books.start)
        if offer.obstacle:
            say(f"vectors go over sockets: {offer.obstacle}")
        server = Server(
            coordinator,
            opening,
            recorder,
            port,
            clock,
            say,
            sharing=offer.sharing,
            checkpointer=books.keeper,
            rejections=denials,
        )
        ended = server.run(watch=lambda: display.show(coordinator.status(clock.now())))
    if ended.failure == INTERRUPTED:
        raise KeyboardInterrupt
    if ended.failure:
        raise RunError(ended.failure)
    assert recorder.result is not None
    return recorder.result


def with_address(display: Display, address: str) -> Callable[[str], None]:
    """Return what shows the coordinator's words, with the address in its reminders: it knows of none."""

    def say(text: str) -> None:
        if text.startswith("waiting for"):
            display.remind(f"{text}, at {address}")
        else:
            display.say(text)

    return say

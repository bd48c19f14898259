"""`lockstep server`: the parameter server of one run."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import cache_shown_on
from lockstep.cli.options.run import (
    INSECURE_OPTION,
    KEYS_OPTION,
    PICTURE_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    STANDBY_KEY_OPTION,
    SUPERVISED_OPTION,
    WATCH_OPTION,
    passes_link,
)
from lockstep.common.errors import LedElsewhereError, UsageError
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import Score
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.messages import StandbyAddress
from lockstep.common.protocol.run_options import OF_A_SERVER, RunOptions
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.environment import demand_open_files
from lockstep.common.transport.address import parse
from lockstep.launch.endpoints import credential_of, dial_with, lock_of, server_key_in
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.page_process import PageRequest
from lockstep.launch.remote.standby import (
    HANDED_OVER,
    FolderHolds,
    StandbyRequest,
    StartFlags,
    follow,
    found_in,
    server_with_more,
    show_finished,
    stand_by,
)
from lockstep.launch.run_end import keep_logs
from lockstep.launch.serve import Listening, Service, serve_by_hand, serve_supervised
from lockstep.launch.supervision.channel import ParentLink
from lockstep.results.reports.display import print_plainly
from lockstep.runs.run_dir import check_resume_flags, finished, keep_parts, unclaim
from lockstep.runs.session import Destination, destination_of


def addresses(context: click.Context, option: click.Parameter, text: str | None) -> tuple[StandbyAddress, ...]:
    """Return the servers whose addresses a flag names; raises AddressError."""
    found = [] if text is None else [parse(one) for one in text.split(",")]
    return tuple(StandbyAddress(address=str(one)) for one in found)


@click.command(cls=JobCommand, short_help="Serve a run to workers on any machine.")
@click.option(
    "--bind",
    required=True,
    metavar="ADDRESS",
    help="address to listen on: tcp://HOST:PORT (port 0: any free one) or ipc://PATH",
)
@click.option(
    "--standby-of",
    metavar="ADDRESS",
    help="mirror the run of the server at ADDRESS into --run-dir, and lead it if that server is gone",
)
@click.option(
    "--standbys",
    metavar="ADDRESS,...",
    callback=addresses,
    help="where the run's standbys are: mirror the run into --run-dir if one of them leads it, and otherwise begin or "
    "resume it there",
)
@takes_job("min_workers", "servers", "transport", *OF_A_SERVER)
@RUN_DIR_OPTION
@RESUME_OPTION
@KEYS_OPTION
@STANDBY_KEY_OPTION
@INSECURE_OPTION
@SUPERVISED_OPTION
@PICTURE_OPTION
@WATCH_OPTION
@click.option(
    "--prometheus", metavar="HOST:PORT", help="serve metrics for Prometheus at this address (needs the extra watch)"
)
@takes_trust
@passes_link
def server(link: ParentLink, /, **flags: Any) -> int:
    """Serve the run of the job file JOB, or of the job that the flags describe, to any number of workers.

    Start each worker with `lockstep worker ADDRESS`, on this machine or another, before or after the server. With
    `--servers S`, also start S - 1 shards with `lockstep shard ADDRESS`; with `--spread`, as many as there are other
    hosts. A job has the same values as for `lockstep train`. With `--standby-of ADDRESS`, mirror the run of another
    server instead, and lead it if that is gone. Whatever restarts servers, such as Kubernetes or systemd, can use one
    command: with `--standbys` or `--standby-of`, a server that is started again finds out whether it leads the run or
    mirrors it. It exits with 130 after it has handed the run over.

    \b
      lockstep server examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
      lockstep server --model cnn --bind tcp://127.0.0.1:5555 --servers 2
      lockstep server --model cnn --bind tcp://192.168.1.7:5555 --keys keys
      lockstep server --standby-of tcp://a:5555 --bind tcp://b:5555 --run-dir copy
    """
    return serve_as(ServerFlags(link=link, **flags))


class ServerFlags(StartFlags, frozen=True, kw_only=True):
    """A server, as its flags ask for it."""

    job: JobRequest
    standby_of: str | None
    standbys: tuple[StandbyAddress, ...]
    run_dir: Path | None
    resume: Path | None
    is_watched: bool
    prometheus: str | None

    @property
    def folder(self) -> Path | None:
        """The folder of the run, None for a new one of the default name."""
        return self.resume or self.run_dir

    def standby(self, server: StandbyAddress, folder: Path) -> StandbyRequest:
        """Return a standby of a server, which mirrors its run into a folder."""
        given = {name: value for name, value in self.job.given.items() if name in OF_A_SERVER}
        return StandbyRequest(flags=self, server=server, folder=folder, given=given)


def serve_as(flags: ServerFlags) -> int:
    """Serve a run or mirror it, as flags ask for it; return the exit code."""
    demand_open_files()
    if flags.standby_of is not None:
        return mirror(flags, StandbyAddress(address=flags.standby_of))
    if flags.key is not None:
        key = str(flags.key)
        raise UsageError(f"--key {key!r} without --standby-of ADDRESS: a server has a folder of keys: --keys DIR")
    page = wanted_page(flags.prometheus, is_watched=flags.is_watched)
    if not flags.standbys:
        return lead(flags, *job_of(flags), page, is_resumed=flags.resume is not None)
    folder = folder_to_rejoin(flags.run_dir, flags.resume)
    match found_in(folder):
        case FolderHolds.RESULT:
            show_finished(Console(highlight=False), folder)
            return 0
        case FolderHolds.MIRROR:
            return stand_by(flags.standby(flags.standbys[0], folder))
        case FolderHolds.RUN:
            # Not all workers may be back.
            values = {**flags.job.in_file(), **flags.job.given}
            given = {name: values[name] for name in values if name != "min_workers"}
            job, options = cache_shown_on(Console(highlight=False)).resumed(folder, given)
            return lead(flags, job, options, page, is_resumed=True)
        case FolderHolds.NOTHING:
            return lead(flags, *job_of(flags), page, is_resumed=False)


def mirror(flags: ServerFlags, server: StandbyAddress) -> int:
    """Be a standby of a server; return the exit code."""
    folder = mirror_folder(flags.job, flags.run_dir, flags.resume, flags.standbys)
    request = flags.standby(server, folder)
    if flags.supervised is None:
        return stand_by(request)
    # As the server does, which may be gone: the mirror is in the folder of the run.
    with ends_with_parent(flags.supervised, partial(keep_logs, flags.supervised, folder.parent)):
        return stand_by(request)


def job_of(flags: ServerFlags) -> tuple[Job, RunOptions]:
    """Return the job and the options of the run that flags ask for."""
    if flags.resume is None or flags.supervised is not None:
        return flags.job.resolve()
    check_resume_flags(job=flags.job.file, run_dir=flags.run_dir)
    return cache_shown_on(Console(highlight=False)).resumed(flags.resume, flags.job.given)


def lead(flags: ServerFlags, job: Job, options: RunOptions, page: PageRequest | None, *, is_resumed: bool) -> int:
    """Lead a run, or mirror it if another server leads it by now; return the exit code."""
    folder = flags.folder
    # Before there is anything to tidy up.
    take_numerics(job.numerics)
    lock = lock_of(flags.keys, flags.supervised, is_insecure=flags.insecure)
    listening = Listening(flags.bind, lock, flags.insecure)
    dial = partial(dial_with, credential_of(server_key_in(flags.keys), flags.supervised))
    if flags.supervised is not None and folder is not None:
        if not is_resumed:
            keep_parts(folder, flags.link.say)
        # `train` has claimed the folder, and perhaps written data into it.
        destination = Destination(folder=folder, options=options, is_resumed=is_resumed)
        serve_for_train(Service(job, destination, dial), listening, flags.supervised, flags.link)
        return 0
    if is_resumed and folder is not None:
        check_unfinished(folder)
    elif flags.standbys and folder is not None:
        unclaim(folder, [])  # of a process that was killed before it had begun
        keep_parts(folder, partial(print_plainly, Console(highlight=False)))
        if (other := server_with_more(flags.standbys, dial, SystemClock())) is not None:
            return stand_by(flags.standby(other, folder))
    try:
        with destination_of(job, options, folder, is_resumed=is_resumed) as destination:
            standbys = flags.standbys
            service = Service(job, destination, dial, flags.picture, page, standbys=standbys)
            result = serve_by_hand(service, listening)
    except LedElsewhereError as elsewhere:
        # A run that begins is led by no other server.
        if not flags.standbys or folder is None:
            raise
        request = flags.standby(flags.standbys[0], folder)
        return stand_by(follow(request, elsewhere, Console(highlight=False)))
    return HANDED_OVER if result is None and flags.standbys else 0


def folder_to_rejoin(run_dir: Path | None, resume: Path | None) -> Path:
    """Return the folder of a server that decides by itself how it continues; `UsageError` if flags contradict that."""
    if resume is not None:
        raise UsageError(
            f"--standbys with --resume: expected --run-dir {shlex.quote(str(resume))}, which is resumed if the run has "
            "begun there, and is not led elsewhere"
        )
    if run_dir is None:
        raise UsageError("--standbys without --run-dir: expected the folder to begin or resume the run in")
    return run_dir


def mirror_folder(
    job: JobRequest, run_dir: Path | None, resume: Path | None, standbys: Sequence[StandbyAddress]
) -> Path:
    """Return the folder of a standby; `UsageError` if flags give what it gets from its server."""
    if standbys:
        raise UsageError("--standby-of with --standbys: expected one of them; a standby learns of the others by itself")
    if run_dir is None:
        raise UsageError("--standby-of without --run-dir: expected the folder for the mirror, as --run-dir DIR")
    given = ["--resume"] if resume is not None else []
    given += [f"--{name.replace('_', '-')}" for name in job.given if name not in OF_A_SERVER]
    given += [str(job.file)] if job.file is not None else []
    if given:
        raise UsageError(f"--standby-of with {given[0]}: the job is that of the server: remove it")
    return run_dir


def wanted_page(prometheus: str | None, *, is_watched: bool) -> PageRequest | None:
    """Return the page that the flags ask for, if there is any."""
    if prometheus is None:
        return PageRequest() if is_watched else None
    if is_watched:
        raise UsageError(f"--watch and --prometheus {prometheus}: remove one; the page serves the metrics too")
    return PageRequest(prometheus, is_metrics_only=True)


def serve_for_train(service: Service, listening: Listening, private: Path, link: ParentLink) -> None:
    """Serve the run of the `train` that has started this process; do what it can no longer do if it is killed."""
    folder = service.destination.folder
    with ends_with_parent(private, partial(keep_logs, private, folder)):
        try:
            serve_supervised(service, listening, link)
        finally:
            unclaim(folder, [folder])


def check_unfinished(folder: Path) -> None:
    """Raise `UsageError` if a run that is to be resumed is finished."""
    if (result := finished(folder)) is not None:
        score = Score(result.test_accuracy, result.test_r2)
        figure = f", with a test {score.name} of {score.text()}" if score.name else ""
        raise UsageError(
            f"the run in {str(folder)!r} is already finished{figure}: expected a run "
            f"to resume; `lockstep evaluate {shlex.quote(str(folder))}` shows its figures"
        )

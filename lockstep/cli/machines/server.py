"""`lockstep server`: the parameter server of one run."""

from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import cache_shown_on, job_in
from lockstep.cli.options.run import (
    INSECURE_OPTION,
    KEYS_OPTION,
    PICTURE_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    SUPERVISED_OPTION,
    WATCH_OPTION,
    passes_link,
)
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.run_options import OF_A_SERVER, RunOptions
from lockstep.common.runtime.environment import demand_open_files
from lockstep.launch.endpoints import lock_of
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.page_process import PageRequest
from lockstep.launch.run_end import keep_logs, show_end
from lockstep.launch.serve import Listening, Service, dismiss, serve_by_hand, serve_supervised
from lockstep.launch.supervision.channel import ParentLink
from lockstep.results.display import print_plainly
from lockstep.runs.run_dir import check_resume_flags, finished, has_begun, keep_parts, unclaim
from lockstep.runs.session import Destination, destination_of


@click.command(cls=JobCommand, short_help="Serve a run to workers on any machine.")
@click.option(
    "--bind",
    required=True,
    metavar="ADDRESS",
    help="address to listen on: tcp://HOST:PORT (port 0: any free one) or ipc://PATH",
)
@takes_job("min_workers", "servers", "transport", *OF_A_SERVER)
@RUN_DIR_OPTION
@RESUME_OPTION
@KEYS_OPTION
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
    `--servers S`, also start S - 1 shards with `lockstep shard ADDRESS`. A job has the same values as for `lockstep
    train`. If the server is started again with the same command and --run-dir, as systemd, compose or Kubernetes do
    it, it resumes the run from its last checkpoint. Workers and shards wait for that. If the run is finished, it prints
    so, and exits with 0.

    \b
      lockstep server examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
      lockstep server --model cnn --bind tcp://127.0.0.1:5555 --servers 2
      lockstep server --bind tcp://10.0.0.7:5555 --keys keys --run-dir run
    """
    return serve_as(ServerFlags(link=link, **flags))


class ServerFlags(msgspec.Struct, frozen=True, kw_only=True):
    """A server, as its flags ask for it."""

    job: JobRequest
    bind: str
    run_dir: Path | None
    resume: Path | None
    #: The folder of keys, None without one.
    keys: Path | None
    insecure: bool
    #: The private folder of the process that has started this one, None without one; and the link to it.
    supervised: Path | None
    link: ParentLink
    #: Whether the run leaves a picture.
    picture: bool
    is_watched: bool
    prometheus: str | None

    @property
    def folder(self) -> Path | None:
        """The folder of the run, None for a new one of the default name."""
        return self.resume or self.run_dir


def serve_as(flags: ServerFlags) -> int:
    """Serve a run, as flags ask for it, or resume it; return the exit code."""
    demand_open_files()
    page = wanted_page(flags.prometheus, is_watched=flags.is_watched)
    folder = flags.folder
    if flags.resume is None and folder is not None:
        keep_parts(folder, flags.link.say if flags.supervised else partial(print_plainly, Console(highlight=False)))
    is_resumed = flags.resume is not None or (folder is not None and has_begun(folder))
    job, options = job_of(flags)
    # Before there is anything to tidy up.
    take_numerics(job.numerics)
    lock = lock_of(flags.keys, flags.supervised, is_insecure=flags.insecure)
    listening = Listening(flags.bind, lock, flags.insecure)
    if flags.supervised is not None and folder is not None:
        # `train` has claimed the folder, and perhaps written data into it.
        destination = Destination(folder=folder, options=options, is_resumed=is_resumed)
        serve_for_train(Service(job, destination), listening, flags.supervised, flags.link)
        return 0
    if is_resumed and folder is not None and (result := finished(folder)) is not None:
        console = Console(highlight=False)
        print_plainly(console, f"the run in {folder} is already finished")
        show_end(console, result, folder, has_picture=False)
        dismiss(listening, options)
        return 0
    with destination_of(job, options, folder, is_resumed=is_resumed) as destination:
        serve_by_hand(Service(job, destination, flags.picture, page), listening)
    return 0


def job_of(flags: ServerFlags) -> tuple[Job, RunOptions]:
    """Return the job and the options of the run that flags ask for, or of the one that is resumed.

    `JobError` if flags ask for another job than that of the run in their folder.
    """
    if flags.resume is not None:
        check_resume_flags(job=flags.job.file, run_dir=flags.run_dir)
        return cache_shown_on(Console(highlight=False)).resumed(flags.resume, flags.job.given)
    if flags.supervised is not None:
        return flags.job.resolve()
    job, options = job_in(flags.run_dir, flags.job, Console(highlight=False))
    is_resumed = flags.run_dir is not None and has_begun(flags.run_dir)
    # Not all workers may be back.
    return job, msgspec.structs.replace(options, min_workers=None) if is_resumed else options


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

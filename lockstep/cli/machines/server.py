"""`lockstep server`: the parameter server of one run."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from lockstep.cli.options.job import CHECKPOINT_FIELDS, JOB_FIELDS, GroupedCommand, job_options, takes_job
from lockstep.cli.options.keys import INSECURE_OPTION, KEYS_OPTION
from lockstep.cli.options.run import (
    LEASE_TIMEOUT_OPTION,
    PAUSE_OPTION,
    PICTURE_OPTION,
    RESUME_OPTION,
    RUN_DIR_OPTION,
    SUPERVISED_OPTION,
    WATCH_OPTION,
)
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.job.score import Score
from lockstep.launch.child import keep_logs
from lockstep.launch.endpoints import lock_of
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.numerics import begin_with
from lockstep.launch.page_process import PageRequest
from lockstep.launch.serve import Listening, Service, serve_by_hand, serve_supervised
from lockstep.ps.setup import AdmissionPolicy
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch_config import default_launch
from lockstep.runs.run_dir import check_resume_flags, claimed_run_dir, finished, has_begun, resumed_job, unclaim
from lockstep.runs.session import Destination


@click.command(cls=GroupedCommand, short_help="Serve a run to workers on any machine.")
@click.option(
    "--bind",
    required=True,
    metavar="ADDRESS",
    help="address to listen on: tcp://HOST:PORT (port 0: any free one) or ipc://PATH",
)
@takes_job
@RUN_DIR_OPTION
@RESUME_OPTION
@LEASE_TIMEOUT_OPTION
@click.option("--allow-mixed-numerics", is_flag=True, help="admit workers on machines whose bits may differ")
@KEYS_OPTION
@INSECURE_OPTION
@SUPERVISED_OPTION
@PAUSE_OPTION
@PICTURE_OPTION
@WATCH_OPTION
@click.option(
    "--metrics", metavar="HOST:PORT", help="serve metrics for Prometheus at this address (needs the extra watch)"
)
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
    picture: bool,
    is_watched: bool,
    metrics: str | None,
    **values: Any,
) -> None:
    """Serve the run of the job file JOB, or of the job that the flags describe, to any number of workers.

    Start each worker with `lockstep worker ADDRESS`, on this machine or another, before or after the server. With
    `--servers S`, also start S - 1 shards with `lockstep shard ADDRESS`. A job has the same values as for `lockstep
    train`.

    \b
      lockstep server examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
      lockstep server --model cnn --bind tcp://127.0.0.1:5555 --servers 2
      lockstep server --model cnn --bind tcp://192.168.1.7:5555 --keys keys
    """
    policy = {
        "lease_timeout_s": values.pop("lease_timeout"),
        "allows_mixed_numerics": values.pop("allow_mixed_numerics"),
        "pauses": pause,
    }
    given = {key: value for key, value in values.items() if value is not None}
    if is_watched and metrics is not None:
        raise UsageError(f"--watch and --metrics {metrics}: remove one; the page serves the metrics too")
    page = PageRequest() if is_watched else None if metrics is None else PageRequest(metrics, is_metrics_only=True)
    if resume is not None and supervised is None:
        check_resume_flags(job=job, run_dir=run_dir)
        begin_with(resumed_job(resume, given)[0].numerics)
    else:
        # Before there is anything to tidy up. One that `train` has started on this machine has them already.
        begin_with(resolve(read_values(job) if job else {}, given, default_launch())[0].numerics)
    listening = Listening(bind, lock_of(keys, supervised, is_insecure=insecure), insecure)
    if supervised is not None:
        folder = resume or run_dir
        assert folder is not None  # `train` has claimed it, and perhaps written data into it
        with ends_with_parent(supervised, partial(keep_logs_of_begun, supervised, folder)):
            try:
                resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
                destination = Destination(folder=folder, launch=launch, is_resumed=resume is not None)
                serve_supervised(service_of(resolved, policy, destination), listening)
            finally:
                unclaim(folder, [folder])  # for a `train` that was killed, and cannot
    elif resume is not None:
        service = resumed_service(resume, given, policy)
        serve_by_hand(replace(service, has_picture=picture, page=page), listening)
    else:
        resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
        with claimed_run_dir(run_dir, resolved.model_name()) as folder:
            service = service_of(resolved, policy, Destination(folder=folder, launch=launch))
            serve_by_hand(replace(service, has_picture=picture, page=page), listening)


def keep_logs_of_begun(supervised: Path, folder: Path) -> None:
    """Move the logs in our private folder into that of the run, if that has begun."""
    if has_begun(folder):
        keep_logs(supervised, folder)


def service_of(job: Job, policy: Mapping[str, Any], destination: Destination) -> Service:
    """Return what is served: the launch says whom the run admits, and `policy` the rest of it."""
    launch = destination.launch
    admission = AdmissionPolicy(
        min_workers=launch.min_workers or 1,
        servers=launch.servers,
        audit=launch.audit,
        ships_data=launch.ship_data,
        **policy,
    )
    return Service(job, admission, destination)


def resumed_service(folder: Path, given: Mapping[str, Any], policy: Mapping[str, Any]) -> Service:
    """Return the service of a run that is resumed; `UsageError` if it is finished."""
    job, launch = resumed_job(folder, given)
    if (result := finished(folder)) is not None:
        score = Score(result.test_accuracy, result.test_r2)
        raise UsageError(
            f"the run in {str(folder)!r} is already finished, with a test {score.name} of {score.text()}: expected a "
            f"run to resume; `lockstep evaluate {shlex.quote(str(folder))}` shows its figures"
        )
    return service_of(job, policy, Destination(folder=folder, launch=launch, is_resumed=True))

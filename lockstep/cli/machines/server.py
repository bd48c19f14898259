"""`lockstep server`: the parameter server of one run."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from lockstep.cli.options.job import JOB_FIELDS, GroupedCommand, JobRequest, takes_job, takes_trust
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
from lockstep.common.job.score import Score
from lockstep.common.numerics.choice import take_numerics
from lockstep.common.protocol.messages import StandbyAddress
from lockstep.common.protocol.run_options import OF_A_SERVER
from lockstep.common.transport.address import parse
from lockstep.common.transport.auth.credentials import Lock, ServerKeys
from lockstep.launch.endpoints import dial_with, lock_of, server_credential
from lockstep.launch.lifetime import ends_with_parent
from lockstep.launch.page_process import PageRequest
from lockstep.launch.remote.rejoin import FolderHolds, found_in, show_finished, who_has_more
from lockstep.launch.remote.standby import HANDED_OVER, StandbyRequest, follow, stand_by
from lockstep.launch.run_end import keep_logs
from lockstep.launch.serve import Listening, Service, serve_by_hand, serve_supervised
from lockstep.launch.supervision.channel import ParentLink
from lockstep.runs.job_groups import CHECKPOINT_FIELDS
from lockstep.runs.optional_packages import demand
from lockstep.runs.run_dir import check_resume_flags, finished, resumed_job, unclaim
from lockstep.runs.session import Destination, destination_of


def addresses(context: click.Context, option: click.Parameter, text: str | None) -> tuple[StandbyAddress, ...]:
    """Return the servers whose addresses a flag names; raises AddressError."""
    found = [] if text is None else [parse(one) for one in text.split(",")]
    return tuple(StandbyAddress(address=str(one)) for one in found)


@click.command(cls=GroupedCommand, short_help="Serve a run to workers on any machine.")
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
@takes_job(
    *JOB_FIELDS,
    "min_workers",
    "servers",
    "transport",
    "audit",
    "audit_ends",
    "ship_data",
    "takeover_seconds",
    *CHECKPOINT_FIELDS,
    *OF_A_SERVER,
)
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
def server(
    link: ParentLink,
    job: JobRequest,
    bind: str,
    standby_of: str | None,
    standbys: tuple[StandbyAddress, ...],
    run_dir: Path | None,
    resume: Path | None,
    keys: Path | None,
    key: Path | None,
    insecure: bool,
    supervised: Path | None,
    picture: bool,
    is_watched: bool,
    prometheus: str | None,
) -> int:
    """Serve the run of the job file JOB, or of the job that the flags describe, to any number of workers.

    Start each worker with `lockstep worker ADDRESS`, on this machine or another, before or after the server. With
    `--servers S`, also start S - 1 shards with `lockstep shard ADDRESS`. A job has the same values as for `lockstep
    train`. With `--standby-of ADDRESS`, mirror the run of another server instead, and lead it if that is gone. Whatever
    restarts servers, such as Kubernetes or systemd, can use one command: with `--standbys` or `--standby-of`, a server
    that is started again finds out whether it leads the run or mirrors it. It exits with 130 after it has handed the
    run over.

    \b
      lockstep server examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
      lockstep server --model cnn --bind tcp://127.0.0.1:5555 --servers 2
      lockstep server --model cnn --bind tcp://192.168.1.7:5555 --keys keys
      lockstep server --standby-of tcp://a:5555 --bind tcp://b:5555 --run-dir copy
    """

    def standby(server: StandbyAddress, folder: Path) -> StandbyRequest:
        return StandbyRequest(
            server=server,
            bind=bind,
            folder=folder,
            key=key,
            keys=keys,
            supervised=supervised,
            link=link,
            is_insecure=insecure,
            given={name: value for name, value in job.given.items() if name in OF_A_SERVER},
            has_picture=picture,
        )

    if standby_of is not None:
        check_standby_flags(job, run_dir, resume, standbys)
        assert run_dir is not None  # as was checked
        request = standby(StandbyAddress(address=standby_of), run_dir)
        if supervised is None:
            return stand_by(request)
        # As the server does, which may be gone: the mirror is in the folder of the run.
        with ends_with_parent(supervised, partial(keep_logs, supervised, run_dir.parent)):
            return stand_by(request)
    if key is not None:
        raise UsageError(f"--key {str(key)!r} without --standby-of ADDRESS: a server has a folder of keys: --keys DIR")
    page = wanted_page(prometheus, is_watched=is_watched)
    holds = FolderHolds.NOTHING
    if standbys:
        check_rejoining_flags(run_dir, resume)
        assert run_dir is not None  # as was checked
        holds = found_in(run_dir)
        if holds is FolderHolds.RESULT:
            show_finished(Console(highlight=False), run_dir)
            return 0
        if holds is FolderHolds.MIRROR:
            return stand_by(standby(standbys[0], run_dir))
    if holds is FolderHolds.RUN:
        assert run_dir is not None
        # Not all workers may be back.
        given = {name: value for name, value in {**job.in_file(), **job.given}.items() if name != "min_workers"}
        resolved, options = resumed_job(run_dir, given)
        resume, run_dir = run_dir, None
    elif resume is not None and supervised is None:
        check_resume_flags(job=job.file, run_dir=run_dir)
        resolved, options = resumed_job(resume, job.given)
    else:
        resolved, options = job.resolve()
    # Before there is anything to tidy up.
    take_numerics(resolved.numerics)
    lock = lock_of(keys, supervised, is_insecure=insecure)
    signers = signers_of(lock) if options.signed else dict
    listening = Listening(bind, lock, insecure)
    dial = partial(dial_with, server_credential(keys, supervised))
    if supervised is not None:
        folder = resume or run_dir
        assert folder is not None  # `train` has claimed it, and perhaps written data into it
        destination = Destination(folder=folder, options=options, is_resumed=resume is not None)
        serve_for_train(Service(resolved, destination, dial=dial), listening, supervised, link)
        return 0
    if resume is not None:
        check_unfinished(resume)
    elif standbys and run_dir is not None:
        unclaim(run_dir, [])  # of a process that was killed before it had begun
        if (other := who_has_more(standbys, dial)) is not None:
            return stand_by(standby(other, run_dir))
    try:
        with destination_of(resolved, options, resume or run_dir, is_resumed=resume is not None) as destination:
            service = Service(resolved, destination, picture, signers, page, dial=dial, standbys=standbys)
            result = serve_by_hand(service, listening)
    except LedElsewhereError as elsewhere:
        if not standbys:
            raise
        assert resume is not None  # a run that begins has no other leader
        return stand_by(follow(standby(standbys[0], resume), elsewhere, Console(highlight=False)))
    return HANDED_OVER if result is None and standbys else 0


def signers_of(lock: Lock) -> Callable[[], Mapping[str, str]]:
    """Return the folder of keys for workers' signatures; `UsageError` if results cannot be checked."""
    if not isinstance(lock, ServerKeys):
        raise UsageError("--signed without --keys: expected a folder of keys, by which workers are known")
    demand("cryptography", "signing", "--signed")
    if not lock.signers():
        raise UsageError(
            "--signed with keys of which none can sign: expected workers' keys with seeds, which `lockstep keys add` "
            "makes now that the extra signing is installed"
        )
    return lock.signers


def check_rejoining_flags(run_dir: Path | None, resume: Path | None) -> None:
    """Raise `UsageError` if a server that finds out by itself how it goes on is told so, or lacks a folder."""
    if resume is not None:
        raise UsageError(
            f"--standbys with --resume: expected --run-dir {shlex.quote(str(resume))}, which is resumed if the run has "
            "begun there, and is not led elsewhere"
        )
    if run_dir is None:
        raise UsageError("--standbys without --run-dir: expected the folder to begin or resume the run in")


def check_standby_flags(
    job: JobRequest, run_dir: Path | None, resume: Path | None, standbys: Sequence[StandbyAddress]
) -> None:
    """Raise `UsageError` if a standby is given what it gets from its server, or lacks a folder."""
    if standbys:
        raise UsageError("--standby-of with --standbys: expected one of them; a standby learns of the others by itself")
    if run_dir is None:
        raise UsageError("--standby-of without --run-dir: expected the folder for the mirror, as --run-dir DIR")
    given = ["--resume"] if resume is not None else []
    given += [f"--{name.replace('_', '-')}" for name in job.given if name not in OF_A_SERVER]
    given += [str(job.file)] if job.file is not None else []
    if given:
        raise UsageError(f"--standby-of with {given[0]}: the job is that of the server: remove it")


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

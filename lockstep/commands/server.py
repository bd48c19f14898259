"""`lockstep server`: the parameter server of one run."""

import platform
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.clock import SystemClock
from common.data.source import load
from common.errors import RunError
from common.job import Job
from common.transport.port import ServerPort
from common.transport.shared_folder import shared_root
from common.transport.zeromq import serve
from lockstep.cluster import check_launch
from lockstep.commands.job_options import JOB_FIELDS, GroupedCommand, job_options
from lockstep.commands.run_options import JOB_OPTION, LEASE_TIMEOUT_OPTION, RUN_DIR_OPTION, SUPERVISED_OPTION
from lockstep.display import Display, PlainDisplay, display_for, print_plainly
from lockstep.job_file import read_values, resolve
from lockstep.launch import Launch, default_launch
from lockstep.lifeline import held
from lockstep.local import kept_on_failure
from lockstep.memory_offer import offered
from lockstep.run_dir import claimed_run_dir, make_run_dir, unclaim
from lockstep.summary import show_summary
from ps.coordinator import Coordinator
from ps.opening import Admission, open_run
from ps.recorder import Recorder, Setting
from ps.run_folder import RunResult
from ps.server import Server

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
@LEASE_TIMEOUT_OPTION
@click.option("--allow-mixed-numerics", is_flag=True, help="admit workers whose bits may differ")
@click.option("--insecure", is_flag=True, help="listen where others can reach it, without keys")
@SUPERVISED_OPTION
@job_options((*JOB_FIELDS, "min_workers", "transport"))
def server(
    job: Path | None, bind: str, run_dir: Path | None, insecure: bool, supervised: Path | None, **values: Any
) -> None:
    """Serve one run to any number of workers, which may come before or after.

    Each worker is started by `lockstep worker ADDRESS`, on this machine or another. The values of the job are those of
    `lockstep train`.

    \b
      lockstep server --job examples/lenet.toml --bind tcp://127.0.0.1:5555
      lockstep server --model mlp --bind ipc:///tmp/lockstep.sock --min-workers 2
    """
    lease_timeout_s, allows_mixed = values.pop("lease_timeout"), values.pop("allow_mixed_numerics")
    given = {key: value for key, value in values.items() if value is not None}
    with held(supervised) if supervised else nullcontext():
        resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
        check_launch(launch)
        admission = Admission(
            min_workers=launch.min_workers or 1,
            lease_timeout_s=lease_timeout_s,
            allows_mixed_numerics=allows_mixed,
        )
        if supervised:
            assert run_dir is not None  # `train` has claimed it, and perhaps written data into it
            try:
                serve_supervised(Service(resolved, launch, admission, run_dir), bind)
            finally:
                unclaim(run_dir, [run_dir])  # for a `train` that was killed, and cannot
            return
        with claimed_run_dir(run_dir, resolved.model_name()) as folder:
            serve_by_hand(Service(resolved, launch, admission, folder), bind, is_insecure=insecure)


@dataclass(frozen=True)
class Service:
    """What is served: a job, how it is carried out, whom it takes in, and where its results go."""

    job: Job
    launch: Launch
    admission: Admission
    folder: Path


def serve_supervised(service: Service, bind: str) -> None:
    """Serve the run of a `train` that reads our standard output, and shows the progress itself."""
    console = Console(highlight=False, stderr=True)
    with closing(serve(bind)) as port:
        # Before the data is loaded, so that the workers start at the same time.
        click.echo(port.address)
        serve_run(service, port, PlainDisplay(console, SystemClock()))


def serve_by_hand(service: Service, bind: str, *, is_insecure: bool) -> None:
    """Serve a run that a person has started, and show it."""
    console = Console(highlight=False)
    with closing(serve(bind, insecure=is_insecure)) as port:
        if is_insecure:
            print_plainly(console, "warning: --insecure: whoever reaches this address can take part in the run")
        print_plainly(console, f"listening on {port.address}; start workers by:")
        print_plainly(console, f"  lockstep worker {dialled(port.address)}")
        with kept_on_failure(console, service.folder), display_for(console, SystemClock()) as display:
            result = serve_run(service, port, display)
    show_summary(console, result, service.folder)


def dialled(address: str) -> str:
    """Return how another machine spells an address that stands for all of this one's."""
    for everywhere in ("//0.0.0.0:", "//[::]:"):
        address = address.replace(everywhere, f"//{platform.node() or 'HOST'}:")
    return address


def serve_run(service: Service, port: ServerPort, display: Display) -> RunResult:
    """Serve a run to its end; `RunError` where it fails, `KeyboardInterrupt` where it was interrupted."""
    clock = SystemClock()
    started = clock.now()
    job = service.job
    opened = open_run(service.folder.name, job, load(job.data), service.admission)
    with offered(opened, service.launch.transport, shared_root()) as offer:
        opening = offer.opening
        setting = Setting(
            servers=service.launch.servers,
            transport=port.address.partition(":")[0],
            obstacle=offer.obstacle,
            started=started,
        )
        folder = make_run_dir(service.folder, job, service.launch)
        recorder = Recorder(opening.facts, setting, opening.layout, folder)
        recorder.begin(opening.shard.digest())
        coordinator, say = Coordinator(opening.facts), with_address(display, port.address)
        if offer.obstacle:
            say(f"vectors go over sockets: {offer.obstacle}")
        run = Server(coordinator, opening.shard, recorder, port, clock, say, offer.sharing)
        ended = run.run(watch=lambda: display.show(coordinator.status(clock.now())))
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

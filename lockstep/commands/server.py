"""`lockstep server`: the parameter server of one run."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from common.clock import SystemClock
from common.data.source import load
from common.errors import RunError
from common.job import Job
from common.transport.port import ServerPort
from common.transport.zeromq import serve
from lockstep.cluster import check_launch
from lockstep.commands.job_options import job_options
from lockstep.display import Display, display_for
from lockstep.job_file import read_values, resolve
from lockstep.launch import Launch, default_launch
from lockstep.lifeline import hold
from lockstep.local import check_run_dir, make_run_dir, new_run_dir
from lockstep.summary import show_summary
from ps.coordinator import Coordinator
from ps.opening import Admission, open_run
from ps.recorder import Recorder, Setting
from ps.run_folder import RunResult
from ps.server import Server


@click.command()
@click.option(
    "--job", type=click.Path(path_type=Path), help="job file (TOML); without it, the shipped job of the model"
)
@click.option("--bind", required=True, help="address to listen on: tcp://HOST:PORT (port 0: a free one) or ipc://PATH")
@click.option("--run-dir", type=click.Path(path_type=Path), help="new folder for the results; default runs/TIME-MODEL")
@click.option(
    "--min-workers", type=click.IntRange(1, 4096), default=1, show_default=True, help="ready workers to begin with"
)
@click.option(
    "--lease-timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    show_default=True,
    help="seconds until a piece is given to another worker",
)
@click.option("--allow-mixed-numerics", is_flag=True, help="admit workers whose bits may differ")
@click.option("--insecure", is_flag=True, help="listen on an address that others can reach, without keys")
@click.option("--supervised", is_flag=True, hidden=True, help="started by `train`: address to stdout, end with stdin")
@job_options
def server(job: Path | None, bind: str, run_dir: Path | None, supervised: bool, **values: Any) -> None:
    """Serve one run to any number of workers, which may come before or after.

    \b
        lockstep server --job examples/lenet.toml --bind tcp://127.0.0.1:5555
        lockstep server --job examples/mlp.toml --bind ipc:///tmp/lockstep.sock --min-workers 2
    """
    admission = Admission(
        min_workers=values.pop("min_workers"),
        lease_timeout_s=values.pop("lease_timeout"),
        allows_mixed_numerics=values.pop("allow_mixed_numerics"),
    )
    is_insecure = values.pop("insecure")
    given = {key: value for key, value in values.items() if value is not None}
    resolved, launch = resolve(read_values(job) if job else {}, given, default_launch())
    check_launch(launch)
    folder = run_dir or new_run_dir(resolved.model_name())
    if supervised:
        hold()
    else:
        check_run_dir(folder)
    console = Console(highlight=False, stderr=supervised)
    port = serve(bind, insecure=is_insecure)
    if supervised:
        # Before the data is loaded, so that the workers start at the same time.
        click.echo(port.address)
    else:
        console.print(f"listening on {port.address}", soft_wrap=True)
    with display_for(console, SystemClock()) as display:
        if is_insecure:
            display.say("warning: --insecure: whoever reaches this address can take part in the run")
        result = serve_run(resolved, launch, admission, folder, port, display)
    if not supervised:
        show_summary(console, result, folder)


def serve_run(
    job: Job, launch: Launch, admission: Admission, folder: Path, port: ServerPort, display: Display
) -> RunResult:
    """Serve a run to its end; `RunError` where it fails, `KeyboardInterrupt` where it was interrupted."""
    clock = SystemClock()
    started = clock.now()
    try:
        opening = open_run(folder.name, job, load(job.data), admission)
        setting = Setting(servers=launch.servers, transport=port.address.partition(":")[0], started=started)
        recorder = Recorder(opening.facts, setting, opening.layout, make_run_dir(folder, job, launch))
    except BaseException:
        port.close()
        raise
    coordinator = Coordinator(opening.facts)
    run = Server(coordinator, opening.shard, recorder, port, clock, display.say)
    ended = run.run(watch=lambda: display.show(coordinator.status(clock.now())))
    if ended.failure == "interrupted":
        raise KeyboardInterrupt
    if ended.failure:
        raise RunError(ended.failure)
    assert recorder.result is not None
    return recorder.result

"""`lockstep doctor`: looks for the mistakes that make training fail, in a job or in this machine."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.checkup.connection import Examiner
from lockstep.checkup.consultation import examine_job
from lockstep.checkup.machine import examine_machine, machine_lines
from lockstep.cli.options.job import JOB_FIELDS, LAUNCH_FIELDS, GroupedCommand, job_options
from lockstep.cli.options.keys import KEY_OPTION
from lockstep.launch.endpoints import credential_of
from lockstep.launch.numerics import begin_with
from lockstep.reports.display import print_plainly
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch_config import default_launch


@click.command(cls=GroupedCommand, short_help="Look for what makes training fail.")
@click.argument("job_file", metavar="[JOB]", required=False, type=click.Path(path_type=Path))
@click.option("--machine", "is_machine", is_flag=True, help="examine this machine instead of a job")
@click.option("--connect", metavar="ADDRESS", help="examine the connection to the server at ADDRESS instead")
@KEY_OPTION
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@job_options((*JOB_FIELDS, *LAUNCH_FIELDS))
def doctor(
    job_file: Path | None, is_machine: bool, connect: str | None, key: Path | None, as_json: bool, **flags: Any
) -> int:
    """Look for the mistakes that make training fail: in the job file JOB, or in a job from the flags of train.

    It checks the gradients of each layer, the backward pass, initial weights, dead and saturated units, sizes of
    activations and gradients, the first loss, labels, the size of samples, the learning rate by a few steps, and the
    number of workers if it is given. Exit codes: 0 nothing found, 1 something found, 2 wrong usage or job.

    \b
      lockstep doctor job.toml
      lockstep doctor --model examples/my_model.py:build --lr 0.5
      lockstep doctor --machine              cores, BLAS, shared memory, ports
      lockstep doctor --connect tcp://192.168.1.7:5555 --key worker-1.key
    """
    given = {key: value for key, value in flags.items() if value is not None}
    console = Console(highlight=False)
    if (is_machine or connect is not None) and (given or job_file is not None or (is_machine and connect is not None)):
        asked = "--machine" if is_machine else "--connect"
        raise click.UsageError(f"{asked} examines no job: give one or the other", click.get_current_context())
    if connect is not None:
        connection = Examiner(connect, credential_of(key, None)).examine()
        lines, findings, figures = connection.lines(), connection.findings, msgspec.to_builtins(connection)
    elif is_machine:
        machine = examine_machine()
        lines, findings, figures = machine_lines(machine), machine.findings, msgspec.to_builtins(machine)
    else:
        values = read_values(job_file) if job_file else {}
        job, _ = resolve(values, given, default_launch())
        begin_with(job.numerics)
        examined = examine_job(job, {**values, **given}.get("workers"))
        lines, findings = examined.lines(), examined.findings
        figures = {"subject": examined.subject, "findings": msgspec.to_builtins(findings)}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    else:
        for line in lines:
            print_plainly(console, line)
    return 1 if findings else 0

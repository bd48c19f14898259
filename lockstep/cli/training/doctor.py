"""`lockstep doctor`: looks for the mistakes that make training fail, in a job or in this machine."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.checking.checkup.connection import Examiner
from lockstep.checking.checkup.consultation import examine_job
from lockstep.checking.checkup.machine import examine_machine, machine_lines
from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import DIRECT_OPTIONS, direct_options, with_packed_data
from lockstep.cli.options.run import KEY_OPTION
from lockstep.launch.endpoints import check_worker_key, credential_of
from lockstep.results.reports.display import print_plainly


@click.command(cls=JobCommand, short_help="Find out why a job does not learn.")
@takes_job("workers")
@click.option("--machine", "is_machine", is_flag=True, help="examine this machine instead of a job")
@click.option("--connect", metavar="ADDRESS", help="examine the connection to the server at ADDRESS instead")
@KEY_OPTION
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@DIRECT_OPTIONS
@takes_trust
def doctor(
    job: JobRequest,
    is_machine: bool,
    connect: str | None,
    key: Path | None,
    as_json: bool,
    **packing_flags: Any,
) -> int:
    """Find out why the job file JOB, or the job that the flags describe, does not learn.

    The doctor checks the labels, the samples, the initial weights, the gradients of each layer, dead and saturated
    units, the first loss, and the number of workers if it is given. If all of this is right, it tries the job for some
    hundred steps, which takes seconds: whether the loss falls, other learning rates, layers that do not change, and the
    test set. Models of PyTorch are tried as well. Exit codes: 0 no findings, 1 findings, 2 wrong usage or job.

    \b
      lockstep doctor job.toml
      lockstep doctor --model examples/my_model.py:build --lr 0.5
      lockstep doctor --data houses.csv --target price
      lockstep doctor --machine     # cores, BLAS, shared memory, ports
      lockstep doctor --connect tcp://192.168.1.7:5555 --key worker-1.key
    """
    console = Console(highlight=False)
    packing = direct_options(packing_flags)
    is_job = bool(job.given or job.file or packing.changed())
    if (is_machine or connect is not None) and (is_job or (is_machine and connect is not None)):
        asked = "--machine" if is_machine else "--connect"
        raise click.UsageError(f"{asked} does not examine a job: give one or the other", click.get_current_context())
    if connect is not None:
        if key is not None:
            check_worker_key(key)
        connection = Examiner(connect, credential_of(key, None)).examine()
        lines, findings, figures = connection.lines(), connection.findings, msgspec.to_builtins(connection)
    elif is_machine:
        machine, findings = examine_machine()
        lines, figures = machine_lines(machine, findings), msgspec.to_builtins({"facts": machine, "findings": findings})
    else:
        # On standard error: the report of packing is not a finding.
        packed, _ = with_packed_data(job, packing, Console(stderr=True, highlight=False)).resolve()
        examined = examine_job(packed, job.values().get("workers"))
        lines, findings = examined.lines(), examined.findings
        figures = {"subject": examined.subject, "findings": msgspec.to_builtins(findings)}
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(figures), indent=2).decode())
    else:
        print_plainly(console, *lines)
    return 1 if findings else 0

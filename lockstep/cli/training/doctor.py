"""`lockstep doctor`: looks for the mistakes that make training fail, in a job or in the connection to a server."""

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.checking.doctor import examine_job
from lockstep.checking.doctor_connection import examine_connection
from lockstep.cli.options.job import JobCommand, JobRequest, takes_job, takes_trust
from lockstep.cli.options.packing import DIRECT_OPTIONS, direct_options, with_packed_data
from lockstep.cli.options.run import KEY_OPTION
from lockstep.common.numerics.choice import kernels_here
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.launch.endpoints import check_worker_key, credential_of
from lockstep.results.display import print_plainly

#: The fields of the fingerprint that `--report` shows: versions, and the evidence of the numerics.
REPORTED = ("lockstep", "code", "python", "libc", "numpy", "blas", "contract", "target", "kernels", "canary")


@click.command(cls=JobCommand, short_help="Find out why a job does not learn.")
@takes_job()
@click.option("--connect", metavar="ADDRESS", help="examine the connection to the server at ADDRESS instead")
@KEY_OPTION
@click.option("--report", "is_report", is_flag=True, help="print the versions and numerics of this machine instead")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
@DIRECT_OPTIONS
@takes_trust
def doctor(
    job: JobRequest, connect: str | None, key: Path | None, is_report: bool, as_json: bool, **packing_flags: Any
) -> int:
    """Find out why the job file JOB, or the job that the flags describe, does not learn.

    It examines the data, the gradients, the outputs of layers and a few steps; each finding is one line with what to
    do. Exit codes: 0 no findings, 1 findings, 2 wrong usage or job.

    \b
      lockstep doctor job.toml
      lockstep doctor --data houses.csv --target price
      lockstep doctor --connect tcp://192.168.1.7:5555 --key worker-1.key
    """
    console, packing = Console(highlight=False), direct_options(packing_flags)
    if is_report:
        shown = msgspec.to_builtins(fingerprint())
        shown["target"] = shown["target"] or f"no kernels: {kernels_here().obstacle}"
        print_plainly(console, *(f"{name:<9} {shown[name] or '-'}" for name in REPORTED))
        return 0
    if connect is None:
        # On standard error: the report of packing is not a finding.
        packed, _ = with_packed_data(job, packing, Console(stderr=True, highlight=False)).resolve()
        report = examine_job(packed)
    elif job.given or job.file or packing.changed():
        raise click.UsageError("--connect does not examine a job: give one or the other", click.get_current_context())
    else:
        if key is not None:
            check_worker_key(key)
        report = examine_connection(connect, credential_of(key, None))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print_plainly(console, *report.lines())
    return 1 if report.findings else 0

"""`lockstep bench lone`: a process that trains alone, for the benches: what it reads and answers is their matter."""

import sys
from pathlib import Path

import click
import msgspec

from lockstep.bench.baseline import Answer
from lockstep.bench.step import StepBench, peak_rss_bytes
from lockstep.common.data.source import load
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.runtime.version import VERSION
from lockstep.runs.job_file import read_values, resolve


@click.command(hidden=True)
@click.argument("job_file", type=click.Path(path_type=Path))
def lone(job_file: Path) -> None:
    """Make as many steps of the job as each line of standard input says; answer with what each took."""
    job, _ = resolve(read_values(job_file), {})
    bench = StepBench(job, load(job.data), SystemClock())
    for line in sys.stdin:
        answer = Answer(VERSION, bench.times(int(line)), peak_rss_bytes())
        click.echo(msgspec.json.encode(answer))

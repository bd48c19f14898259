"""`lockstep share`: a run in one file, for a colleague."""

from pathlib import Path

import click

from lockstep.cli.options.run import RUN_ARGUMENT
from lockstep.common.runtime.notice import notice
from lockstep.ps.records.run_folder import read_receipt
from lockstep.runs.shared_run import share


@click.command("share", short_help="Write a run to one file, to send.")
@RUN_ARGUMENT
@click.argument("file", type=click.Path(path_type=Path))
def share_command(run: Path, file: Path) -> None:
    """Write the finished run in the folder RUN to FILE, a zip that other commands read as they read the folder.

    FILE has the weights, the job, the records, the model's own source files, and the conversion of the data: all that
    `predict`, `export`, `plot`, `ledger` and `watch` need. It has neither the data, unless the run kept examples, nor
    checkpoints and logs. Files have names in place of their paths, and machines have numbers. On other machines, source
    files run only after an agreement with --trust-model, those of a transform or another function too.

    \b
      lockstep share runs/20261124-231714-lenet lenet.zip
      lockstep predict lenet.zip seven.png
    """
    share(run, file)
    click.echo(f"wrote {file}, {file.stat().st_size:,} bytes")
    if read_receipt(run).model_files:
        click.echo(notice("it has Python code, which runs on other machines only once they agree with --trust-model"))

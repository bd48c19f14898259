"""`lockstep export`: a trained model in a format that others read, or a whole run in one file."""

from pathlib import Path
from typing import get_args

import click

from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import training_data_of
from lockstep.cli.options.run import CHECKPOINT_OPTION, RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.common.errors import UsageError
from lockstep.common.runtime.notice import notice
from lockstep.ps.records.run_folder import read_receipt
from lockstep.results.evaluation.export import Format, write_model
from lockstep.runs.shared_run import share
from lockstep.runs.trained_model import Moment, open_trained

FORMATS = get_args(Format)


@click.command(short_help="Export a model or a run: ONNX, npz, zip …")
@RUN_ARGUMENT
@click.argument("file", type=click.Path(path_type=Path))
@CHECKPOINT_OPTION
@click.option("--format", "form", type=click.Choice(FORMATS), help="format of FILE  [as its name ends]")
@TRAINING_DATA_OPTION
@takes_trust
def export(run: Path, file: Path, moment: Moment, form: Format | None, training_data: str | None) -> None:
    """Export the model of the run in the folder RUN, or the finished run itself, to FILE.

    \b
    safetensors  the weights under PyTorch's names, for load_state_dict
    npz          the weights for numpy.load
    onnx         the whole model, for onnxruntime (needs the extra export)
    zip          the run, which other commands read as they read the folder

    The model expects prepared samples: (x - mean) / std, with bytes divided by 255 first. The input of an ONNX file is
    `samples`, its output `logits`. The metadata of safetensors and ONNX files hold both numbers; if there are several
    inputs, `inputs` in it has those of each. If the model was trained on a table, the ONNX file takes the raw columns
    by their names, and returns predictions in the units of the table, or the names of classes.

    A zip has the weights, the job, the records, the model's own source files, and the conversion of the data: all that
    `predict`, `export`, `plot`, `ledger` and `watch` need. It has neither the data, unless the run kept examples, nor
    checkpoints and logs. Files have names in place of their paths, and machines have numbers. Source files run on other
    machines only after an agreement with --trust-model.

    \b
      lockstep export runs/20261124-231714-lenet lenet.onnx
      lockstep export runs/20261124-231714-lenet lenet.zip
      lockstep export runs/20261124-231714-lenet weights.st --format safetensors
    """
    ending = file.suffix.removeprefix(".")
    chosen = form or next((each for each in FORMATS if each == ending), None)
    if chosen is None:
        raise click.UsageError(
            f"{str(file)!r} does not end in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}: add --format",
            click.get_current_context(),
        )
    if chosen == "zip":
        if moment != "last":
            raise UsageError(f"--checkpoint {moment} with a zip, which has the run as it ended: remove it")
        share(run, file)
    else:
        write_model(open_trained(run, moment).with_data(training_data_of(run, training_data)), file, chosen)
    click.echo(f"wrote {file}, {file.stat().st_size:,} bytes")
    if chosen == "zip" and read_receipt(run).model_files:
        click.echo(notice("it has Python code, which runs on other machines only once they agree with --trust-model"))

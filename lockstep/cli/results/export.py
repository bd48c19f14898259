"""`lockstep export`: a trained model in a format that others read."""

from pathlib import Path
from typing import get_args

import click

from lockstep.cli.options.run import BEST_OPTION, CHECKPOINT_OPTION
from lockstep.evaluation.export.formats import Exporter, Format
from lockstep.runs.trained_model import Moment, open_trained

FORMATS = get_args(Format)


@click.command(short_help="Write a trained model for others.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@CHECKPOINT_OPTION
@BEST_OPTION
@click.option("--to", "to", type=click.Choice(FORMATS), help="the format  [as the file's name ends]")
def export(run: Path, file: Path, moment: Moment, to: Format | None) -> None:
    """Write the weights in the folder RUN to FILE.

    \b
    safetensors  arrays under PyTorch's names: load_state_dict takes them
    npz          the same for numpy.load
    onnx         the whole model, for onnxruntime and others (extra: export)

    The model takes prepared samples: (x - mean) / std, with bytes divided by 255. Both numbers are in
    the metadata of safetensors and onnx.

    \b
      lockstep export runs/20261124-231714-lenet lenet.onnx
      lockstep export runs/20261124-231714-lenet --to safetensors weights.st
    """
    ending = file.suffix.removeprefix(".")
    chosen = to or next((each for each in FORMATS if each == ending), None)
    if chosen is None:
        raise click.UsageError(
            f"{str(file)!r} ends in none of {', '.join(FORMATS)}: say which by --to", click.get_current_context()
        )
    Exporter(open_trained(run, moment), file).write(chosen)
    click.echo(f"wrote {file}, {file.stat().st_size:,} bytes")

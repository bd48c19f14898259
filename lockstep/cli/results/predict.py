"""`lockstep predict`: what a trained model takes pictures for."""

from pathlib import Path

import click
import msgspec
import numpy as np
from rich.console import Console

from common.autograd.primitives.primitive import Array
from common.errors import DataError
from lockstep.cli.options.run import BEST_OPTION, CHECKPOINT_OPTION
from lockstep.evaluation.predictions import Recognizer
from lockstep.launch.numerics import begin_with
from lockstep.reports.display import print_plainly
from lockstep.runs.optional_packages import demand
from lockstep.runs.trained_model import Moment, open_trained

#: Classes that are shown after the likeliest.
OTHERS = 2

#: Characters of a line, and of a picture's name in it.
WIDTH, MOST_NAME = 80, 36


@click.command(short_help="Classify pictures.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@CHECKPOINT_OPTION
@BEST_OPTION
@click.option("--no-center", is_flag=True, help="only bring pictures to the size of the samples, as they are")
@click.option("--json", "as_json", is_flag=True, help="print all probabilities as JSON, a line for each picture")
def predict(run: Path, pictures: tuple[Path, ...], moment: Moment, no_center: bool, as_json: bool) -> None:
    """Classify PICTURES with the model in the folder RUN, and print its probabilities.

    Pictures may be of any size and of any format that Pillow reads. For a model of images of 28 by 28, as MNIST's, a
    picture shows one digit, dark on light or light on dark, which is brought into MNIST's form: into a box of 20 by 20,
    and its centre of mass into the middle.

    \b
      lockstep predict runs/20261124-231714-lenet seven.png
      lockstep predict runs/20261124-231714-lenet scans/*.jpg --json
    """
    demand("pillow", "predict", "lockstep predict")
    # Here, as the extra may be missing if nobody predicts.
    from lockstep.evaluation.image_file import read_image

    trained = open_trained(run, moment)
    begin_with(trained.job.numerics)
    recognizer = Recognizer.of(trained, centres=not no_center)
    console = Console(highlight=False)
    for path in pictures:
        picture = read_image(path)
        try:
            probabilities = recognizer.probabilities(picture)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if as_json:
            found = {
                "picture": str(path),
                "class": int(probabilities.argmax()),
                "probabilities": probabilities.tolist(),
            }
            click.echo(msgspec.json.encode(found).decode())
        else:
            print_plainly(console, line(str(path), probabilities, min(MOST_NAME, max(map(len, map(str, pictures))))))


def line(name: str, probabilities: Array, width: int) -> str:
    """Return what a picture shows, and what else it may, on one line."""
    shown = name if len(name) <= width else f"…{name[1 - width :]}"
    order = np.argsort(-probabilities, kind="stable")
    others = ", ".join(f"{label} {probabilities[label]:.2%}" for label in order[1 : 1 + OTHERS].tolist())
    first = int(order[0])
    return f"{shown:<{width}}  {first}  {probabilities[first]:>7.2%}" + (f"   or {others}" if others else "")

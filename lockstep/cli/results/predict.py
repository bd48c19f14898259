"""`lockstep predict`: the classes or numbers that a trained model predicts of pictures, arrays, or rows of tables."""

import sys
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from lockstep.cli.options.job import takes_trust
from lockstep.cli.options.packing import READING_OPTIONS, training_data_of
from lockstep.cli.options.run import CHECKPOINT_OPTION, RUN_ARGUMENT, TRAINING_DATA_OPTION
from lockstep.common.data.columns import ColumnKind
from lockstep.common.data.folder import Conversion, Reading
from lockstep.common.errors import DataError
from lockstep.common.files.reading import near_file
from lockstep.common.numerics.choice import prefer_numerics
from lockstep.common.runtime.notice import notice
from lockstep.packing.files import CSV, pictures_below, table_files
from lockstep.results.display import print_plainly
from lockstep.results.evaluation.pictures import Recognizer
from lockstep.results.evaluation.predictor import ARRAYS, Predictor, by_class, line, problems_text, rows_in, write_rows
from lockstep.runs.own_command import demand
from lockstep.runs.trained_model import Moment, open_trained

#: Ends of the names of tables, which could be meant for a prediction.
TABLES = (".csv", ".tsv", ".parquet", ".arrow")

#: Characters of a line, and of a picture's name in it.
WIDTH, MOST_NAME = 80, 36


@click.command(short_help="Predict the class of pictures, or a table's rows.")
@RUN_ARGUMENT
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@CHECKPOINT_OPTION
@click.option("--no-center", is_flag=True, help="only resize pictures, without centring a digit")
@click.option("--json", "as_json", is_flag=True, help="print all probabilities as JSON, one line per picture or row")
@READING_OPTIONS
@TRAINING_DATA_OPTION
@takes_trust
def predict(
    run: Path,
    inputs: tuple[Path, ...],
    moment: Moment,
    no_center: bool,
    as_json: bool,
    training_data: str | None,
    **reading: Any,
) -> None:
    """Predict the class of each of INPUTS with the model of the run in the folder RUN, and print the probabilities.

    INPUTS are pictures, tables if the model was trained on one, or files of arrays.

    Pictures are JPEG, PNG, WebP, GIF, BMP, TIFF or PPM files of up to 25 million pixels. A folder stands for the
    pictures in it; its other files are counted and skipped. If the model takes gray images of 28 by 28 pixels, and its
    classes have no names, a picture should show one digit, dark on light or light on dark. It is scaled and centred.

    If the model was trained on a table, INPUTS are CSV or Parquet files with the same columns. The output is CSV,
    with one row per input row: the class and its probability, or the predicted numbers in the units of the training
    set. The row is empty if a value did not occur in training, or is missing and --missing has not filled it there; the
    error at the end names such rows.

    An .npy file has samples as the model was trained on, and an .npz file has them as `x`. The output is CSV, as of a
    table.

    With --json, each line has the "class" and its "probabilities", by the names of the classes, or by their numbers if
    they have no names.

    \b
      lockstep predict runs/20261124-231714-lenet seven.png
      lockstep predict runs/20261124-231714-lenet scans/*.jpg --json
      lockstep predict runs/20261127-101500-net new_houses.csv > prices.csv
      lockstep predict runs/20261127-101500-net samples.npy
    """
    trained = open_trained(run, moment).with_data(training_data_of(run, training_data))
    prefer_numerics(trained.job.numerics)
    predictor = Predictor(trained)
    if predictor.table is not None:
        predict_tables(predictor, predictor.table, inputs, predictor.table.reading.but(**reading), as_json=as_json)
        return
    if any(path.suffix.lower() in ARRAYS for path in inputs):
        predict_arrays(predictor, inputs, as_json=as_json)
        return
    demand("pillow", "predict", "lockstep predict")
    recognizer = Recognizer.of(predictor, centres=not no_center)
    pictures = files_of(inputs)
    width = min(MOST_NAME, max(map(len, map(str, pictures))))
    console = Console(highlight=False)
    for path in pictures:
        check_picture(path)
        probabilities = predictor.probabilities(recognizer.read(path))[0]
        if as_json:
            found = by_class(predictor.class_names, probabilities.tolist())
            click.echo(msgspec.json.encode({"picture": str(path), **found}).decode())
        else:
            print_plainly(console, line(str(path), probabilities, width, recognizer.class_names))


def check_picture(path: Path) -> None:
    """Raise `DataError` if a path does not exist, or has the name of another kind of data."""
    if path.suffix.lower() in TABLES:
        raise DataError(
            f"{path}: is a table and not a picture, and the run was not trained on a table: expected pictures, or an "
            ".npy or .npz file with samples as it was trained on"
        )
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder{near_file(path)}: expected a picture, or a folder of pictures"
        )


def files_of(inputs: Sequence[Path]) -> list[Path]:
    """Return pictures, with those in a folder and below it in place of the folder.

    Files there that are not pictures are counted on stderr. DataError for a folder without pictures.
    """
    found, skipped = list[Path](), 0
    for path in inputs:
        pictures, others = pictures_below(path) if path.is_dir() else ([path], 0)
        found += pictures
        skipped += others
    if skipped:
        one = "1 file in folders that is not a picture"
        click.echo(notice(f"skipped {one if skipped == 1 else f'{skipped:,} files that are not pictures'}"), err=True)
    return found


def predict_tables(
    predictor: Predictor, manifest: Conversion, tables: Sequence[Path], reading: Reading, *, as_json: bool
) -> None:
    """Print a line for each row of tables: CSV, or JSON with all probabilities.

    Raises DataError at the end with the rows of which nothing is predicted.
    """
    demand("pyarrow", "data", "lockstep predict")
    targets = {column.name: column.std for column in manifest.targets}
    dates = [column.name for column in manifest.targets if column.kind is ColumnKind.DATE]
    rows = chain.from_iterable(predictor.rows(manifest, table, reading) for table in tables)
    count, problems = write_rows(sys.stdout, rows, targets, predictor.class_names, dates, as_json=as_json)
    if problems:
        sys.stdout.flush()
        header = any(each.name.lower().endswith(CSV) for table in tables for each in table_files(table))
        counted = "; row 1 is the header, the first line of the file" if header else ""
        raise DataError(problems_text(problems, count) + counted)


def predict_arrays(predictor: Predictor, files: Sequence[Path], *, as_json: bool) -> None:
    """Print a line for each sample in files of arrays, as of tables."""
    rows = chain.from_iterable(predictor.array_rows(rows_in(path)) for path in files)
    first = list(islice(rows, 1))
    several = [f"y{place}" for place in range(len(first[0].values))] if first else []
    targets = ["class"] if first and first[0].name else several if len(several) > 1 else ["y"]
    names = predictor.class_names if targets == ["class"] else []
    # One scale may be that of all.
    scales = [column.std for column in predictor.trained.data.targets] or [1.0]
    write_rows(sys.stdout, chain(first, rows), dict(zip(targets, cycle(scales), strict=False)), names, as_json=as_json)

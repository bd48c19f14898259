"""`lockstep pack`: a dataset folder from files of other formats."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.cli.options.packing import PACK_OPTIONS, options_of, progress_of
from lockstep.packing.pack import pack, plan_lines
from lockstep.results.display import print_plainly


@click.command("pack", short_help="Turn tables, pictures or arrays into a dataset.")
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path), required=False)
@PACK_OPTIONS
@click.option("--dry-run", is_flag=True, help="show what each column of a table is taken for, and write nothing")
def pack_command(source: str, dest: Path | None, *, dry_run: bool, **given: Any) -> None:
    """Pack SOURCE into the new folder DEST. `--data DEST` then trains on it without loading it into memory.

    \b
    table.csv, table.parquet  or a folder of such files, with --target COLUMN
    pictures/                 one folder of pictures per class, or the same
                              below train/ and test/
    arrays.npz                x_train, y_train, x_test, y_test; or x and y
    arrays/                   x_train.npy, y_train.npy and so on
    samples.npy               with --labels labels.npy
    idx/                      four IDX files, as train-images-idx3-ubyte.gz

    SOURCE may be larger than the memory. DEST appears once it is complete. It holds .npy files, which numpy.load can
    open, and dataset.json, which describes them. Tables and pictures need the extra data.

    In a table, texts that repeat become codes in alphabetical order, and each column is scaled to mean 0 and deviation
    1 over the training set. If the target is text or has few different whole numbers, its values are classes. Other
    numbers make a regression. A value that does not fit its column is refused with its row, and with what to type.

    \b
      lockstep pack houses.csv --target price --dry-run
      lockstep pack houses.csv houses.data --target price
      lockstep pack pictures pictures.data --size 64x64
      lockstep train --data pictures.data --model model.py:build
    """
    if dest is None and not dry_run:
        raise click.MissingParameter(param_hint="DEST", param_type="argument")
    with progress_of(f"packing {source}") as watch:
        if dest is None or dry_run:
            lines = plan_lines(source, options_of(given), watch)
        else:
            lines = list(pack(source, dest, options_of(given), watch).lines())
    print_plainly(Console(highlight=False), *lines)

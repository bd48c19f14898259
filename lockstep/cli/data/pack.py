"""`lockstep pack`: from the files that people have to a dataset folder."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from lockstep.cli.data.progress import progress_of
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import lines, pack
from lockstep.reports.display import print_plainly


@click.command("pack", short_help="Turn files into a dataset that is read from disk.")
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="labels of the samples in an .npy file")
@click.option("--dtype", type=click.Choice(["uint8", "float32"]), help="how samples are stored  [as suits the source]")
@click.option(
    "--test-split",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    metavar="SHARE",
    help="share of the samples that becomes the test set, if the source has none  [0.2]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, metavar="INT", help="what draws that share  [0]")
def pack_command(source: str, dest: Path, **given: Any) -> None:
    """Pack SOURCE into the new folder DEST, which `--data DEST` trains on without holding it in memory.

    \b
    arrays.npz     x_train, y_train, x_test, y_test; or x and y
    folder         x_train.npy, y_train.npy, x_test.npy, y_test.npy
    samples.npy    with --labels labels.npy
    folder         MNIST's four IDX files, gzipped or not; 'mnist' itself

    Memory stays the same however large SOURCE is. DEST appears when it is whole: .npy files that numpy.load opens, and
    dataset.json, which describes them.

    \b
      lockstep pack arrays.npz arrays.data
      lockstep train --data arrays.data --model model.py:build
    """
    with progress_of(f"packing {source}") as watch:
        packed = pack(source, dest, PackOptions(**given), watch)
    console = Console(highlight=False)
    for line in lines(packed):
        print_plainly(console, line)

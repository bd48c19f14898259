"""`lockstep check-data`: every byte of a dataset folder."""

from pathlib import Path

import click
from rich.console import Console

from lockstep.cli.data.progress import progress_of
from lockstep.common.data.folder import check_folder
from lockstep.packing.options import ReadProgress
from lockstep.results.reports.display import print_plainly


@click.command("check-data", short_help="Check every byte of a packed dataset.")
@click.argument("folder", type=click.Path(path_type=Path))
def check_data(folder: Path) -> None:
    """Compare every block of the dataset in FOLDER with its digest, and report the first that has changed.

    When a run begins, it checks only a few blocks, however large the dataset is. `lockstep verify` checks the blocks
    that it reads.

    \b
      lockstep check-data pictures.data
    """
    console = Console(highlight=False)
    with progress_of(f"checking {folder}") as watch:
        progress = ReadProgress(watch, sum(path.stat().st_size for path in folder.glob("*.npy")))
        manifest = check_folder(folder, progress.advance)
    checked = f"all {progress.done:,} bytes are as they were packed"
    print_plainly(console, f"{folder}: {checked}; dataset sha256 {manifest.digest()}")

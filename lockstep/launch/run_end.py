"""What a command shows when its run ends: the summary and a picture, or where what was reached is kept."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from common.errors import DivergedError, RunError
from common.runtime.environment import child_environment
from lockstep.reports.display import print_plainly
from lockstep.reports.summary import show_summary
from lockstep.runs.optional_packages import is_installed
from ps.checkpoint.folder import CheckpointFolder
from ps.records.run_folder import CHECKPOINTS, RESULT, WEIGHTS, RunResult

#: The picture of how a run went, in its folder.
PICTURE = "learning.png"

#: Seconds within which the picture is drawn: usually one, but matplotlib lists the system's fonts the first time.
PICTURE_S = 30.0


def show_end(
    console: Console, result: RunResult, folder: Path, cores: int | None = None, *, has_picture: bool = True
) -> None:
    """Show how a run ended, and leave its picture in its folder if matplotlib is installed."""
    show_summary(console, result, folder, cores)
    if has_picture and draw_picture(folder):
        print_plainly(console, f"picture         {folder / PICTURE}")


def draw_picture(folder: Path) -> bool:
    """Draw the course of a run in a process of its own, which can fail without any harm; return whether it is there."""
    if not is_installed("matplotlib"):
        return False
    command = [sys.executable, "-P", "-m", "lockstep", "plot", str(folder), "--learning", "--to", str(folder)]
    with suppress(OSError, subprocess.SubprocessError):
        # In a session of its own, so that Ctrl-C in a terminal ends it by way of us.
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            start_new_session=True,
            timeout=PICTURE_S,
            check=False,
        )
    return (folder / PICTURE).exists()


@contextmanager
def kept_on_failure(console: Console, folder: Path) -> Iterator[None]:
    """If a run fails or is interrupted, print where its weights are and how it is resumed."""
    try:
        yield
    except (RunError, KeyboardInterrupt) as error:
        # Ended well a moment before: there is nothing to resume.
        if (folder / RESULT).exists():
            print_plainly(console, f"the run had come to its end: its result is kept in {folder}")
            raise
        if (folder / WEIGHTS).exists():
            print_plainly(console, f"the last good weights are kept in {folder}")
        steps = CheckpointFolder(folder / CHECKPOINTS, lambda text: None).steps()
        # A run whose loss is not finite would diverge again.
        if steps and not isinstance(error, DivergedError):
            print_plainly(console, f"resume after step {steps[-1]} by: lockstep train --resume {folder}")
        raise

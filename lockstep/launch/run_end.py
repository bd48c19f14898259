"""Shows and keeps the end of a run: the summary, a picture, the logs, or the command that resumes it."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from lockstep.common.errors import DivergedError, RunError
from lockstep.common.runtime.clock import wall_time
from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.notice import warning
from lockstep.launch.supervision.child import LOG
from lockstep.ps.checkpoint.checkpoint import CheckpointFolder
from lockstep.ps.records.run_folder import CHECKPOINTS, RESULT, WEIGHTS, RunResult
from lockstep.results.display import print_plainly
from lockstep.results.summary import show_advice, show_summary
from lockstep.runs.own_command import is_installed, own_command
from lockstep.runs.run_dir import has_begun

#: The picture of how a run went, in its folder.
PICTURE = "learning.png"

#: Seconds within which the picture is drawn: usually one, but matplotlib lists the system's fonts the first time.
PICTURE_S = 30.0


def keep_logs(folder: Path, run: Path) -> str:
    """Move the logs in a folder into that of a run, if it has begun, where those of its earlier parts may be.

    Return a warning if that fails, as on a full disk: the reason of the end matters more than the log.
    """
    if not has_begun(run):
        return ""
    for log in sorted(folder.glob(f"*{LOG}")):
        target = run / log.name
        try:
            _append_log(log, target)
        except OSError as error:
            return warning(f"cannot write {str(target)!r}: {error.strerror}: the logs of this run are not kept")
        log.unlink()
    return ""


def _append_log(log: Path, target: Path) -> None:
    has_earlier = target.exists() and target.stat().st_size > 0
    with target.open("ab") as file, log.open("rb") as words:
        if has_earlier:
            file.write(f"--- the run was resumed, until {wall_time()} ---\n".encode())
        shutil.copyfileobj(words, file)


def show_end(
    console: Console, result: RunResult, folder: Path, cores: int | None = None, *, has_picture: bool = True
) -> None:
    """Show how a run ended and what to try next, and leave its picture in its folder if matplotlib is installed.

    Its workers shared `cores` cores; None if they ran on several machines.
    """
    show_summary(console, result, folder)
    if has_picture and draw_picture(folder):
        print_plainly(console, f"picture         {folder / PICTURE}")
    show_advice(console, result, cores)
    print_plainly(console, *next_steps(result, folder))


def next_steps(result: RunResult, folder: Path) -> list[str]:
    """Return what to try next with a run: commands that can be pasted where it was trained."""
    kind = "the test set"
    if result.test_accuracy is not None or result.test_r2 is not None:
        kind = "each class" if result.test_r2 is None else "each target"
    return [
        "",
        "what to try next:",
        f"{kind:<15} {own_command('evaluate', folder)}",
        f"{'in a browser':<15} {own_command('watch', folder)}",
        f"{'check the bits':<15} {own_command('verify', folder)}",
    ]


def draw_picture(folder: Path) -> bool:
    """Draw the curves of a run in a process of its own, which can fail without any harm; return whether it is there."""
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
    """If a run fails or is interrupted, print where its weights are and how to resume it."""
    try:
        yield
    except (RunError, KeyboardInterrupt) as error:
        # Ended well a moment before: there is nothing to resume.
        if (folder / RESULT).exists():
            print_plainly(console, f"the run had already finished: its result is in {folder}")
            raise
        if (folder / WEIGHTS).exists():
            print_plainly(console, f"the last good weights are kept in {folder}")
        checkpoints = CheckpointFolder(folder / CHECKPOINTS)
        # A run whose loss is not finite would diverge again.
        if (steps := checkpoints.steps()) and not isinstance(error, DivergedError):
            resumes = f"resume after step {steps[-1]} with: {own_command('train', '--resume', folder)}"
            # Its folder may have been deleted meanwhile, without the checkpoints that came later.
            kept = f"the weights after step {steps[-1]} are kept in {checkpoints.file_of(steps[-1])}"
            print_plainly(console, resumes if has_begun(folder) else kept)
        raise

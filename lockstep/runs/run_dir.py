"""The folder that a run writes to: claimed by one run alone, and gone again where the run could not begin."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import UsageError
from common.job.job import Job
from common.runtime.clock import wall_time
from lockstep.runs.job_file import to_toml
from lockstep.runs.launch import Launch
from ps.records.run_folder import RunFolder

#: Where runs go that were given no folder.
RUNS = Path("runs")

#: The resolved job in a run's folder; empty while the folder is only claimed.
JOB = "job.toml"


@contextmanager
def claimed_run_dir(wanted: Path | None, model: str) -> Iterator[Path]:
    """Claim the folder `wanted`, or a new one below `runs` named by the time and the model.

    Two runs that begin in the same moment never get the same one. Where nothing was written until the end, the claim
    and the folders that were made for it are taken away. `UsageError` where the folder holds something, belongs to
    another run, or cannot be made.
    """
    folder = check_run_dir(wanted) if wanted is not None else None
    candidates = [folder] if folder is not None else _new_run_dirs(model)
    made = [path for path in candidates[0].parents if not path.exists()]
    was_there = folder is not None and folder.exists()
    folder = _claim(candidates, is_wanted=wanted is not None)
    try:
        yield folder
    finally:
        unclaim(folder, made if was_there else (folder, *made))


def check_run_dir(folder: Path) -> Path:
    """Return the folder; `UsageError` where it holds something already, or could not be made or written to."""
    named = f"run folder {str(folder)!r}"
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{named}: {str(above)!r} is no folder: expected a new or an empty one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{named}: {str(above)!r} cannot be written to: expected a folder of your own")
    if above == folder and any(folder.iterdir()):
        raise UsageError(f"{named} is not empty: expected a new or an empty one")
    return folder


def has_begun(folder: Path) -> bool:
    """Tell whether a run has written its job into the folder, and not only claimed it."""
    claim = folder / JOB
    return claim.is_file() and claim.stat().st_size > 0


def make_run_dir(folder: Path, job: Job, launch: Launch, say: Callable[[str], None] = lambda text: None) -> RunFolder:
    """Write the resolved job into the folder of a run that is known to be good."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB).write_text(to_toml(job, launch), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
    return RunFolder(folder, say)


def _new_run_dirs(model: str) -> list[Path]:
    stem = f"{wall_time()}-{Path(model.partition(':')[0]).stem}"
    return [RUNS / stem, *(RUNS / f"{stem}-{number}" for number in range(2, 1000))]


def _claim(candidates: list[Path], *, is_wanted: bool) -> Path:
    """Return the first folder that nobody else has claimed: of those who make its job file, one succeeds."""
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=is_wanted)
            (folder / JOB).touch(exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
        return folder
    raise UsageError(f"run folder {str(candidates[0])!r} belongs to another run: expected a new or an empty one")


def unclaim(folder: Path, made: Sequence[Path]) -> None:
    """Take away a claim that came to nothing, with the folders, made for it, that are empty then."""
    if has_begun(folder):
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        (folder / JOB).unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()

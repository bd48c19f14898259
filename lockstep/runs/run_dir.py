"""The folder that a run writes to: claimed by one run alone, resumed from, and gone if the run could not begin."""

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lockstep.common.errors import JobError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.job.job import Job
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import wall_time
from lockstep.ps.records.run_folder import RESULT, WEIGHTS, RunFolder, RunResult, read_result
from lockstep.runs.job_file import read_values, resolve, to_toml
from lockstep.runs.recorded_model import demand_trust, recorded_source, resumed_source, trust_source

#: Where runs go that were given no folder.
RUNS = Path("runs")

#: The resolved job in a run's folder. While a folder is only claimed, the file is empty, and the process that begins a
#: run there has it locked: without that lock, the claim is of a process that was killed, and counts for nothing.
JOB = "job.toml"


@contextmanager
def claimed_run_dir(wanted: Path | None, model: str) -> Iterator[Path]:
    """Claim the folder `wanted`, or a new one below `runs` named by the time and the model.

    Two runs that begin in the same moment never get the same one. If nothing was written until the end, the claim
    and the folders that were made for it are removed. `UsageError` if the folder holds something, belongs to
    another run, or cannot be made.
    """
    folder = check_run_dir(wanted) if wanted is not None else None
    candidates = [folder] if folder is not None else _new_run_dirs(model)
    made = [path for path in candidates[0].parents if not path.exists()]
    was_there = folder is not None and folder.exists()
    folder, claim = _claim(candidates, is_wanted=wanted is not None)
    try:
        yield folder
    finally:
        unclaim(folder, made if was_there else (folder, *made))
        os.close(claim)


def check_run_dir(folder: Path) -> Path:
    """Return the folder; `UsageError` if it holds something already, or could not be made or written to."""
    named = f"run folder {str(folder)!r}"
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir():
        raise UsageError(f"{named}: {str(above)!r} is not a folder: expected a new or empty folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{named}: {str(above)!r} cannot be written to: expected a folder that you may write to")
    if above == folder and any(folder.iterdir()) and not _is_abandoned(folder):
        raise UsageError(f"{named} is not empty: expected a new or empty folder")
    return folder


def has_begun(folder: Path) -> bool:
    """Return whether a run has written its job into the folder, and not only claimed it."""
    claim = folder / JOB
    return claim.is_file() and claim.stat().st_size > 0


def recorded(folder: Path) -> tuple[Job, RunOptions]:
    """Return the job of the run in a folder, and how it was first carried out."""
    return resolve(read_values(folder / JOB), {})


def recorded_job(folder: Path) -> Job:
    """Return the job of the run in a folder."""
    return recorded(folder)[0]


def make_run_dir(
    folder: Path, job: Job, options: RunOptions, say: Callable[[str], None] = lambda text: None
) -> RunFolder:
    """Write the resolved job into the folder of a run that is known to be good."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / JOB, [to_toml(job, options).encode()])
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
    return RunFolder(folder, say)


def _new_run_dirs(model: str) -> list[Path]:
    stem = f"{wall_time()}-{Path(model.partition(':')[0]).stem}"
    return [RUNS / stem, *(RUNS / f"{stem}-{number}" for number in range(2, 1000))]


def _claim(candidates: list[Path], *, is_wanted: bool) -> tuple[Path, int]:
    """Return the first folder that no other run has claimed, and the descriptor of its job file, which has the lock."""
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=is_wanted)
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
        claim = _lock(folder)
        if claim is not None:
            return folder, claim
    raise UsageError(f"run folder {str(candidates[0])!r} belongs to another run: expected a new or empty folder")


def _lock(folder: Path) -> int | None:
    """Lock the empty job file of a folder, and return its descriptor; None if a run has begun there, or begins now."""
    path = folder / JOB
    try:
        claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been replaced, by that of a run which has begun, or removed, before it was locked.
        if os.fstat(claim).st_size == 0 and _is_at(path, claim):
            return claim
    except OSError:
        pass  # another process has the lock
    os.close(claim)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether a descriptor is of the file that has a name now."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))


def _is_abandoned(folder: Path) -> bool:
    """Tell whether a folder has nothing but what a process left that was killed before it had begun a run there."""
    if has_begun(folder) or not (folder / JOB).is_file():
        return False
    claim = _lock(folder)
    if claim is not None:
        os.close(claim)
    return claim is not None


def unclaim(folder: Path, made: Sequence[Path]) -> None:
    """Remove a claim that was not used, with the folders made for it that are then empty."""
    if has_begun(folder):
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        (folder / JOB).unlink()
    for path in made:
        with suppress(OSError):
            path.rmdir()


def resumed_job(folder: Path, given: Mapping[str, Any]) -> tuple[Job, RunOptions]:
    """Return the job of the run in `folder`, and its options with the flags given overriding them.

    `JobError` if there is no run, or a flag asks for another job than the run's: both values are named. `ModelError` if
    its model is not the one of its receipt, or is code that nobody here has agreed to run.
    """
    if not has_begun(folder):
        raise JobError(f"{str(folder)!r} holds no run to resume: expected a run folder, with its {JOB}")
    # A resumed run waits for other workers than it began with.
    values = {key: value for key, value in read_values(folder / JOB).items() if key != "min_workers"}
    job, _ = resolve(values, {})
    wanted, options = resolve(values, given)
    if differences := job.changed_in(wanted):
        begins = ", from its weights with --initial " + shlex.quote(str(folder / WEIGHTS))
        raise JobError(
            f"{str(folder)!r} is a run of another job: {differences}: remove these flags, or begin a new run"
            f"{begins if (folder / WEIGHTS).is_file() else ''}"
        )
    demand_trust(folder, resumed_source(folder, job))
    return job, options


def trust(folder: Path) -> None:
    """Agree to run the model of the run in a folder from now on; `ModelError` if it is not the one of its receipt."""
    if has_begun(folder):
        trust_source(recorded_source(folder, recorded_job(folder)))


def check_resume_flags(*, job: Path | None, run_dir: Path | None) -> None:
    """Raise `UsageError` if --resume comes with what it settles itself."""
    for flag, value in (("--job", job), ("--run-dir", run_dir)):
        if value is not None:
            raise UsageError(
                f"{flag} {str(value)!r} with --resume: a run is resumed in its own folder and with its own job: remove "
                "it"
            )


def finished(folder: Path) -> RunResult | None:
    """Return the result of a run that is finished already, None if it is not."""
    return read_result(folder) if (folder / RESULT).exists() else None

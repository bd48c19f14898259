"""`--resume`: from a run's folder and the flags given to the job and launch that go on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import JobError, UsageError
from common.job.job import Job
from lockstep.runs.job_file import read_values, resolve
from lockstep.runs.launch import Launch, default_launch
from lockstep.runs.run_dir import JOB, has_begun
from ps.records.run_folder import RESULT, RunResult, read_result


def resumed_job(folder: Path, given: Mapping[str, Any]) -> tuple[Job, Launch]:
    """Return the job of the run in `folder`, and its launch with the flags given laid over it.

    `JobError` where there is no run, or a flag asks for another job than the run's: both values are named.
    """
    if not has_begun(folder):
        raise JobError(f"{str(folder)!r} holds no run to go on with: expected a run folder, with its {JOB}")
    # Who goes on waits for other workers than the run began with.
    values = {key: value for key, value in read_values(folder / JOB).items() if key != "min_workers"}
    job, _ = resolve(values, {}, default_launch())
    wanted, launch = resolve(values, given, default_launch())
    odd = [name for name in job.__struct_fields__ if getattr(job, name) != getattr(wanted, name)]
    if odd:
        told = "; ".join(f"{name} = {getattr(job, name)!r} in the run, {getattr(wanted, name)!r} here" for name in odd)
        raise JobError(f"{str(folder)!r} is a run of another job: {told}: leave such flags out, or begin a new run")
    return job, launch


def check_alone(*, job: Path | None, run_dir: Path | None) -> None:
    """Raise `UsageError` where --resume comes with what it settles itself."""
    for flag, value in (("--job", job), ("--run-dir", run_dir)):
        if value is not None:
            raise UsageError(
                f"{flag} {str(value)!r} with --resume: a run goes on in its own folder and with its own job: leave "
                "it out"
            )


def finished(folder: Path) -> RunResult | None:
    """Return the result of a run that is finished already, None where it is not."""
    return read_result(folder) if (folder / RESULT).exists() else None

"""Functions of the user's own that a job names, next to its model: what each is for. Runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.common.job.job import Job, names_code
from lockstep.common.job.objective import OwnLoss

#: The values of a job that may name a function.
NAMING = ("loss",)


def functions_of(job: Job) -> Mapping[str, str]:
    """Return the functions that a job names, `FILE.py:FUNCTION`, by the value that names each."""
    return {value: name for value in NAMING if names_code(name := getattr(job, value))}


@dataclass(frozen=True)
class OwnCode:
    """The functions, as they are called; None where the job names none."""

    loss: OwnLoss | None = None


#: Of a job that names none.
NO_CODE = OwnCode()

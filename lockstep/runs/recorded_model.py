"""What a run's folder has of its model: the weights of a file that it began with, and a copy of the model's own files.

The model's files run only if they are those of the receipt. They are code, and a folder may come from anybody. So they
run only if this user has trained a model of these files on this machine, or has agreed to them once. Models of the
library need neither.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path

import msgspec

from lockstep.common.errors import ModelError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import read_regular
from lockstep.common.files.safetensors import write
from lockstep.common.job.job import Job
from lockstep.common.model.initial import INITIAL
from lockstep.common.model.source import ModelSource, WantedSource, names_own_files, read_job_source
from lockstep.common.protocol.messages import NAME_LIMIT
from lockstep.common.runtime.environment import state_home
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, read_receipt
from lockstep.ps.setup import RunSetup

#: The copy of the model's files in a run's folder.
MODEL = "model"

#: What a folder has that is a run's; a job file alone may be one that a person wrote.
RECORDS = (LEDGER, RECEIPT)

#: Bytes of the list of trusted models: a line takes a hundred.
MOST_BYTES = 2**24

#: What is trusted by this process, in case the list cannot be written.
_trusted_here: set[str] = set()


def keep_files(folder: Path, source: ModelSource) -> None:
    """Copy the files of a run's model into its folder. Raises `UsageError` if that cannot be written to."""
    try:
        for place, text in source.texts().items():
            path = folder / MODEL / place
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, [text])
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error


def keep_initial(folder: Path, setup: RunSetup) -> None:
    """Copy the weights that a run begins with into its folder, if they come from a file. Raises as `keep_files`."""
    job, path = setup.info.job, folder / INITIAL
    if job.initial is None or os.path.abspath(job.initial) == os.path.abspath(path):
        return
    try:
        write(path, setup.layout.read(setup.shard.weights), {"job": job.digest()})
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error


def told_folder(folder: Path) -> str:
    """Return where workers on this machine find that copy, empty if a welcome cannot hold it."""
    path = os.path.abspath(folder / MODEL)
    return path if path.isprintable() and len(path) <= NAME_LIMIT else ""


def recorded_source(folder: Path, job: Job) -> ModelSource:
    """Return what the model of the run in a folder is built from. Runs nothing.

    It is what the job names if that is still the same, and the run's own copy if not. `ModelError` if neither has the
    digest of the receipt.
    """
    if not names_own_files(job):
        return read_job_source(job)
    receipt = read_receipt(folder)
    wanted = WantedSource(
        digest=receipt.model_source_sha256,
        files=receipt.model_files,
        copy=folder / MODEL,
        owner=f"that of the run in {str(folder)!r}",
        advice=f"expected the files that it was trained with, there or in {str(folder / MODEL)!r}",
    )
    return wanted.read(job)


def resumed_source(folder: Path, job: Job) -> ModelSource:
    """Return the same for a run that is resumed; one that was killed before it had a receipt begins with its files."""
    return recorded_source(folder, job) if (folder / RECEIPT).exists() else read_job_source(job)


def trusted_source(folder: Path, job: Job) -> ModelSource:
    """Return the source that is recorded in a folder; `ModelError` also if nobody here has agreed to run it."""
    source = recorded_source(folder, job)
    demand_trust(folder, source)
    return source


#: Files that somebody is asked to read, by name.
MOST_FILES = 4


def demand_trust(folder: Path, source: ModelSource) -> None:
    """Raise `ModelError` if the source of the run in a folder is code that nobody here has agreed to run."""
    if source.entries() and not _is_trusted(source):
        files = dict.fromkeys(str(each.root / place) for each in source.entries() for place in each.texts)
        named, more = list(map(repr, files))[:MOST_FILES], len(files) - MOST_FILES
        where = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        raise ModelError(
            f"the model of the run in {str(folder)!r} is Python code that you have not trained on this machine: read "
            f"{where}, and if you trust it run `lockstep evaluate {shlex.quote(str(folder))} --trust-model` once"
        )


def job_of_file(path: Path, job: Job) -> Job:
    """Return the job of a job file; if that is of a run's folder, with the model that was trained there.

    `ModelError` as of `trusted_source`. Other job files name what their writer wants to run.
    """
    folder = path.parent
    if not names_own_files(job) or not any((folder / name).exists() for name in RECORDS):
        return job
    source = trusted_source(folder, job)
    named = {**({} if source.files is None else {"model": source.files}), **source.functions}
    copies = {value: str(files) for value, files in named.items() if files.root.is_relative_to(folder / MODEL)}
    return msgspec.structs.replace(job, **copies)


def trust_own(job: Job) -> None:
    """Agree to run the model that a job names, since this user trains it. It may be on other machines only."""
    with suppress(ModelError):
        trust_source(read_job_source(job))


def trust_source(source: ModelSource) -> None:
    """Add a model's files to the list of those that this user trusts on this machine; if it cannot be written, to
    those of this process.
    """
    if not source.entries() or _is_trusted(source):
        return
    _trusted_here.add(_line(source))
    path = trusted_list()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(path, "a", encoding="utf-8", opener=_private) as file:
            file.write(f"{_line(source)}\n")


def trusted_list() -> Path:
    """Return the file that lists the models that this user trusts: a digest, a file and its function per line."""
    return Path(state_home()) / "lockstep" / "trusted-models"


def _is_trusted(source: ModelSource) -> bool:
    line = _line(source)
    if line in _trusted_here:
        return True
    with suppress(OSError):
        return line in read_regular(trusted_list(), MOST_BYTES).decode(errors="replace").splitlines()
    return False


def _line(source: ModelSource) -> str:
    names = ", ".join(f"{files.main}:{files.function}" for files in source.entries())
    return f"{source.digest}  {names}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

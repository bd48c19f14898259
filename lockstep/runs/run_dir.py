"""The folder that a run writes to: claimed by one run alone, resumed from, and gone if the run could not begin.

It has the weights of a file that the run began with, and a copy of the model's own files. These files run only if they
are those of the receipt. They are code, and a folder may come from any machine. So they run only if this user has
trained a model of these files on this machine, or has agreed to them once. Models of the library need neither."""

import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lockstep.common.data.records import WEIGHT, fields_of
from lockstep.common.data.source import load
from lockstep.common.errors import DataError, JobError, ModelError, UsageError
from lockstep.common.files.atomic import write_atomically
from lockstep.common.files.reading import read_regular
from lockstep.common.files.safetensors import write
from lockstep.common.job.job import Job
from lockstep.common.model.initial import INITIAL
from lockstep.common.model.source import ModelSource, WantedSource, code_of, read_job_source
from lockstep.common.protocol.messages import NAME_LIMIT
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.runtime.clock import wall_time
from lockstep.common.runtime.environment import state_home
from lockstep.common.runtime.notice import notice
from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.run_folder import (
    AVERAGE_WEIGHTS,
    CHECKPOINTS,
    CONVICTIONS,
    EPOCH_WEIGHTS,
    JOB,
    LEDGER,
    MODEL,
    RECEIPT,
    RESULT,
    WEIGHTS,
    LineFile,
    RunFolder,
    RunResult,
    read_receipt,
    read_result,
)
from lockstep.ps.setup import RunSetup
from lockstep.runs.job_file import read_values, resolve, to_toml

#: The folder of runs that were given no folder.
RUNS = Path("runs")

#: Data in a run's folder that `fit` was given in memory: of arrays, and the folder of a packed table.
DATA, DATA_FOLDER = "data.npz", "data"

#: All that `fit` writes into a run's folder before the run begins.
OF_FIT = (INITIAL, DATA, DATA_FOLDER, MODEL)


@contextmanager
def claimed_run_dir(wanted: Path | None, model: str) -> Iterator[Path]:
    """Claim the folder `wanted`, or a new one below `runs` named by the time and the model.

    Two runs that begin in the same moment never get the same one. If no run has begun there until the end, the claim
    is removed, with what `fit` has written there for it and the folders that were made for it. `UsageError` if the
    folder holds something, belongs to another run, or cannot be made.
    """
    folder = check_run_dir(wanted) if wanted is not None else None
    candidates = [folder] if folder is not None else _new_run_dirs(model)
    made = [path for path in candidates[0].parents if not path.exists()]
    was_there = folder is not None and folder.exists()
    # Otherwise, it has a claim of a process that was killed, and what else there is may be a person's.
    was_empty = folder is None or not was_there or not any(folder.iterdir())
    folder, claim = _claim(candidates, is_wanted=wanted is not None)
    try:
        yield folder
    finally:
        for path in (folder / name for name in OF_FIT if was_empty and not has_begun(folder)):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
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
    if above == folder and has_parts(folder):
        aside = shlex.join(["mv", str(folder), f"{folder}-parts"])
        raise UsageError(
            f"{named} has parts of a run without its {JOB}, as if it was deleted while a process wrote there: expected "
            f"a new or empty folder; move the parts away: {aside}"
        )
    if above == folder and any(folder.iterdir()) and not _is_abandoned(folder):
        raise UsageError(f"{named} is not empty: expected a new or empty folder")
    return folder


def has_begun(folder: Path) -> bool:
    """Return whether a run has written its job into the folder, and not only claimed it."""
    claim = folder / JOB
    return claim.is_file() and claim.stat().st_size > 0


def has_parts(folder: Path) -> bool:
    """Tell whether a folder has nothing but files of a run without its job: they can be neither resumed nor shown.

    A folder is deleted file by file. A process that still writes there may leave a part of it.
    """
    names = [path.name for path in folder.glob("*")]
    return bool(names) and JOB not in names and all(map(_is_part, names))


def _is_part(name: str) -> bool:
    """Tell whether a run has an entry of this name in its folder, perhaps incomplete."""
    return name in (*RECORDS, *KEPT, EPOCH_WEIGHTS) or name.endswith((".log", ".partial"))


def keep_parts(folder: Path, say: Callable[[str], None]) -> None:
    """Rename a folder with parts of a run, for a command that is run again and again; raises as `set_aside`."""
    if has_parts(folder):
        say(notice(f"{str(folder)!r} has parts of a run without its {JOB}: they are kept in {set_aside(folder)}"))


def set_aside(folder: Path) -> Path:
    """Rename the folder of a run that was deleted in part; return it.

    `UsageError` if that cannot be done, as with the root of a volume.
    """
    stem = f"{folder.name}-parts"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    target = next(path for name in names if not (path := folder.with_name(name)).exists())
    try:
        folder.rename(target)
    except OSError as error:
        raise UsageError(
            f"cannot rename the run folder {str(folder)!r} ({error.strerror}), to keep its files: expected a folder "
            "within one that you may write to, as --run-dir VOLUME/run"
        ) from error
    return target


def demand_unused(folder: Path) -> None:
    """Raise `UsageError` if a process writes to the run in a folder."""
    if (folder / LEDGER).is_file():
        ledger = LineFile(folder / LEDGER)
        ledger.open()
        ledger.close()


def recorded(folder: Path) -> tuple[Job, RunOptions]:
    """Return the job of the run in a folder, and how it was first carried out."""
    return resolve(_recorded_values(folder), {})


def _recorded_values(folder: Path) -> dict[str, Any]:
    """Return the values of the job of a run; data that `fit` kept in its folder is where that is now."""
    values = read_values(folder / JOB)
    data = Path(str(values.get("data", "")))
    if data.name in (DATA, DATA_FOLDER) and not data.exists() and (folder / data.name).exists():
        values["data"] = str((folder / data.name).resolve())
    return values


def recorded_job(folder: Path) -> Job:
    """Return the job of the run in a folder."""
    return recorded(folder)[0]


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Raise `UsageError` if the folder of a run cannot be written to."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write to the run folder {str(folder)!r}: {error.strerror}") from error


def make_run_dir(
    folder: Path, job: Job, options: RunOptions, say: Callable[[str], None] = lambda text: None
) -> RunFolder:
    """Write the resolved job into the folder of a run that is known to be good."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / JOB, [to_toml(job, options).encode()])
    return RunFolder(folder, say)


def _new_run_dirs(model: str) -> list[Path]:
    stem = f"{wall_time()}-{Path(model.partition(':')[0]).stem}"
    return [RUNS / stem, *(RUNS / f"{stem}-{number}" for number in range(2, 1000))]


def _claim(candidates: list[Path], *, is_wanted: bool) -> tuple[Path, int]:
    """Return the first folder that no other run has claimed, and the descriptor of its job file, which has the lock."""
    for folder in candidates:
        with writing_to(folder):
            try:
                folder.mkdir(parents=True, exist_ok=is_wanted)
            except FileExistsError:
                continue
        claim = _lock(folder)
        if claim is not None:
            return folder, claim
    raise UsageError(f"run folder {str(candidates[0])!r} belongs to another run: expected a new or empty folder")


def _lock(folder: Path) -> int | None:
    """Lock the empty job file of a folder, and return its descriptor; None if a run has begun there, or begins now."""
    path = folder / JOB
    with writing_to(folder):
        claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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

    `JobError` if there is no run, or a flag asks for another job than the run's: both values are named. Another place
    of its data is recorded; `DataError` if other data is there. `ModelError` if its model is not the one of its
    receipt, or is code that this user has not agreed to run.
    """
    if not has_begun(folder):
        named = f"{str(folder)!r} holds no run to resume"
        if _is_abandoned(folder):
            again = f"--run-dir {shlex.quote(str(folder))}"
            raise JobError(f"{named}: the run was killed before it began; begin it again, with {again}")
        why = ", because a zip leaves checkpoints out" if folder.is_file() else ""
        raise JobError(f"{named}{why}: expected a run folder, with its {JOB}")
    check_records(folder)
    # A resumed run waits for other workers than it began with.
    values = {key: value for key, value in _recorded_values(folder).items() if key != "min_workers"}
    job, _ = resolve(values, {})
    wanted, options = resolve(values, given)
    # Without a receipt, nothing tells whether it is the same data.
    place = wanted.data if (folder / RECEIPT).is_file() else job.data
    if differences := msgspec.structs.replace(job, data=place).changed_in(wanted):
        begins = ", from its weights with --initial " + shlex.quote(str(folder / WEIGHTS))
        raise JobError(
            f"{str(folder)!r} is a run of another job: {differences}: remove these flags, or begin a new run"
            f"{begins if (folder / WEIGHTS).is_file() else ''}"
        )
    demand_trust(folder, resumed_source(folder, job))
    return job if place == job.data else _with_moved_data(folder, job, place), options


def _with_moved_data(folder: Path, job: Job, place: str) -> Job:
    """Return the job of a run whose data is in another place now, and record it; `DataError` if that has other data."""
    check_data(folder, place, load(place).digest)
    moved = msgspec.structs.replace(job, data=place)
    if moved.digest() != job.digest():
        # The records of the run cover the name.
        name = Path(job.data).name
        link = shlex.join(["ln", "-s", os.path.abspath(place), name])
        raise DataError(
            f"the data {place!r} has another name than in the run: expected {name!r}: make a link with `{link}`, and "
            f"give --data {shlex.quote(name)}"
        )
    with writing_to(folder):
        write_atomically(folder / JOB, [to_toml(moved, recorded(folder)[1]).encode()])
    return moved


def check_data(folder: Path, data: str, found: str) -> None:
    """Raise `DataError` if data with the digest `found` is not that of the run in a folder."""
    wanted = read_receipt(folder).dataset_sha256
    if found != wanted:
        raise DataError(
            f"the data {data!r} is not that of the run in {str(folder)!r} (SHA-256 {found[:12]}… here, {wanted[:12]}… "
            "there): expected a copy of it, or what `lockstep pack` makes of the same file with the same options"
        )


def check_records(folder: Path) -> None:
    """Raise `JobError` if a record of a run is a folder or a link, which would lead writes somewhere else."""
    for path in (folder / name for name in RECORD_FILES):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise JobError(f"{str(path)!r} is not a regular file: expected that of the run; remove it, or put it back")


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


#: Samples of the validation set with their labels, in the folder of a run that was to keep some.
EXAMPLES = "examples.npz"

#: Most of them.
MOST_EXAMPLES = 100

#: Other files of a run, besides its records.
KEPT = (CONVICTIONS, INITIAL, DATA, EXAMPLES)

#: Entries of a run's folder. A job file next to any of them is a run's, whatever else is missing; one without them may
#: be one that a person wrote.
RECORD_FILES = (LEDGER, RECEIPT, RESULT, METRICS, WEIGHTS, AVERAGE_WEIGHTS)
RECORDS = (*RECORD_FILES, CHECKPOINTS, MODEL)

#: Bytes of the list of trusted models: a line takes a hundred.
MOST_BYTES = 2**24

#: The files that this process trusts, in case the list cannot be written.
_trusted_here: set[str] = set()


def keep_files(folder: Path, source: ModelSource) -> None:
    """Copy the files of a run's model into its folder. Raises `UsageError` if that cannot be written to."""
    with writing_to(folder):
        for place, text in source.texts().items():
            path = folder / MODEL / place
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, [text])


def keep_initial(folder: Path, setup: RunSetup) -> None:
    """Copy the weights that a run begins with into its folder, if they come from a file. Raises as `keep_files`."""
    job, path = setup.info.job, folder / INITIAL
    if job.initial is None or os.path.abspath(job.initial) == os.path.abspath(path):
        return
    with writing_to(folder):
        write(path, setup.layout.read(setup.shard.weights), {"job": job.digest()})


def keep_examples(folder: Path, setup: RunSetup) -> None:
    """Write the first samples of the validation set, or of the test set without one. Raises as `keep_files`."""
    data = setup.data.validation or setup.data.test
    parts = {"x": fields_of(data.images[:MOST_EXAMPLES]), "y": fields_of(data.labels[:MOST_EXAMPLES])}
    is_plain = all(list(arrays) == [""] for arrays in parts.values())
    # Samples of several arrays need both sets: these are the same then.
    ends = [""] if is_plain else ["_train", "_test"]
    named = {
        f"w{end}" if name == WEIGHT else f"{kind}{end}.{name}".rstrip("."): array
        for end in ends
        for kind, arrays in parts.items()
        for name, array in arrays.items()
    }
    content = BytesIO()
    np.savez(content, **named)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
    with writing_to(folder):
        write_atomically(folder / EXAMPLES, [content.getbuffer()])


def told_folder(folder: Path) -> str:
    """Return where workers on this machine find that copy, empty if a welcome cannot hold it."""
    path = os.path.abspath(folder / MODEL)
    return path if path.isprintable() and len(path) <= NAME_LIMIT else ""


def recorded_source(folder: Path, job: Job) -> ModelSource:
    """Return what the model of the run in a folder is built from. Runs nothing.

    It is what the job names if that is still the same, and the run's own copy if not. `ModelError` if neither has the
    digest of the receipt.
    """
    if not code_of(job):
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
    """Return the source that is recorded in a folder; `ModelError` also if this user has not agreed to run it."""
    source = recorded_source(folder, job)
    demand_trust(folder, source)
    return source


#: Files that a person is asked to read, by name.
MOST_FILES = 4


def demand_trust(folder: Path, source: ModelSource) -> None:
    """Raise `ModelError` if the source of the run in a folder is code that this user has not agreed to run."""
    if source.files and not _is_trusted(source):
        files = dict.fromkeys(str(each.root / place) for each in source.files.values() for place in each.texts)
        named, more = list(map(repr, files))[:MOST_FILES], len(files) - MOST_FILES
        where = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        raise ModelError(
            f"the run in {str(folder)!r} has Python code that you have not trained on this machine: read "
            f"{where}, and if you trust it run `lockstep evaluate {shlex.quote(str(folder))} --trust-model` once"
        )


def job_of_file(path: Path, job: Job, given: Collection[str] = ()) -> Job:
    """Return the job of a job file; if that is of a run's folder, with the model that was trained there.

    `given` are the values that do not come from the file. `ModelError` as of `trusted_source`. Other job files name
    what their writer wants to run.
    """
    folder, code = path.parent, code_of(job).keys()
    # Also a link that leads nowhere.
    mark = next((name for name in RECORDS if os.path.lexists(folder / name)), None)
    if code <= set(given) or mark is None:
        return job
    if not (folder / RECEIPT).is_file():
        raise ModelError(
            f"{str(path)!r} is the job file of a run, because {mark!r} is next to it, and the run has no {RECEIPT}: "
            "its code cannot be trusted; if you wrote the job file, move it to another folder"
        )
    named = trusted_source(folder, job).files
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
    if not source.files or _is_trusted(source):
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
    names = ", ".join(f"{files.main}:{files.function}" for files in source.files.values())
    return f"{source.digest}  {names}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

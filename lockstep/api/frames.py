"""Data that `fit`, `find_lr` and `doctor` are given: names, arrays, files to be packed, and data frames."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from lockstep.api.job_inputs import PackInto, named_arrays
from lockstep.common.errors import DataError, JobError
from lockstep.common.job.job import Job
from lockstep.common.runtime.environment import cache_home
from lockstep.packing.cache import packed_source
from lockstep.packing.options import COLUMN_LISTS, DIRECT, PackOptions, Spelling, known_encoding
from lockstep.runs.optional_packages import demand

#: A data frame, or two, or a mapping of them: of any library, so that it has no type here.
Frame = Any


def taken_options(values: Mapping[str, Any]) -> tuple[PackOptions, dict[str, Any]]:
    """Return the options of packing and the values of the job; `JobError` for an option of another kind."""
    given = {name: value for name, value in values.items() if name in DIRECT and value is not None}
    for name in (*COLUMN_LISTS, "na"):
        if name in given:
            several = given[name] if isinstance(given[name], list | tuple) else [given[name]]
            if name == "na":
                several = [str(each) for each in several]
            given[name] = tuple(several)
            if not all(isinstance(each, str) for each in several):
                raise JobError(f"{name} = {values[name]!r}: expected the name of a column, or a list of names")
    _check_form(given)
    size = given.get("size")
    if isinstance(size, int):
        given["size"] = (size, size)
    elif size is not None and not (isinstance(size, tuple) and len(size) == 2 and all(type(x) is int for x in size)):
        raise JobError(f"size = {size!r}: expected (height, width) in pixels")
    missing = given.get("missing")
    if isinstance(missing, int | float):
        given["missing"] = float(missing)
    elif missing not in (None, "drop", "mean"):
        raise JobError(f"missing = {missing!r}: expected 'drop', 'mean' or a number")
    if not 0.0 <= given.get("test_split", 0.0) < 1.0:
        raise JobError(f"test_split = {given['test_split']!r}: expected a share, at least 0 and below 1")
    if given.get("task") not in (None, "classes", "numbers"):
        raise JobError(f"task = {given['task']!r}: expected 'classes' or 'numbers'")
    options = PackOptions(**given, spelled=Spelling.PYTHON)
    return options, {name: value for name, value in values.items() if name not in DIRECT}


def _check_form(given: Mapping[str, Any]) -> None:
    """Raise JobError for a form of CSV files that there is not."""
    delimiter, decimal = given.get("delimiter", ";"), given.get("decimal", ".")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii():
        raise JobError(f"delimiter = {delimiter!r}: expected one character, like ';' or '\\t'")
    if decimal not in (".", ","):
        raise JobError(f"decimal = {decimal!r}: expected '.' or ','")
    try:
        known_encoding(given.get("encoding", "utf-8"))
    except (LookupError, TypeError):
        raise JobError(f"encoding = {given['encoding']!r}: expected one like 'cp1252' or 'utf-16'") from None


def with_data(
    job: Job, data: Any, options: PackOptions, *, verbose: bool
) -> tuple[Job, dict[str, NDArray[Any]] | PackInto | None]:
    """Return the job with the name of its data, or as it is with what the calling process has in memory.

    Raises `DataError` for data of another form.
    """
    if isinstance(data, str | Path):
        return msgspec.structs.replace(job, data=_named_data(str(data), options, job.loss, verbose=verbose)), None
    return job, _memory_data(data, options, job.loss)


def _memory_data(data: Any, options: PackOptions, loss: str) -> dict[str, NDArray[Any]] | PackInto:
    """Return what the calling process has in memory: arrays by name, or what packs a data frame."""
    first = data[0] if isinstance(data, tuple) and data else data
    if isinstance(data, Mapping):
        first = data.get("train")
    if hasattr(first, "__arrow_c_stream__") or (hasattr(first, "with_format") and hasattr(first, "features")):
        demand("pyarrow", "data", f"a {type(first).__name__}")

        def into(folder: Path) -> object:
            # Imported here, since the extra may not be installed.
            from lockstep.packing.pack_table import pack_frame

            return pack_frame(data, folder, options.for_loss(loss))

        return into
    if given := options.changed():
        raise DataError(f"{', '.join(given)} with a {type(data).__name__}: expected a data frame, or a file to pack")
    return named_arrays(data)


def _named_data(name: str, options: PackOptions, loss: str, *, verbose: bool) -> str:
    """Return a job's data: what was packed if it is a file that has to be."""
    cache = Path(cache_home()) / "lockstep"
    say = print if verbose else lambda text: None
    return packed_source(name, options, loss, cache, lambda what: nullcontext(lambda share: None), say)

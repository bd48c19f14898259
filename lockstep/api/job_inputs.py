"""Writes what the calling process has in memory into the run's folder: weights, data, a model's source, tables."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockstep.api.exported_model import ExportedModel, ModelText, exported_functions, names_of, with_names
from lockstep.common.data.folder import table_at
from lockstep.common.errors import DataError, JobError, UsageError
from lockstep.common.files.safetensors import write
from lockstep.common.job.job import DENSE, Job
from lockstep.common.model.initial import INITIAL
from lockstep.common.model.source import MARK
from lockstep.packing.cache import DatasetCache
from lockstep.packing.files import table_files
from lockstep.packing.options import COLUMN_LISTS, DIRECT, PackOptions, Spelling, is_delimiter, known_encoding
from lockstep.ps.records.run_folder import MODEL
from lockstep.runs.job_data import draft_of, values_of_data, with_data_values
from lockstep.runs.job_file import SHIPPED, resolve
from lockstep.runs.own_command import demand
from lockstep.runs.run_dir import (
    DATA,
    DATA_FOLDER,
)

#: `((x_train, y_train), (x_test, y_test))`, as Keras has it.
Arrays = tuple[tuple[ArrayLike, ArrayLike], tuple[ArrayLike, ArrayLike]]

#: The source of a model in the run's folder.
TEXT = Path(MODEL, "model.py")

#: Packs a data frame into a folder.
PackInto = Callable[[Path], object]


Call = TypeVar("Call", bound=Callable[..., Any])


def takes_data_in_one(function: Call) -> Call:
    """Let a function of a model and its data take the data alone: the model follows from that then, as in `train`.

    It raises `DataError` with the right call if x and y are given one by one.
    """

    @wraps(function)
    def called(*given: Any, **values: Any) -> Any:
        if len(given) == 1 and not {"model", "data"} & set(values) and _is_data(given[0]):
            given = (None, *given)
        if len(given) > 2:
            raise DataError(
                f"data is one argument, and {len(given) - 1} were given after the model: expected "
                f"{function.__name__}(model, ((x_train, y_train), (x_test, y_test)), ...), and all else by its name"
            )
        return function(*given, **values)

    return cast("Call", called)


def _is_data(given: Any) -> bool:
    """Tell whether the only argument of a call is data, and no model: models are neither tuples nor files of arrays."""
    if is_table(given) or isinstance(given, tuple | list):
        return True
    if not isinstance(given, str | Path) or str(given) in SHIPPED:
        return False
    return (
        str(given) == Job().data
        or Path(given).suffix == ".npz"
        or (Path(given).exists() and Path(given).suffix != ".py")
    )


def folder_name(job: Job, given: Mapping[str, Any], arrays: dict[str, NDArray[Any]] | PackInto | None) -> str:
    """Return the name of a job's model for a run's folder; if it follows from arrays in memory, that of these."""
    if "model" in given:
        return job.model_name()
    if arrays is None:
        return str(values_of_data(job.data, given).get("model", job.model))
    return DENSE if callable(arrays) else "arrays"


def named_arrays(data: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of a dataset by the names that an .npz has; `DataError` if they are not arrays of numbers.

    A set is (x, y), or (x, y, w) with weights of samples; x and y may be dictionaries or tuples of arrays.
    """
    for part in data if isinstance(data, tuple | list) else ():
        _check_numbered(part)
    try:
        train, test = (_items_of(part) if is_dataset(part) else tuple(part) for part in data)
        if not {len(train), len(test)} <= {2, 3}:
            raise ValueError
    except (TypeError, ValueError):
        inside = f" ({', '.join(type(part).__name__ for part in data[:4])})" if isinstance(data, tuple | list) else ""
        raise DataError(
            f"data is a {type(data).__name__}{inside} of another form: expected a name, a path, arrays as (x, y) or "
            "((x_train, y_train), (x_test, y_test)), or a pair of datasets, not loaders"
        ) from None
    arrays = {
        f"{kind}_{part}{field}": np.asarray(values)
        for part, given in (("train", train), ("test", test))
        for kind, several in zip("xyw", given, strict=False)
        for field, values in _fields(several)
    }
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            # Names of classes, most likely.
            advice = (
                "; number classes from 0, as numpy.unique(labels, return_inverse=True) does"
                if name.startswith("y_")
                else ""
            )
            raise DataError(f"{name} is of dtype {str(array.dtype)!r}: expected an array of numbers{advice}")
    return arrays


def _check_numbered(part: Any) -> None:
    """Raise `DataError` for a dataset of PyTorch whose samples have no numbers, or no last one."""
    kinds = {each.__name__ for each in type(part).__mro__}
    if "IterableDataset" in kinds:
        raise DataError(
            f"the {type(part).__name__} is an IterableDataset, whose samples have no numbers: expected a dataset with "
            "__getitem__ and __len__; read its samples once, and give them as arrays"
        )
    if "Dataset" in kinds and not hasattr(type(part), "__len__"):
        raise DataError(
            f"the {type(part).__name__} has no __len__: expected the number of its samples; add a method __len__"
        )


def is_dataset(part: Any) -> bool:
    """Tell whether something is a dataset of PyTorch, or like one: it has a length, and items of samples by number."""
    has_items = hasattr(type(part), "__getitem__") and hasattr(type(part), "__len__")
    return has_items and not isinstance(part, tuple | list | dict | str) and not hasattr(part, "dtype")


def is_one_set(data: Any) -> bool:
    """Tell whether something is (x, y), or (x, y, w), and not a training set and a test set of these."""
    return isinstance(data, tuple | list) and len(data) in (2, 3) and all(hasattr(each, "dtype") for each in data)


def divided(data: Sequence[Any], options: PackOptions) -> Arrays:
    """Return arrays, of which a share of the samples becomes the test set, as packing has it."""
    arrays = [np.asarray(each) for each in data]
    samples = [len(each) if each.ndim else 0 for each in arrays]
    if len(set(samples)) > 1:
        raise DataError(f"arrays of {' and '.join(map(str, samples))} samples: expected as many labels as samples")
    is_test = options.division().marks(samples[0])
    if not is_test.any():
        raise DataError(
            f"the test set is empty, because {options.test_split:.0%} of {samples[0]} samples is none: expected more "
            f"samples, a larger {options.spelled('test_split')}, or ((x_train, y_train), (x_test, y_test))"
        )
    train, test = (tuple(each[chosen] for each in arrays) for chosen in (~is_test, is_test))
    return train, test  # type: ignore[return-value]  # weights of samples may come third


def _items_of(part: Any) -> tuple[Any, ...]:
    """Return the arrays of a dataset whose items are (x, y) or (x, y, w): read once, in order.

    Those of a `TensorDataset` are taken as they are.
    """
    tensors = getattr(part, "tensors", None)
    if isinstance(tensors, tuple):
        return tensors
    items = [part[place] for place in range(len(part))]
    if not items or not all(isinstance(item, tuple | list) and len(item) in (2, 3) for item in items):
        raise DataError(
            f"the items of the {type(part).__name__} are not pairs: expected (x, y), or (x, y, weight), for each sample"
        )
    return tuple(_stacked([item[place] for item in items]) for place in range(len(items[0])))


def _stacked(values: Sequence[Any]) -> Any:
    """Return values of samples as one array, or as several if each has several."""
    first = values[0]
    if isinstance(first, Mapping):
        return {name: _stacked([value[name] for value in values]) for name in first}
    if isinstance(first, tuple):
        return tuple(_stacked([value[place] for value in values]) for place in range(len(first)))
    try:
        return np.stack([np.asarray(value) for value in values])
    except ValueError as error:
        raise DataError(f"samples of different shapes: {error}: expected one shape for all of them") from None


def _fields(several: Any) -> list[tuple[str, Any]]:
    """Return several arrays with what comes after the name of all: their own names, or their places."""
    if isinstance(several, Mapping):
        return [(f".{name}", values) for name, values in several.items()]
    # A list, or a tuple of numbers, is one array.
    if isinstance(several, tuple) and all(getattr(values, "shape", ()) for values in several):
        return [(f".{place}", values) for place, values in enumerate(several)]
    return [("", several)]


@contextmanager
def job_inputs(
    folder: Path,
    weights: dict[str, NDArray[Any]] | None,
    data: dict[str, NDArray[Any]] | PackInto | None,
    model: ModelText | None = None,
    functions: Mapping[str, ModelText] = MappingProxyType({}),
) -> Iterator[dict[str, str]]:
    """Write weights, data and the source of a model, and of other functions by the job's values that name them.

    They are written into the run's folder; give the values that name all of them.
    """
    paths: dict[str, Path] = {}
    try:
        if weights is not None or data is not None or model is not None or functions:
            folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            paths["initial"] = (folder / INITIAL).resolve()
            write(paths["initial"], weights, {})
        if callable(data):
            paths["data"] = (folder / DATA_FOLDER).resolve()
            data(paths["data"])
        elif data is not None:
            paths["data"] = (folder / DATA).resolve()
            np.savez(paths["data"], **data)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
        if model is not None:
            paths["model"] = (folder / TEXT).resolve()
            paths["model"].parent.mkdir(exist_ok=True)
            paths["model"].write_text(model.text, encoding="utf-8")
        for value, text in functions.items():
            paths[value] = (folder / MODEL / f"{MARK}{value}" / f"{value}.py").resolve()
            paths[value].parent.mkdir(parents=True, exist_ok=True)
            paths[value].write_text(text.text, encoding="utf-8")
        code = {**({} if model is None else {"model": model}), **functions}
        yield {key: f"{path}:{code[key].function}" if key in code else str(path) for key, path in paths.items()}
    except UsageError as error:
        if isinstance(data, dict) and "data" in paths:
            # The file is gone with the folder, and was never the caller's.
            error.args = (str(error).replace(str(paths["data"]), "the arrays"),)
        raise


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
            if not all(isinstance(each, str) for each in several):
                raise JobError(f"{name} = {values[name]!r}: expected the name of a column, or a list of names")
            given[name] = tuple(map(str.strip, several))
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
    if not is_delimiter(delimiter):
        raise JobError(f"delimiter = {delimiter!r}: expected one character, like ';' or '\\t'")
    if decimal not in (".", ","):
        raise JobError(f"decimal = {decimal!r}: expected '.' or ','")
    try:
        known_encoding(given.get("encoding", "utf-8"))
    except (LookupError, TypeError):
        raise JobError(f"encoding = {given['encoding']!r}: expected one like 'cp1252' or 'utf-16'") from None


def with_data(
    job: Job, data: Any, options: PackOptions, loss: str | None, *, verbose: bool
) -> tuple[Job, dict[str, NDArray[Any]] | PackInto | None]:
    """Return the job with the name of its data, or as it is with what the calling process has in memory.

    `loss` is the job's if that is given. Raises `DataError` for data of another form.
    """
    if isinstance(data, str | Path):
        return msgspec.structs.replace(job, data=shown_cache(verbose=verbose).packed(str(data), options, loss)), None
    return job, _memory_data(data, options, loss, print if verbose else lambda text: None)


def completed(job: Job, values: Mapping[str, Any], paths: Mapping[str, str]) -> Job:
    """Return the job that runs, with the files that were written for it, and with what follows from its data.

    `values` are those of the call, with its functions.
    """
    given, data = with_names(values, paths), paths.get("data", job.data)
    found, _ = resolve({}, {**given, **values_of_data(data, given), "data": data})
    return with_data_values(found, given)


@contextmanager
def temporary_job(known: ExportedModel, data: Any, values: Mapping[str, Any]) -> Iterator[Job]:
    """Give the job of a call that trains nothing; what it has in memory is in a folder that is removed afterwards."""
    options, values = taken_options(values)
    functions, values = exported_functions(values), {**known.values(), **values}
    given = with_names(values, names_of(functions))
    job, _ = resolve({}, draft_of(given, given))
    job, arrays = with_data(job, data, options, given.get("loss"), verbose=False)
    with (
        tempfile.TemporaryDirectory(prefix="lockstep-job-") as folder,
        job_inputs(Path(folder), None, arrays, known.text, functions) as paths,
    ):
        yield completed(job, values, paths)


def is_table(data: Any) -> bool:
    """Tell whether something is a table: a frame, two of them, a mapping of them, or the name of a file."""
    if isinstance(data, str | Path):
        return bool(table_files(Path(data))) or table_at(str(data)) is not None
    if isinstance(data, tuple | Mapping):
        parts = list(data.values() if isinstance(data, Mapping) else data)
        return bool(parts) and all(map(is_frame, parts))
    return is_frame(data)


def is_frame(data: Any) -> bool:
    """Tell whether something is a data frame of any library, or a dataset of Hugging Face."""
    # Of Polars, also one whose rows are not computed yet, which is refused with what to do.
    marks = (("__arrow_c_stream__",), ("with_format", "features"), ("collect", "collect_schema"))
    return any(all(hasattr(data, name) for name in names) for names in marks)


def _memory_data(
    data: Any, options: PackOptions, loss: str | None, say: Callable[[str], None]
) -> dict[str, NDArray[Any]] | PackInto:
    """Return what the calling process has in memory: arrays by name, or what packs a data frame."""
    first = data[0] if isinstance(data, tuple) and data else data
    if isinstance(data, Mapping):
        first = data.get("train")
    if is_frame(first):
        demand("pyarrow", "data", f"a {type(first).__name__}")

        def into(folder: Path) -> object:
            # Imported here, since the extra may not be installed.
            from lockstep.packing.pack_table import pack_frame

            packed = pack_frame(data, folder, options if loss is None else options.for_loss(loss))
            for line in packed.lines():
                say(line)
            return packed

        return into
    if is_one_set(data):
        data = divided(data, options)
        say(options.division_note())
        options = replace(options, test_split=PackOptions.test_split)
    if given := options.changed():
        raise DataError(f"{', '.join(given)} with a {type(data).__name__}: expected a data frame, or a file to pack")
    return named_arrays(data)


def shown_cache(*, verbose: bool) -> DatasetCache:
    """Return the cache of datasets, which prints what it packs if that is wanted."""
    return DatasetCache(say=print) if verbose else DatasetCache()

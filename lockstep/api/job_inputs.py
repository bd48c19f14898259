"""Writes what the calling process has in memory into the run's folder: weights, data, a model's source."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockstep.api.exported_model import ModelText
from lockstep.common.errors import DataError, UsageError
from lockstep.common.files.safetensors import write
from lockstep.runs.recorded_model import MODEL

#: `((x_train, y_train), (x_test, y_test))`, as Keras has it.
Arrays = tuple[tuple[ArrayLike, ArrayLike], tuple[ArrayLike, ArrayLike]]

#: Files in the run's folder: the weights that a warm start begins with, the data, and a model's source.
INITIAL, DATA, TEXT = "initial.safetensors", "data.npz", Path(MODEL, "model.py")

#: The folder that a data frame is packed into there, and what packs it.
FOLDER = "data"
PackInto = Callable[[Path], object]


def named_arrays(data: Any) -> dict[str, NDArray[Any]]:
    """Return the four arrays of a dataset by name; `DataError` if there are not four arrays of numbers."""
    try:
        (x_train, y_train), (x_test, y_test) = data
    except (TypeError, ValueError):
        raise DataError(
            f"data is a {type(data).__name__} of another form: expected a name, a path, "
            "or arrays as ((x_train, y_train), (x_test, y_test))"
        ) from None
    arrays = {
        name: np.asarray(values)
        for name, values in (("x_train", x_train), ("y_train", y_train), ("x_test", x_test), ("y_test", y_test))
    }
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} is of dtype {str(array.dtype)!r}: expected an array of numbers")
    return arrays


@contextmanager
def job_inputs(
    folder: Path,
    weights: dict[str, NDArray[Any]] | None,
    data: dict[str, NDArray[Any]] | PackInto | None,
    model: ModelText | None = None,
) -> Iterator[dict[str, str]]:
    """Write weights, data and a model's source into the run's folder; give the job's values that name them.

    If the run cannot begin, they are removed, and so are the folders made for them.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    paths: dict[str, Path] = {}
    try:
        if weights is not None or data is not None or model is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if weights is not None:
            paths["initial"] = (folder / INITIAL).resolve()
            write(paths["initial"], weights, {})
        if callable(data):
            paths["data"] = (folder / FOLDER).resolve()
            data(paths["data"])
        elif data is not None:
            paths["data"] = (folder / DATA).resolve()
            np.savez(paths["data"], **data)  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
        if model is not None:
            paths["model"] = (folder / TEXT).resolve()
            paths["model"].parent.mkdir(exist_ok=True)
            paths["model"].write_text(model.text, encoding="utf-8")
        named = {key: str(path) for key, path in paths.items()}
        yield named if model is None else {**named, "model": f"{paths['model']}:{model.function}"}
    except UsageError:
        for path in paths.values():
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):
            for path in ([] if model is None else [folder / MODEL]) + made:
                path.rmdir()
        raise

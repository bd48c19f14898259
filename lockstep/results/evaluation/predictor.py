"""Predicts with a run's trained model: from stored samples, from the rows of a table, or from arrays in Python.

Whatever is predicted from becomes samples as the training set's are stored; `table_rows` and `pictures` make these of
rows and of pictures. The preparation, the model and the meaning of its outputs are here, and nowhere else.
"""

import csv
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.graph import no_grad
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.array_files import NpzArchive, open_npy, open_npz
from lockstep.common.data.array_source import as_samples
from lockstep.common.data.columns import ColumnKind, unscaled
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import Conversion, Reading
from lockstep.common.data.records import are_numbered, as_input, as_records
from lockstep.common.errors import DataError
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.numerics.choice import prefer_numerics
from lockstep.common.runtime.lent_process import computing
from lockstep.common.runtime.numerics import kept_numerics
from lockstep.packing.options import Spelling
from lockstep.results.evaluation.figures import shown_names
from lockstep.runs.own_command import demand
from lockstep.runs.trained_model import Trained

#: Samples that are predicted at once.
AT_ONCE = 256

#: Ends of the names of files of arrays; and the arrays of an .npz that are predicted from, the first that there is.
ARRAYS, SAMPLES = (".npy", ".npz"), ("x", "x_test")

#: Returns the value of a table of which a class has the name, by the kind of the target's values; others are texts.
VALUES: Mapping[ColumnKind, Callable[[str], Any]] = {
    ColumnKind.NUMBER: int,
    ColumnKind.BOOLEAN: lambda name: name == "true",
}
#: Rows whose problems are told.
MOST_TOLD = 3


class RowPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """The prediction for one row of a table."""

    #: Numbers in the units of the data, one for each target; of a classifier the probabilities of the classes.
    values: tuple[float, ...] = ()
    #: The likeliest class; empty for a regression.
    name: str = ""
    #: Why nothing is predicted of this row, and where it is; empty if something is.
    problem: str = ""


class Predictor(msgspec.Struct, frozen=True, dict=True):
    """A trained model that takes what its training data was made of."""

    trained: Trained

    @property
    def table(self) -> Conversion | None:
        """The conversion of the table, None if the data is not a table."""
        return self.trained.data if self.trained.data.is_table else None

    @cached_property
    def data(self) -> TrainTest:
        """A dataset of the form of the run's data."""
        return self.trained.data.form()

    @property
    def kind(self) -> LossKind:
        """The kind of the outputs."""
        return kind_of(self.trained.job.loss)

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the outputs; of several labels and classes without names, numbers.

        Empty if the outputs are numbers.
        """
        job, data = self.trained.job, self.trained.data
        if self.kind is LossKind.NUMBERS:
            return []
        if self.kind is not LossKind.LABELS and job.ignore_index != data.classes - 1:
            return class_names_of(data)
        # A model may have an output for the largest label, although it is ignored.
        with computing(), kept_numerics():
            prefer_numerics(job.numerics)
            outputs = self.probabilities(self.data.train.images[:1]).shape[-1]
        names = [] if self.kind is LossKind.LABELS else data.class_names
        return names[:outputs] or [str(label) for label in range(outputs)]

    def outputs(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return the outputs of samples as the training set has them."""
        parts = [samples[begin : begin + AT_ONCE] for begin in range(0, len(samples), AT_ONCE)] or [samples]
        model, preparation = self.trained.model, self.trained.data.preparation
        return np.concatenate([model.outputs(preparation.images(part)).copy() for part in parts])

    def probabilities(self, samples: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probability of each class, (n, classes, ...) with the axis of classes last, or of each label."""
        outputs = self.outputs(samples)
        if self.kind is LossKind.LABELS:
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * outputs.astype(np.float64))))
        axis = -1 if self.table is not None else class_axis(outputs, self.data)
        with no_grad():
            return np.asarray(F.softmax(Tensor(np.moveaxis(outputs, axis, -1))).data, np.float64)

    # From tables

    def rows(
        self, table: Conversion, rows: Any, reading: Reading, spelled: Spelling = Spelling.FLAGS
    ) -> Iterator[RowPrediction]:
        """Return a prediction, or a problem, for each row of another table than that of the run.

        Raises DataError if it cannot be read as a table.
        """
        # Imported here, because the extra may be missing if no table is predicted.
        from lockstep.results.evaluation.table_rows import TableRows

        for samples, problems in TableRows(table, reading, spelled).samples(rows):
            found = self._of_samples(table, samples) if len(samples) else iter(())
            for problem in problems:
                yield RowPrediction(problem=problem) if problem else next(found)

    def _of_samples(self, table: Conversion, samples: NDArray[np.float32]) -> Iterator[RowPrediction]:
        if table.classes:
            return _row_predictions(self.probabilities(samples), self.class_names)
        return _row_predictions(unscaled(self.outputs(samples), table.targets))

    # From arrays

    def array_rows(self, rows: Any) -> Iterator[RowPrediction]:
        """Return a prediction for each sample of arrays; DataError if that is more than a class or a few numbers."""
        has_classes = self.kind is LossKind.CLASSES
        found = self.values(rows) if has_classes else np.asarray(self._labels_of(rows), np.float64)
        if found.ndim != 2:
            raise DataError(
                f"the prediction for a sample has shape {found.shape[1:]}: expected a class, or some numbers; predict "
                "with load_run(RUN).predict(array), in Python"
            )
        yield from _row_predictions(found, self.class_names if has_classes else ())

    # From Python

    def labels(self, rows: Any, **reading: Any) -> NDArray[Any]:
        """Return the class of each row, (n,), or its numbers, (n,) or (n, targets); as `Run.predict`.

        Classes of a table are texts, int64 or bool, as in the table; with None among them, objects.
        """
        if self.table is None:
            numbers = self._labels_of(rows)
            return numbers[:, 0] if self.kind is LossKind.NUMBERS and numbers.shape[1:] == (1,) else numbers
        found = self._of_table(self.table, rows, self.table.reading.but(**reading))
        if self.table.classes:
            value_of = VALUES.get(self.table.targets[0].kind, str)
            classes = [value_of(row.name) if row.name else None for row in found]
            return np.array(classes, dtype=object if None in classes else None)
        return _stacked(found, len(self.table.targets), squeezes=True)

    def values(self, rows: Any, **reading: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (n, classes)."""
        if self.table is None:
            with computing(), kept_numerics():
                return self.probabilities(self._samples(rows))
        found = self._of_table(self.table, rows, self.table.reading.but(**reading))
        return _stacked(found, self.table.classes, squeezes=False)

    def _of_table(self, table: Conversion, rows: Any, reading: Reading) -> list[RowPrediction]:
        demand("pyarrow", "data", "predict")
        with computing(), kept_numerics():
            prefer_numerics(self.trained.job.numerics)
            found = list(self.rows(table, rows, reading, Spelling.PYTHON))
        problems = [row.problem for row in found if row.problem]
        if problems:
            # The warning names the line that called `Run.predict`.
            warnings.warn(problems_text(problems, len(found)), stacklevel=4)
        return found

    @computing()
    @kept_numerics()
    def _labels_of(self, rows: Any) -> NDArray[Any]:
        outputs = self.outputs(self._samples(rows))
        if self.kind is LossKind.LABELS:
            return (outputs > 0.0).astype(np.int64)
        if self.kind is not LossKind.CLASSES:
            targets = self.trained.data.targets
            return unscaled(outputs, targets) if targets else np.asarray(outputs, np.float64)
        places: NDArray[Any] = outputs.argmax(axis=class_axis(outputs, self.data))
        return np.array(self.data.class_names)[places] if self.data.class_names else places

    def _samples(self, rows: Any) -> NDArray[Any]:
        """Return arrays as samples."""
        prefer_numerics(self.trained.job.numerics)
        train = self.data.train
        if train.images.dtype.names:
            return records_like(train, rows)
        expected = f"{_expected_shape(train.sample_shape)} and {str(train.images.dtype)!r}, as it was trained on"
        given = _as_array(rows, expected, np.float32 if train.images.dtype == np.float32 else None)
        samples = as_samples("rows", given)
        if samples.shape[1:] != train.sample_shape or samples.dtype != train.images.dtype:
            raise DataError(f"rows of shape {given.shape} and dtype {str(samples.dtype)!r}: expected {expected}")
        return samples


def records_like(train: Dataset, rows: Any) -> NDArray[Any]:
    """Return inputs that have names, given by these, or as an array if there is one, as the training set.

    Numbered inputs may be a tuple. `DataError` if others are one, because the order of the user is not recorded: that
    of an .npz is the alphabet's.
    """
    kinds, names = train.images.dtype, train.images.dtype.names or ()
    wanted = ", ".join(
        f"{name!r} of shape {_shape_text(('n', *kinds[name].shape))} and dtype {kinds[name].base}" for name in names
    )
    takes_tuple = len(names) == 1 or are_numbered(names)
    by_name = f", as {{{', '.join(f'{name!r}: ...' for name in names)}}}"
    how = ", by name or as a tuple in this order" if are_numbered(names) else by_name
    expected = f"{wanted}, as it was trained on{how * (len(names) > 1)}"
    if isinstance(rows, Mapping):
        given = {name: _as_array(array, expected) for name, array in rows.items()}
    else:
        arrays = rows if isinstance(rows, tuple) or (isinstance(rows, list) and len(names) > 1) else [rows]
        if len(arrays) == len(names) and not takes_tuple:
            raise DataError(f"inputs in a {type(rows).__name__}, without their names: expected {expected}")
        keys = names if len(arrays) == len(names) else range(len(arrays))
        given = {key: _as_array(array, expected) for key, array in zip(keys, arrays, strict=True)}
    if set(given) == set(names) and all(given[name].shape[1:] == kinds[name].shape for name in names):
        records = as_records({name: _input_like(kinds[name].base, repr(name), given[name]) for name in names})
        if records.dtype == kinds:
            return records
    found = ", ".join(
        f"{f'{name!r} ' if name in names or isinstance(rows, Mapping) else ''}of shape {array.shape} and dtype "
        f"{array.dtype}"
        for name, array in given.items()
    )
    raise DataError(f"inputs {found or 'without an array'}: expected {expected}")


def _as_array(rows: Any, expected: str, kind: type[np.float32] | None = None) -> NDArray[Any]:
    """Return rows as an array; DataError if they are none, as a dictionary, or lists of different lengths."""
    try:
        return np.asarray(rows, kind)
    except (TypeError, ValueError, RuntimeError) as error:
        # A tensor of PyTorch that needs a gradient says which call it needs.
        why = f" ({error})" if isinstance(error, RuntimeError) else ""
        raise DataError(
            f"rows of type {type(rows).__name__!r} are not an array of numbers{why}: expected {expected}"
        ) from None


def _input_like(kind: np.dtype[Any], named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return an input, whose numbers become floats if the training set has these."""
    stored = as_input(named, array)
    return stored.astype(np.float32) if kind == np.float32 else stored


def rows_in(path: Path) -> Any:
    """Return the samples in an .npy or .npz file, or several arrays of each by name; DataError without such arrays."""
    if path.suffix.lower() == ARRAYS[0]:
        with open_npy(path) as array:
            return array.read_whole()
    with open_npz(path) as archive:
        names = sorted(archive.names())
        for wanted in (*SAMPLES, *names) if len(names) == 1 else SAMPLES:
            if found := arrays_called(archive, wanted):
                return found.get("", found)
    raise DataError(f"{path}: has {', '.join(names[:6]) or 'nothing'}: expected the samples to predict from, as 'x'")


def arrays_called(archive: NpzArchive, wanted: str) -> dict[str, NDArray[Any]]:
    """Return the array of that name, by the empty name, or else all that are called `wanted.NAME`, by theirs."""
    names = archive.names()
    several = sorted(name for name in names if name.startswith(f"{wanted}."))
    return {
        name.removeprefix(wanted).removeprefix("."): archive.array(name).read_whole()
        for name in ([wanted] if wanted in names else several)
    }


def class_names_of(data: Conversion) -> list[str]:
    """Return what the classes of a dataset are called, in the order of the outputs."""
    return data.class_names or [str(label) for label in range(data.classes)]


def problems_text(problems: Sequence[str], rows: int) -> str:
    """Return on one line which rows nothing is predicted of, with the first ones."""
    more = f"; and {len(problems) - MOST_TOLD:,} more" if len(problems) > MOST_TOLD else ""
    return f"nothing is predicted of {len(problems):,} of {rows:,} rows: {'; '.join(problems[:MOST_TOLD])}{more}"


def _expected_shape(sample_shape: tuple[int, ...]) -> str:
    """Return the shapes that samples may have: an axis of one channel was perhaps not in the data."""
    shapes = [sample_shape[1:]] * (len(sample_shape) == 3 and sample_shape[0] == 1) + [sample_shape]
    return " or ".join(_shape_text(("n", *shape)) for shape in shapes)


def _shape_text(shape: tuple[str | int, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)})"


def class_axis(outputs: NDArray[Any], data: TrainTest) -> int:
    """Return which axis of outputs has the classes: the last one, or that after the samples' if there are places."""
    places = data.train.values.shape[1:]
    return -1 if outputs.shape[1:-1] == places and len(places) < 2 else 1


def _row_predictions(found: NDArray[np.float64], names: Sequence[str] = ()) -> Iterator[RowPrediction]:
    """Yield the prediction for each row of numbers, or of probabilities of classes with these names."""
    for row in found:
        yield RowPrediction(values=tuple(row.tolist()), name=names[int(row.argmax())] if names else "")


def _stacked(found: Sequence[RowPrediction], width: int, *, squeezes: bool) -> NDArray[np.float64]:
    nothing = (np.nan,) * width
    numbers = np.array([row.values or nothing for row in found], np.float64).reshape(len(found), width)
    return numbers[:, 0] if squeezes and width == 1 else numbers


#: Classes that are shown after the likeliest.
OTHERS = 2


def by_class(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, Any]:
    """Return the likeliest class, and the probability of each class by its name."""
    likeliest = names[int(np.argmax(probabilities))]
    return {"class": likeliest, "probabilities": dict(zip(names, probabilities, strict=True))}


def write_rows(
    out: TextIO,
    rows: Iterator[RowPrediction],
    targets: Mapping[str, float],
    class_names: Sequence[str],
    dates: Sequence[str] = (),
    *,
    as_json: bool,
) -> tuple[int, list[str]]:
    """Write a line for each row, below the names of the targets; return the number of rows, and their problems.

    `targets` have their deviations, which decide how many digits are printed. `dates` are the targets whose numbers are
    microseconds since 1970.
    """
    table = csv.writer(out, lineterminator="\n")
    # Before anything is printed: data that cannot be read leaves no file with a head alone.
    first = list(islice(rows, 1))
    if not as_json:
        table.writerow([*targets, "probability"] if class_names else targets)
    problems, count = list[str](), 0
    for row in chain(first, rows):
        count += 1
        if row.problem:
            problems.append(row.problem)
        if as_json:
            out.write(f"{msgspec.json.encode(_fields_of(row, targets, class_names, dates)).decode()}\n")
        elif row.problem:
            table.writerow([""] * (2 if class_names else len(targets)))
        else:
            fields = _fields_of(row, targets, (), dates) if not row.name else {}
            shown = [text if isinstance(text, str) else spelled(text, targets[name]) for name, text in fields.items()]
            table.writerow(shown or [row.name, f"{max(row.values):.4f}"])
    return count, problems


def spelled(number: float, deviation: float) -> str:
    """Return a number with six significant digits, or with nine if so many may be in front of its point.

    A number that is far from 0 has as many as show a millionth of its deviation.
    """
    digits = 6 if abs(number) < 1e6 else 9
    if deviation < abs(number) < math.inf:
        digits = max(digits, 6 + math.floor(math.log10(abs(number)) - math.log10(deviation)))
    return f"{number:.{min(15, digits)}g}"


def _fields_of(
    row: RowPrediction, targets: Iterable[str], class_names: Sequence[str], dates: Sequence[str]
) -> dict[str, Any]:
    if row.problem:
        return {"error": row.problem}
    if class_names:
        return by_class(class_names, row.values)
    numbers = dict(zip(targets, row.values, strict=True))
    times = {name: np.datetime64(round(numbers[name]), "us") for name in dates}
    return {**numbers, **{name: str(np.datetime_as_string(time, "s")) for name, time in times.items()}}


def line(name: str, probabilities: Array, width: int, class_names: Sequence[str] = ()) -> str:
    """Return what a picture shows, and what else it may, on one line."""
    shown = name if len(name) <= width else f"…{name[1 - width :]}"
    order = np.argsort(-probabilities, kind="stable")
    called = shown_names(class_names, len(probabilities))
    others = ", ".join(f"{called[label]} {probabilities[label]:.2%}" for label in order[1 : 1 + OTHERS].tolist())
    first = int(order[0])
    return f"{shown:<{width}}  {called[first]}  {probabilities[first]:>7.2%}" + (f"   or {others}" if others else "")

"""Options of packing, the form of the dataset, its division into training and test set, and the report. Pure."""

import codecs
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.columns import LONGEST_TEXT
from lockstep.common.data.folder import FolderManifest, Kind, Origin, flag, in_list
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import cut, one_line
from lockstep.common.job.losses import LossKind, kind_of
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.version import VERSION

#: Samples among which a share is drawn at once. Files are often sorted: so each part of one gives its share.
GROUP = 1000

#: Arrays whose rows belong together.
Batch = tuple[NDArray[Any], ...]


@dataclass
class Division:
    """Divides samples, which come in order, into a training set and a test set of exactly that share, rounded down."""

    share: float
    seed: int
    _seen: int = 0
    _taken: int = 0

    def marks(self, count: int) -> NDArray[np.bool_]:
        """Return which of the next samples are for the test set; only the last call may be for a part of a group."""
        marked = np.zeros(count, np.bool_)
        for begin in range(0, count, GROUP):
            length = min(GROUP, count - begin)
            group, self._seen = self._seen // GROUP, self._seen + length
            wanted = int(self.share * self._seen) - self._taken
            self._taken += wanted
            order = generator(self.seed, Purpose.TEST_SPLIT, at=group).permutation(length)
            marked[begin + order[:wanted]] = True
        return marked


def in_groups(batches: Iterable[Batch], rows: int = GROUP) -> Iterator[Batch]:
    """Return the same rows in batches of a multiple of `rows`, but for the last."""
    held: Batch = ()
    for batch in batches:
        joined = tuple(np.concatenate(pair) for pair in zip(held, batch, strict=True)) if held else batch
        whole = len(joined[0]) // rows * rows
        if whole:
            yield tuple(array[:whole] for array in joined)
        held = tuple(array[whole:] for array in joined)
    if held and len(held[0]):
        yield held


#: Called with the share of a source that has been read, from 0 to 1.
Watch = Callable[[float], None]

#: The treatment of a missing value of a table; "drop" leaves its row out.
Missing = Literal["drop", "mean"] | float

#: The options of `train` and `fit`, whose data may be a source that is packed on the way.
DIRECT = (
    *("target", "columns", "drop", "task", "categories", "one_hot", "numbers", "missing", "na", "standardize"),
    *("delimiter", "encoding", "decimal", "size", "grayscale", "test_split"),
)
#: Those that are names of columns, of which there may be several.
COLUMN_LISTS = ("target", "columns", "drop", "categories", "one_hot", "numbers")

#: The options that data of one kind has, and no other.
OF_KIND: dict[Kind, tuple[str, ...]] = {
    "table": (*COLUMN_LISTS, "task", "missing", "na", "standardize", "delimiter", "encoding", "decimal"),
    "pictures": ("size", "grayscale"),
    "arrays": ("labels",),
}
#: The data that such an option is for, and data of that kind, for a person.
KIND_TEXTS: dict[Kind, tuple[str, str]] = {
    "table": ("tables", "is a table"),
    "pictures": ("pictures", "has pictures"),
    "arrays": ("arrays", "has arrays"),
}


@dataclass
class ReadProgress:
    """Reports the share of a source that has been read; `advance` is called with the bytes read since the last call."""

    watch: Watch
    whole: int = 1
    done: int = 0

    def advance(self, count: int) -> None:
        self.done += count
        self.watch(min(1.0, self.done / max(1, self.whole)))


#: The name of the category of missing texts on the screen.
MISSING_TEXT = "(missing)"


class Spelling(Enum):
    """The spelling of an option in a message: as a person would type it."""

    FLAGS = "flags"
    PYTHON = "Python"

    def __call__(self, name: str, value: object = None) -> str:
        """Return `--name value`, or `name=value` in Python; without a value the name alone."""
        if self is Spelling.PYTHON:
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            return name if value is None else f"{name}={value!r}"
        return flag(name, value)

    def quoted(self, name: str) -> str:
        """Return a column's name as one of a list that a person gives: with quotes around commas, and around these."""
        return name if self is Spelling.PYTHON or in_list(name) == name else shlex.quote(in_list(name))

    def together(self, *options: str) -> str:
        """Return several options in a row."""
        return (", " if self is Spelling.PYTHON else " ").join(options)


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """The options of turning a source into a dataset folder."""

    #: The columns of a table that are predicted, and those that are learned from: by default all others.
    target: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    #: Columns that are not learned from.
    drop: tuple[str, ...] = ()
    #: Columns whose values are names; and those of numbers.
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    #: Columns of names that become an input for each; None for those of a few names. Others become codes.
    one_hot: tuple[str, ...] | None = None
    #: Whether labels are classes or numbers; None to tell by their values.
    task: Literal["classes", "numbers"] | None = None
    #: The treatment of a missing value; None to refuse it.
    missing: Missing | None = None
    #: Texts and numbers that stand for a missing value, besides those that always do.
    na: tuple[str, ...] = ()
    #: Whether each column of numbers gets mean 0 and deviation 1.
    standardize: bool = True
    #: The separator of the values of a CSV file, None for the one that its first rows show; its encoding, None for
    #: UTF-8, or for the one that its first bytes name; and the mark before a number's fraction.
    delimiter: str | None = None
    encoding: str | None = None
    decimal: str = "."
    #: (height, width) of pictures; None if all are of one size.
    size: tuple[int, int] | None = None
    grayscale: bool = False
    #: How samples are stored; None for what suits the source.
    dtype: Literal["uint8", "float32"] | None = None
    #: The share of the samples that becomes the test set where the source has none, and the seed that draws it.
    test_split: float = 0.2
    seed: int = 0
    #: A source of its own for the test set, and a file of labels for samples in an .npy.
    test: Path | None = None
    labels: Path | None = None
    #: The loss of the run that the data is for, if that is given.
    loss: str | None = field(default=None, compare=False)
    #: How messages name these options.
    spelled: Spelling = field(default=Spelling.FLAGS, compare=False)

    def for_loss(self, loss: str) -> "PackOptions":
        """Return these options for a run with that loss: that of numbers is of numbers, also if they are few."""
        is_of_numbers = kind_of(loss) is LossKind.NUMBERS
        task = "numbers" if is_of_numbers and self.target and self.task is None else self.task
        return replace(self, task=task, loss=loss)

    def task_and_loss(self, task: Literal["classes", "numbers"]) -> str:
        """Return the options for a target of that kind: with a loss of that kind, if another one was given."""
        kind, loss = {"classes": (LossKind.CLASSES, "cross-entropy"), "numbers": (LossKind.NUMBERS, "mse")}[task]
        is_other = self.loss is not None and kind_of(self.loss) not in (kind, LossKind.OWN)
        return self.spelled.together(self.spelled("task", task), *([self.spelled("loss", loss)] if is_other else []))

    def division(self) -> Division:
        """Return what divides a source that has no test set."""
        return Division(self.test_split, self.seed)

    def division_note(self) -> str:
        """Return what a person should know of a test set that was taken out of the samples."""
        flags = "--test-split, --seed" if self.spelled is Spelling.FLAGS else "test_split"
        return f"the test set is {self.test_split:.0%} of it, drawn by seed {self.seed} ({flags})"

    def changed(self) -> list[str]:
        """Return the names of the options that are not the default."""
        default, known = PackOptions(), [each.name for each in fields(self) if each.compare]
        return [name for name in known if getattr(self, name) != getattr(default, name)]

    def check_kind(self, kind: Kind, source: str) -> None:
        """Raise DataError if an option was given that only data of another kind has."""
        for other, names in OF_KIND.items():
            if other != kind and (given := [name for name in self.changed() if name in names]):
                text = f"{self.spelled(given[0])} is for {KIND_TEXTS[other][0]}"
                raise DataError(f"{text}, and {one_line(source)!r} {KIND_TEXTS[kind][1]}: leave it out")

    def texts(self) -> dict[str, str]:
        """Return the given options."""
        return {name: str(getattr(self, name)) for name in sorted({*self.changed(), "test_split", "seed"})}

    def origin(self, source: str) -> Origin:
        """Return how a folder is made of a source, whose path is empty if it was in memory."""
        given = {name: msgspec.to_builtins(getattr(self, name), enc_hook=os.path.abspath) for name in self.changed()}
        return Origin(
            source=cut(os.path.abspath(source), LONGEST_TEXT) if source else "", options=given, version=VERSION
        )

    @classmethod
    def recorded(cls, origin: Origin) -> "PackOptions":
        """Return the options by which a source was packed; DataError if they are not known."""
        try:
            return msgspec.convert(origin.options, cls, dec_hook=lambda kind, path: Path(path))
        except msgspec.ValidationError as error:
            raise DataError(
                f"the options with which {origin.source!r} was packed are not those of this version "
                f"({one_line(str(error))}): pack it with `lockstep pack`, and name the new folder"
            ) from None

    def needed(self, columns: Iterable[str]) -> set[str]:
        """Return those of a table's columns of which a row without a value is left out: an answer is never made up."""
        return set(columns if self.missing == "drop" else self.target if self.is_filled() else ())

    def is_filled(self) -> bool:
        """Tell whether a number stands for a missing value, and a name of its own for a missing text."""
        return self.missing not in (None, "drop")


def is_delimiter(given: object) -> bool:
    """Tell whether values of a CSV file may be separated by something: one character that a value may not have."""
    return isinstance(given, str) and len(given) == 1 and given not in '"\r\n' and given.isascii()


def known_encoding(name: str) -> str:
    """Return what pyarrow calls an encoding. Raises LookupError, of another name."""
    found = codecs.lookup(name).name
    return "utf8" if found == "utf-8" else found


class SampleSet(Protocol):
    """Samples with their labels."""

    def __len__(self) -> int: ...
    def batches(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]: ...


class SampleSource(msgspec.Struct, frozen=True):
    """Samples and labels as they are to be stored; no test set if the source has none."""

    train: SampleSet
    test: SampleSet | None
    #: 0 to tell by the labels.
    classes: int
    class_names: Sequence[str] = ()
    #: Returns what a person should know once all was read, a line each.
    notes: Callable[[], list[str]] = list


class Packed(msgspec.Struct, frozen=True):
    """A source that was packed."""

    folder: Path
    manifest: FolderManifest
    #: Decisions that a person should know, a line each; and the kind of each column of a table.
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Return what a person is to read of it."""
        train, test, names = self.manifest.train.info, self.manifest.test.info, self.manifest.class_names
        yield f"packed {train.samples:,} samples to train on and {test.samples:,} to test with into {self.folder}"
        shape, dtype = " x ".join(map(str, train.sample_shape)), np.dtype(train.images_dtype)
        kinds = f"{self.manifest.classes} classes" if self.manifest.classes else "real numbers to predict"
        names_text = f": {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"
        yield f"each is {shape} of {dtype}; {kinds}{names_text if names else ''}"
        yield from self.columns
        yield from self.notes

"""The kind of each column of a table: found by looking at all of its values, before the first one is converted.

A column that is mostly numbers is numbers, and a value that is not one is refused by row, column and value, with what
to type. Texts are categories if an option names them, or if it is clear: they repeat, and do not look like numbers.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.common.data.columns import LONGEST_TEXT, Column, ColumnKind, Floats
from lockstep.common.errors import DataError
from lockstep.common.files.sanitize import one_line
from lockstep.packing.options import MISSING_TEXT, PackOptions
from lockstep.packing.tables import Table, TableBatch, Values, too, typed_numbers
from lockstep.packing.texts import TextKind, in_order, kinds_of, matches, names_of, taken, text_array

#: Most texts of a column that is learned from, and most classes.
MOST_CATEGORIES, MOST_CLASSES = 1000, 2**16
#: Most names of a column that becomes an input for each, unless an option decides. The order of codes means nothing,
#: and a small net does not undo it: with a price by town, 1,000 rows and 16, 32 or 100 towns, `dense` has a test R² of
#: 0.67, 0.46 or 0.35 with codes, and of 0.88 to 0.90 with inputs. The bound is there as an input costs 4 bytes a row.
FEW_NAMES = 100
#: Whole numbers to predict are classes if they are no more than so many, and each has so many rows in the mean; up to
#: so many are classes in any case.
FEW, ROWS_EACH, FEW_IN_ANY_CASE = 100, 20, 10
#: So many texts may all be different: more are clear categories only if they repeat.
FEW_TEXTS = 20
#: No number may be further from 0: the difference of two is then a number of float32.
LARGEST = float(np.finfo(np.float32).max) / 2
#: From here on, float64 does not hold every whole number.
INEXACT = 2.0**53

#: Kinds of columns, which texts a person means them by, which of these can be read, and the expected one.
_FAMILIES = (
    (ColumnKind.NUMBER, {TextKind.NUMBER, TextKind.PADDED, TextKind.WRITTEN_NUMBER}, "a number"),
    (ColumnKind.DATE, {TextKind.DATE, TextKind.WRITTEN_DATE}, "a date"),
    (ColumnKind.BOOLEAN, {TextKind.BOOLEAN}, "true or false"),
    (None, {TextKind.TIME}, "a number"),
)
_READABLE = {
    ColumnKind.NUMBER: {TextKind.NUMBER, TextKind.PADDED},
    ColumnKind.DATE: {TextKind.DATE},
    ColumnKind.BOOLEAN: {TextKind.BOOLEAN},
}


_KINDS = tuple(TextKind)


class Place(msgspec.Struct, frozen=True):
    """A value, where a person finds it, and how many rows were looked at before it."""

    where: str
    text: str
    order: int

    def __str__(self) -> str:
        return f"{self.where}: {one_line(self.text, 60)!r}"


@dataclass
class Facts:
    """The range of the values of a column that are numbers of one kind."""

    low: float = np.inf
    high: float = -np.inf
    #: The whole numbers that occurred; None if there are too many, or others.
    whole: set[float] | None = field(default_factory=set)

    def add(self, known: Floats) -> None:
        """Look at values, of which none is missing."""
        self.low, self.high = min(self.low, float(known.min())), max(self.high, float(known.max()))
        if self.whole is not None:
            distinct = np.unique(known)
            self.whole.update(distinct[: MOST_CLASSES + 1].tolist())
            if len(self.whole) > MOST_CLASSES or not (distinct == np.rint(distinct)).all():
                self.whole = None


class ColumnPlan(msgspec.Struct, frozen=True):
    """The conversion of the values of a column to numbers, but for their scale, and what a person may read of them."""

    column: Column
    is_target: bool
    facts: Facts
    #: Values that are missing.
    missing: int = 0
    #: A line about values that may be misread; empty without such values.
    note: str = ""

    @property
    def largest(self) -> float:
        """A number from which none of the column's is further from 0."""
        ends = (self.facts.low, self.facts.high)
        return max([1.0 * len(self.column.categories), *(abs(end) for end in ends if np.isfinite(end))])

    def described(self, options: PackOptions) -> tuple[str, str, str]:
        """Return what a person is to read of it: its name, what it was taken for, and its values."""
        names, kind = self.column.categories, self.column.kind
        taken = kind.value
        if names:
            taken = f"category, {'one-hot' if self.column.one_hot else 'codes'}"
            taken = "class, to predict" if self.is_target else taken
            # Quoted if it would look like several.
            cut = [one_line(each, 20) or MISSING_TEXT for each in names[:6]]
            shown = ", ".join(repr(each) if "," in each else each for each in cut)
            values = f"{shown}, … ({len(names):,})" if len(names) > 6 else shown
        else:
            taken = f"{taken}, to predict" if self.is_target else taken
            ends = (self.facts.low, self.facts.high)
            texts = map("{:.6g}".format, ends) if kind is ColumnKind.NUMBER else names_of(kind, ends)
            values = "no value" if self.facts.low > self.facts.high else " to ".join(texts)
        filled = f"; {self.missing:,} missing: {options.spelled('missing', options.missing)}" if self.missing else ""
        return one_line(self.column.name, 40), taken, values + filled


class Looked(msgspec.Struct, frozen=True):
    """The different values of a column that occur in the rows of a batch that are kept."""

    batch: TableBatch
    name: str
    #: How many rows were looked at before this batch.
    before: int
    values: Values
    #: The places of those that occur, ascending, and how often each does.
    used: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def at(cls, batch: TableBatch, name: str, before: int, rows: NDArray[np.bool_]) -> "Looked":
        values = batch.columns[name].without(~rows)
        counts = np.bincount(values.indices[values.indices >= 0], minlength=len(values.different))
        used = np.flatnonzero(counts)
        return cls(batch, name, before, values, used, counts[used])

    def place(self, rows: NDArray[np.bool_], text: str) -> Place:
        """Return where the first of some rows is."""
        at = int(np.argmax(rows))
        return Place(self.batch.place(at, self.name), text, self.before + at)

    def first(self, chosen: NDArray[np.bool_]) -> Place:
        """Return where the first of some of the values is."""
        rows = np.isin(self.values.indices, self.used[chosen])
        return self.place(rows, self.values.at(int(np.argmax(rows))))


@dataclass
class PointSurvey:
    """The points in numbers of a column that a file has as texts: some may separate thousands."""

    #: The first number in which a point may, and whether there are whole numbers and fractions as well.
    grouped: str | None = None
    has_whole: bool = False
    has_fractions: bool = False

    def add(self, numbers: pa.StringArray) -> None:
        is_pointed = matches(numbers, r"\.")
        is_grouped = matches(numbers, r"^[+-]?[1-9]\d{0,2}\.\d{3}$")
        if self.grouped is None and is_grouped.any():
            self.grouped = numbers[int(np.argmax(is_grouped))].as_py()
        self.has_whole = self.has_whole or not is_pointed.all()
        self.has_fractions = self.has_fractions or bool((is_pointed & ~is_grouped).any())


@dataclass
class TextSurvey:
    """The texts of one column while all of its values are looked at."""

    #: The most different ones that are looked at.
    most: int
    #: Texts by what each is alone, and the first of each kind; how many are categories by their type.
    counts: Counter[TextKind] = field(default_factory=Counter)
    first: dict[TextKind, Place] = field(default_factory=dict)
    declared: int = 0
    #: The different texts up to a limit, the first that was too many, and the first that is too long for a name.
    distinct: dict[str, TextKind] = field(default_factory=dict)
    too_many: Place | None = None
    too_long: Place | None = None
    #: Whether all numbers among the texts are digits alone, as codes are.
    is_digits: bool = True

    def first_of(self, kinds: set[TextKind]) -> Place:
        """Return the first text of any of these kinds."""
        return min((self.first[kind] for kind in kinds), key=lambda place: place.order)

    def add(self, looked: Looked, texts: pa.StringArray, decimal: str) -> NDArray[np.int8] | None:
        """Look at texts; return the kind of each, None if all were seen before."""
        names = texts.to_pylist() if self.too_many is None else []
        if names and all(name in self.distinct for name in names):
            # As in most batches of a column with few texts: patterns need not be looked for again.
            for name, count in zip(names, looked.counts.tolist(), strict=True):
                self.counts[self.distinct[name]] += count
            return None
        kinds = kinds_of(texts, decimal)
        for kind in map(TextKind, np.unique(kinds).tolist()):
            self.counts[kind] += int(looked.counts[kinds == kind].sum())
            if kind not in self.first:
                self.first[kind] = looked.first(kinds == kind)
        if self.is_digits and (kinds == TextKind.NUMBER).any():
            self.is_digits = bool(matches(taken(texts, kinds == TextKind.NUMBER), r"^\d+$").all())
        self.count(looked, names, kinds)
        return kinds

    def count(self, looked: Looked, names: Sequence[str], kinds: NDArray[np.int8]) -> None:
        """Record the different texts, until they are too many."""
        if self.too_many is not None:
            return
        if set(self.counts) == {TextKind.NUMBER} and not self.is_digits:
            # Numbers with fractions or signs do not name classes: once they are many, the others need not be looked at.
            self.most = min(self.most, MOST_CATEGORIES)
        for index, name, kind in zip(looked.used.tolist(), names, map(_KINDS.__getitem__, kinds), strict=True):
            if name not in self.distinct and len(self.distinct) == self.most:
                self.too_many = looked.place(looked.values.indices == index, name)
                return
            self.distinct[name] = kind
            if len(name) > LONGEST_TEXT and self.too_long is None:
                self.too_long = looked.place(looked.values.indices == index, name)


@dataclass
class ColumnSurvey:
    """One column while all of its values are looked at."""

    name: str
    is_target: bool
    options: PackOptions
    #: The points in its numbers, None if they cannot separate thousands.
    points: PointSurvey | None
    texts: TextSurvey = field(init=False)
    #: Values that are numbers by their type.
    typed: Counter[ColumnKind] = field(default_factory=Counter)
    facts: dict[ColumnKind, Facts] = field(default_factory=dict)
    rows: int = 0
    missing: int = 0
    #: The first value that is missing, and the first number that float32 does not hold.
    first_missing: Place | None = None
    beyond: Place | None = None
    #: Whether it has whole numbers of which float64 does not hold every digit.
    is_inexact: bool = False

    def __post_init__(self) -> None:
        self.texts = TextSurvey(MOST_CLASSES if self.is_target else MOST_CATEGORIES)

    def add(self, batch: TableBatch, rows: NDArray[np.bool_]) -> None:
        """Look at the values of a batch, but for the rows that will be left out."""
        looked = Looked.at(batch, self.name, self.rows, rows)
        is_missing = rows & looked.values.is_missing
        self.missing += int(np.count_nonzero(is_missing))
        if self.first_missing is None and is_missing.any():
            self.first_missing = looked.place(is_missing, "")
        kind, different = looked.values.kind, taken(looked.values.different, looked.used)
        if len(different) and kind is not None and not self._is_named():
            self.typed[kind] += int(looked.counts.sum())
            self._add_numbers(looked, kind, typed_numbers(different, kind))
            if self.is_target and self.texts.too_many is None:
                names = Values(looked.used, different, kind).names()
                self.texts.count(looked, names, np.full(len(names), TextKind.NUMBER, np.int8))
        elif len(different):
            self.texts.declared += int(looked.counts.sum()) * looked.values.is_declared
            self._add_texts(looked, Values(np.arange(len(different)), different, kind))
        self.rows += batch.count

    def _add_texts(self, looked: Looked, values: Values) -> None:
        texts = values.different if values.kind is None else text_array(values.names())
        kinds = self.texts.add(looked, texts, self.options.decimal)
        if kinds is None:
            return
        is_number = kinds == TextKind.NUMBER
        if self.points is not None and is_number.any():
            self.points.add(taken(texts, is_number))
        for kind, readable in _READABLE.items():
            is_read = np.isin(kinds, list(readable))
            if is_read.any():
                read = Values(values.indices, texts).numbers(kind, self.options.decimal)
                self._add_numbers(looked, kind, np.where(is_read, read, np.nan))

    def _add_numbers(self, looked: Looked, kind: ColumnKind, numbers: Floats) -> None:
        """Look at what the values are as numbers of a kind, NaN for others."""
        facts = self.facts.setdefault(kind, Facts(whole=set() if self.is_target else None))
        facts.add(numbers[~np.isnan(numbers)])
        if kind is ColumnKind.NUMBER and not self.is_inexact and max(-facts.low, facts.high) >= INEXACT:
            largest = looked.values.different[int(looked.used[np.nanargmax(np.abs(numbers))])]
            self.is_inexact = str(largest.as_py()).lstrip("+-").isdigit()
        if self.beyond is None and max(-facts.low, facts.high) > LARGEST:
            place = looked.first(np.abs(numbers) > LARGEST)
            number = numbers[looked.used == looked.values.indices[place.order - self.rows]][0]
            self.beyond = msgspec.structs.replace(place, text=repr(float(number)))

    def _is_named(self) -> bool:
        return self.name in (*self.options.categories, *(self.options.one_hot or ()))

    def _note(self) -> str:
        """Return a line about values that may be misread; empty without such values."""
        named, points = one_line(self.name, 60), self.points
        if self.is_inexact:
            drop = "" if self.is_target else f", or {self.options.spelled('drop', [self.name])}"
            return (
                f"{named!r} has whole numbers above 2^53, whose last digits are lost; if they are names, give "
                f"{self._as_names()}{drop}"
            )
        if points is None or points.grouped is None or points.has_fractions or not points.has_whole:
            return ""
        return (
            f"{named!r} has {points.grouped} among whole numbers, and is read with a fraction; if the point separates "
            "thousands, write the numbers without it"
        )

    def plan(self) -> ColumnPlan:
        """Return what the column is; DataError with row, column and value if that is not clear."""
        kind = self._kind()
        self._check_values(kind)
        if self.is_target:
            return self._target(kind)
        facts = self.facts.get(kind, Facts())
        if kind is ColumnKind.CATEGORY:
            is_filled = self.options.is_filled() and self.missing > 0
            names = in_order([*self.texts.distinct, ""] if is_filled else list(self.texts.distinct))
            chosen = self.options.one_hot
            # Of two names, a code says as much as two inputs.
            one_hot = 2 < len(names) <= FEW_NAMES if chosen is None else self.name in chosen
            column = Column(name=self.name, kind=kind, categories=names, one_hot=one_hot)
            # Its numbers are of no interest.
            return ColumnPlan(column, False, Facts(), self.missing)
        return ColumnPlan(Column(name=self.name, kind=kind), False, facts, self.missing, self._note())

    def _kind(self) -> ColumnKind:
        found = {kind for kind, count in self.typed.items() if count}
        if self.texts.counts:
            found.add(self._kind_of_texts())
        if len(found) > 1:
            several = " and ".join(sorted(kind.value for kind in found))
            raise DataError(f"column {one_line(self.name, 60)!r} has values of two kinds, {several}: expected one")
        return next(iter(found), ColumnKind.CATEGORY if self._is_named() else ColumnKind.NUMBER)

    def _kind_of_texts(self) -> ColumnKind:
        present, task = set(self.texts.counts), self.options.task if self.is_target else None
        is_number = self.name in self.options.numbers or task == "numbers"
        if self._is_named() or (self.texts.declared and not is_number):
            return self._category()
        codes = TextKind.PADDED in present and self.texts.is_digits and not is_number
        pure = next((kind for kind, readable in _READABLE.items() if present <= readable), None)
        if pure is not None and not codes:
            return pure
        if is_number and self.is_target and present == {TextKind.NAME}:
            return self._category()  # which `_target` refuses, with the advice for texts
        if is_number:
            odd = self.texts.first_of(present - _READABLE[ColumnKind.NUMBER])
            raise DataError(f"{odd} is not a number: {self._advice(odd, ColumnKind.NUMBER)}")
        if not codes and task != "classes":
            self._check_family()
        return self._category()

    def _check_family(self) -> None:
        """Raise DataError if most values are of a kind that not all of them are."""
        total, distinct = sum(self.texts.counts.values()), Counter(self.texts.distinct.values())
        for kind, members, expected in _FAMILIES:
            count = sum(self.texts.counts[member] for member in members)
            if 2 * count < total and 2 * sum(distinct[member] for member in members) < len(self.texts.distinct):
                continue
            odd = self.texts.first_of(set(self.texts.counts) - (_READABLE[kind] if kind is not None else set()))
            share = f", as {count:,} of the {total:,} values in the column are" if count < total else ""
            raise DataError(f"{odd} is not {expected}{share}: {self._advice(odd, kind)}")

    def _category(self) -> ColumnKind:
        """Return that the texts are categories; DataError if they are too many, or each occurs once."""
        spelled, texts, total = self.options.spelled, self.texts, sum(self.texts.counts.values())
        drop = f"{spelled('drop', [self.name])} leaves the column out"
        if texts.too_many is not None:
            advice = f"expected another {spelled('target')}" if self.is_target else drop
            raise DataError(
                f"{texts.too_many} is one text more than the {texts.most:,} that categories may have: {advice}"
            )
        if texts.too_long is not None:
            length = f"is a text of {len(texts.too_long.text):,} characters"
            raise DataError(f"{texts.too_long} {length}: expected at most {LONGEST_TEXT:,} of a category; {drop}")
        is_declared = self._is_named() or texts.declared or (self.is_target and self.options.task == "classes")
        if not is_declared and len(texts.distinct) > max(FEW_TEXTS, total // 2):
            place, advice = texts.first_of(set(texts.counts)), f"{self._as_names()} makes each a category"
            raise DataError(
                f"{place} is one of {len(texts.distinct):,} different texts among {total:,}, too many for categories: "
                f"{advice if self.is_target else f'{drop}, {advice}'}"
            )
        return ColumnKind.CATEGORY

    def _as_names(self) -> str:
        spelled = self.options.spelled
        return self.options.task_and_loss("classes") if self.is_target else spelled("categories", [self.name])

    def _advice(self, odd: Place, kind: ColumnKind | None) -> str:
        """Return what a person may type if a text is not of the kind that the others are."""
        spelled, is_ = self.options.spelled, kinds_of(text_array([odd.text]), self.options.decimal)[0]
        names = f"{self._as_names()} if its values are names"
        flags = [names] if self.is_target else [f"{spelled('drop', [self.name])} to leave the column out", names]
        begin = ""
        if kind is None:
            begin = "write hours or seconds as a number; or "
        elif kind is ColumnKind.NUMBER and self._has_commas(odd.text):
            flags.insert(0, f"{spelled('decimal', ',')} if the comma begins its fraction")
        elif kind is ColumnKind.NUMBER and is_ == TextKind.WRITTEN_NUMBER:
            begin = f"write it plainly, like 1234{self.options.decimal}5; or "
        elif kind is ColumnKind.DATE:
            begin = "write it like 2020-12-31; or "
        elif is_ != TextKind.NAME:
            begin = "correct it; or "
        if is_ == TextKind.NAME:
            flags.insert(0, f"{self._na(odd.text)} if it stands for a missing value")
        *others, last = flags
        return f"{begin}give {', '.join([*others, f'or {last}' if others else last])}"

    def _has_commas(self, text: str) -> bool:
        """Tell whether numbers have a comma where others have a point: not if some have one, or commas of thousands."""
        if self.options.decimal != "." or not self.texts.is_digits or not re.fullmatch(r"[+-]?\d*,\d+", text):
            return False
        return not (self.texts.counts[TextKind.NUMBER] and re.fullmatch(r"[+-]?\d{1,3},\d{3}", text))

    def _na(self, text: str) -> str:
        """Return what makes a text a missing value, with a rule for these."""
        spelled, is_ruled = self.options.spelled, self.options.missing == "drop" or self.options.is_filled()
        rule = spelled("missing", "drop" if self.is_target else "mean")
        return spelled.together(spelled("na", [*self.options.na, text]), *([] if is_ruled else [rule]))

    def _check_values(self, kind: ColumnKind) -> None:
        """Raise DataError for a value that is missing without a rule, infinite, or larger than float32 holds."""
        spelled = self.options.spelled
        if self.missing and self.options.missing is None:
            assert self.first_missing is not None
            drop, mean = spelled("missing", "drop"), spelled("missing", "mean")
            rules = f"a rule: {drop}, {mean} or {spelled('missing', 0)}"
            if self.is_target:
                rules = f"{drop}; {mean} leaves this row out too, and fills in other columns"
            elif kind is ColumnKind.CATEGORY:
                rules = f"a rule: {drop}, or {mean}, which makes a missing text a category"
            raise DataError(f"{self.first_missing.where}: is missing: expected a value, or {rules}")
        if kind is ColumnKind.CATEGORY or self.beyond is None:
            return
        if np.isinf(float(self.beyond.text)):
            advice = f"correct it, or give {self._na(self.beyond.text)}"
            raise DataError(f"{self.beyond.where}: {self.beyond.text} is infinite: {advice}")
        raise DataError(
            f"{self.beyond.where}: {self.beyond.text} is larger than float32 holds: expected at most {LARGEST:.1e}; "
            f"divide the column, or give {self._na(self.beyond.text)} if it stands for a missing value"
        )

    def _target(self, kind: ColumnKind) -> ColumnPlan:
        task, facts, several = self.options.task, self.facts.get(kind, Facts()), len(self.options.target) > 1
        named, spelled = one_line(self.name, 60), self.options.spelled
        most = max(FEW_IN_ANY_CASE, min(FEW, (self.rows - self.missing) // ROWS_EACH))
        few = facts.whole is not None and 0 < len(facts.whole) <= most and not several
        is_named = kind is ColumnKind.CATEGORY
        if task == "numbers" or not (task == "classes" or is_named or few):
            if is_named:
                what = "has texts, of which no number can be predicted"
                raise DataError(f"column {named!r} {what}: expected {self._as_names()}")
            column = Column(name=self.name, kind=kind)
            return ColumnPlan(column, True, facts, note=self._note())
        if several:
            raise DataError(
                f"{len(self.options.target)} columns with classes are to be predicted: expected one {spelled('target')}"
            )
        if not is_named and facts.whole is None:
            advice = self.options.task_and_loss("numbers")
            raise DataError(f"column {named!r} has numbers with digits after the point: expected {advice}")
        if kind is ColumnKind.NUMBER and max(abs(facts.low), abs(facts.high)) >= INEXACT:
            kind = ColumnKind.CATEGORY
        is_named = kind is ColumnKind.CATEGORY
        names = in_order(list(self.texts.distinct)) if is_named else names_of(kind, sorted(facts.whole or ()))
        if len(names) == 1:
            raise DataError(
                f"column {named!r} has one class only, {one_line(names[0], 60)!r}: expected at least two to tell apart"
            )
        return ColumnPlan(Column(name=self.name, kind=kind, categories=names), True, facts)


class TablePlan(msgspec.Struct, frozen=True):
    """The kinds of the columns of a table."""

    features: Sequence[ColumnPlan]
    targets: Sequence[ColumnPlan]
    #: Columns that are not learned from, with the reason.
    left_out: dict[str, str]
    #: Rows of each table, without those that are left out; and how many these are.
    rows: Sequence[int]
    dropped: int

    @property
    def inputs(self) -> int:
        """The number of inputs that a row gives a model."""
        return sum(len(each.column.categories) if each.column.one_hot else 1 for each in self.features)

    def lines(self, options: PackOptions, most: int | None = None) -> list[str]:
        """Return what a person is to read of the columns, a line each, of not more than so many of them."""
        rows = [plan.described(options) for plan in (*self.features, *self.targets)]
        rows += [(one_line(name, 40) or "(no name)", "left out", reason) for name, reason in self.left_out.items()]
        more = [] if most is None or len(rows) <= most else [f"  … and {len(rows) - most:,} more"]
        rows = rows[:most]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            f"  {name:<{widths[0]}}  {taken:<{widths[1]}}  {values}".rstrip() for name, taken, values in rows
        ] + more


def _plans_of(surveys: Sequence[ColumnSurvey]) -> list[ColumnPlan]:
    """Return what columns are; DataError with the first that is not clear, and the names of the others."""
    plans, refused = list[ColumnPlan](), dict[str, DataError]()
    for each in surveys:
        try:
            plans.append(each.plan())
        except DataError as error:
            refused[each.name] = error
    if refused:
        first, *others = refused
        raise DataError(f"{refused[first]}{too(others)}")
    return plans


def survey(tables: Sequence[Table], features: Sequence[str], options: PackOptions) -> TablePlan:
    """Look at all rows of tables; DataError with row, column and value for what cannot be learned from."""
    columns = [*features, *options.target]
    may_group = any(table.may_group for table in tables)
    points = [PointSurvey() if may_group else None for _ in columns]
    found = [
        ColumnSurvey(name, name in options.target, options, each) for name, each in zip(columns, points, strict=True)
    ]
    counts, dropped = [], 0
    for table in tables:
        kept = 0
        for batch in table.batches(columns):
            rows = batch.has_all(options.needed(batch.columns))
            for each in found:
                each.add(batch, rows)
            here = int(np.count_nonzero(rows))
            kept, dropped = kept + here, dropped + batch.count - here
        counts.append(kept)
    if not counts[0]:
        raise DataError(f"{tables[0].named}: no rows are left to learn from: expected some")
    plans = _plans_of(found)
    left_out = {name: options.spelled("drop") for name in options.drop} | (
        {} if options.columns else tables[0].without_use()
    )
    count = len(features)
    return TablePlan(plans[:count], plans[count:], left_out, counts, dropped)

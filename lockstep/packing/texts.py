"""The kinds of texts of a table: numbers, dates, names, or numbers as people write them. Knows no rows or columns.

A text is a number only if it is nothing else: `1,234`, `$5` and `5%` are refused, since their writer meant a number and
a program may read another one.
"""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.common.data.columns import ColumnKind, Floats


class TextKind(IntEnum):
    """The kind of a text, taken alone."""

    NAME = 0
    NUMBER = 1
    #: Digits that begin with a zero, as of postal codes: `007`.
    PADDED = 2
    BOOLEAN = 3
    DATE = 4
    #: A number with separators, a currency or a percent sign.
    WRITTEN_NUMBER = 5
    #: A date whose order of day and month cannot be known, or that does not exist.
    WRITTEN_DATE = 6
    TIME = 7


#: Texts that stand for a missing value in any table: those of pyarrow, and what pandas prints.
MISSING_TEXTS = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
    *("N/A", "NA", "NULL", "NaN", "n/a", "nan", "null"),
)

_NUMBER = r"^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|(?i:inf|infinity))$"
_PADDED = r"^0\d"
_DATE = r"^\d{4}-\d{2}-\d{2}(?:[ T]\d{2}(?::\d{2}(?::\d{2}(?:\.\d{1,9})?)?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?)?$"
_ZONED = r"^.{10}.+(?:Z|[+-]\d{2}(?::?\d{2})?)$"
_MONTH = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_WRITTEN_DATE = (
    r"^(?:\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-](?:\d{2}|\d{4})"
    rf"|\d{{1,2}}[ -]{_MONTH}[ -]\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{4}})(?:[ T]\d.*)?$"
)
# The separators are also an apostrophe and two kinds of blanks that people use between thousands.
_WRITTEN_NUMBER = (
    r"^\(?[+-]? ?[$€£¥]? ?[+-]?(?:\d{1,3}(?:[,.'_ \x{2019}\x{a0}\x{202f}]\d{3})+(?:[.,]\d+)?|\d+[.,]?\d*|[.,]\d+)"
    r"(?:[ \x{a0}]?[%$€£¥])?\)?$"
)
#: Tried in this order, on texts that are not plain numbers or dates.
_WRITTEN = (
    (TextKind.BOOLEAN, r"^(?i:true|false)$"),
    (TextKind.TIME, r"^\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?(?i:am|pm))?$"),
    (TextKind.WRITTEN_DATE, _WRITTEN_DATE),
    (TextKind.WRITTEN_NUMBER, _WRITTEN_NUMBER),
)


#: No text, as Arrow has it.
_NOTHING = pa.nulls(1, pa.string())[0]


# `pa.array`, `pa.scalar`, `to_numpy` and constants among arguments of kernels import pandas, if it is installed: that
# takes as long as reading a hundred thousand rows.


def text_array(texts: Sequence[str]) -> pa.StringArray:
    """Return texts as Arrow's, without importing pandas."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def taken(values: Any, places: NDArray[np.int64] | NDArray[np.bool_]) -> Any:
    """Return Arrow's values at places, or those that a mask has, without importing pandas."""
    indices = np.ascontiguousarray(np.flatnonzero(places) if places.dtype == np.bool_ else places, np.int64)
    return values.take(pa.Int64Array.from_buffers(pa.int64(), len(indices), [None, pa.py_buffer(indices)]))


def as_numpy(values: Any, missing: float) -> NDArray[Any]:
    """Return Arrow's numbers or truth values, with `missing` in place of nulls, without importing pandas."""
    plain = pa.Array.from_buffers(values.type, len(values), [None, values.buffers()[1]], offset=values.offset)
    is_truth = pa.types.is_boolean(plain.type)
    found = np.from_dlpack(plain.cast(pa.uint8()) if is_truth else plain)
    found = found.view(np.bool_) if is_truth else found
    return np.where(as_numpy(values.is_valid(), False), found, missing) if values.null_count else found


def kinds_of(texts: pa.StringArray, decimal: str = ".") -> NDArray[np.int8]:
    """Return the `TextKind` of each text, none of which is missing: int8 (n,)."""
    plain = _with_point(texts, decimal)
    if _are_numbers(plain):
        return np.full(len(texts), np.int8(TextKind.NUMBER))
    kinds = np.where(matches(plain, _NUMBER), np.int8(TextKind.NUMBER), np.int8(TextKind.NAME))
    kinds[matches(plain, _PADDED) & matches(plain, r"^\d+$")] = TextKind.PADDED
    if kinds.all():
        return kinds
    dated = matches(texts, _DATE)
    kinds[dated] = np.where(np.isnan(dates_of(taken(texts, dated))), TextKind.WRITTEN_DATE, TextKind.DATE)
    for kind, pattern in _WRITTEN:
        kinds[(kinds == TextKind.NAME) & matches(texts, pattern)] = kind
    return kinds


def _are_numbers(texts: pa.StringArray) -> bool:
    """Tell, sooner than by patterns, whether all texts are numbers, none with a zero before it; perhaps False if so."""
    try:
        # Names are told from numbers by a few of them: each that is none costs more than ten that are.
        texts.slice(0, 16).cast(pa.float64())
        values = _as_floats(texts.cast(pa.float64()))
    except pa.ArrowInvalid:
        return False
    return not np.isnan(values).any() and not matches(texts, _PADDED).any()


def numbers_of(texts: pa.StringArray, decimal: str = ".") -> Floats:
    """Return the texts as numbers, NaN for other texts: float64 (n,)."""
    plain = _with_point(texts, decimal)
    try:
        return _as_floats(plain.cast(pa.float64()))
    except pa.ArrowInvalid:
        is_number = pc.match_substring_regex(plain, _NUMBER)
        return _as_floats(pc.if_else(is_number, plain, _NOTHING).cast(pa.float64()))


def dates_of(texts: pa.StringArray) -> Floats:
    """Return dates in microseconds since 1970, those with a zone as UTC, NaN for other texts: float64 (n,)."""
    exact = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    is_date, is_zoned = (pc.match_substring_regex(texts, pattern) for pattern in (_DATE, _ZONED))
    found = np.full(len(texts), np.nan)
    for is_one, kind in ((is_zoned, pa.timestamp("us", "UTC")), (pc.invert(is_zoned), pa.timestamp("us"))):
        chosen = pc.if_else(pc.and_(is_date, is_one), exact, _NOTHING)
        try:
            moments = chosen.cast(kind)
        except pa.ArrowInvalid:
            moments = pa.array([_moment(text, kind) for text in chosen], kind)
        np.copyto(found, _as_floats(moments.cast(pa.int64())), where=as_numpy(moments.is_valid(), False))
    return found


def _moment(text: pa.StringScalar, kind: pa.DataType) -> Any:
    """Return a text as a moment, None for a day that does not exist."""
    try:
        return text.cast(kind)
    except pa.ArrowInvalid:
        return None


def booleans_of(texts: pa.StringArray) -> Floats:
    """Return 1 for true and 0 for false, in any case, NaN for other texts: float64 (n,)."""
    truths = {"true": 1.0, "false": 0.0}
    return np.array([truths.get((text or "").lower(), np.nan) for text in texts.to_pylist()], np.float64)


def number_name(value: float) -> str:
    """Return a number as a name: without a point if it is whole."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def exact_name(value: int | Decimal) -> str:
    """Return a number as a name, as `number_name` if float64 holds it."""
    if isinstance(value, int):
        return str(value)
    near = float(value)
    if Decimal(repr(near)) == value:
        return number_name(near)
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def date_name(moment: float) -> str:
    """Return the name of a date, which is microseconds since 1970: a day if it is at midnight."""
    if abs(moment) >= 2**63:
        return number_name(moment)
    exact = np.int64(moment).astype("datetime64[us]")
    unit = next((unit for unit in ("D", "s") if exact.astype(f"datetime64[{unit}]") == exact), "us")
    return str(exact.astype(f"datetime64[{unit}]")).replace("T", " ")


def names_of(kind: ColumnKind, values: Iterable[float]) -> list[str]:
    """Return the names of values of a kind."""
    if kind is ColumnKind.DATE:
        return list(map(date_name, values))
    if kind is ColumnKind.BOOLEAN:
        return ["true" if value else "false" for value in values]
    return list(map(number_name, values))


def in_order(names: set[str] | list[str]) -> list[str]:
    """Return names as they are numbered: by the alphabet, or by size if all are numbers."""
    if names and all(re.match(r"^-?(0|[1-9]\d*)(\.\d+)?$", name) for name in names if name):
        # By all digits, of which float64 may not hold some.
        return sorted(names, key=lambda name: (Decimal(name or "-Infinity"), name))
    return sorted(names)


def _with_point(texts: pa.StringArray, decimal: str) -> pa.StringArray:
    if decimal == ".":
        return texts
    # So that 1.5 is not a number then.
    return pc.replace_substring(pc.replace_substring(texts, ".", "\0"), decimal, ".")


def matches(texts: pa.StringArray, pattern: str) -> NDArray[np.bool_]:
    """Return whether each text has a pattern in it, (n,); a missing one has none."""
    return as_numpy(pc.match_substring_regex(texts, pattern), False).astype(np.bool_, copy=False)


def _as_floats(values: Any) -> Floats:
    return np.asarray(as_numpy(values, np.nan), np.float64)

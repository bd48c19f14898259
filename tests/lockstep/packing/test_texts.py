"""A text is one kind of thing, and a date or a number is read to its last digit, or not at all."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from lockstep.packing.texts import (  # noqa: E402  # the extra may be missing
    TextKind,
    as_numpy,
    dates_of,
    kinds_of,
    numbers_of,
    taken,
    text_array,
)

#: A moment with a part of a second that has six digits.
NOON = datetime(2024, 3, 1, 12, 34, 56, 123456, UTC)

#: Dates as people write them, and the moments that they are.
DATES: dict[str, datetime] = {
    "2024-03-01": datetime(2024, 3, 1, tzinfo=UTC),
    "1969-12-31": datetime(1969, 12, 31, tzinfo=UTC),
    "2024-03-01 12:34": NOON.replace(second=0, microsecond=0),
    "2024-03-01T12:34:56.1": NOON.replace(microsecond=100_000),
    "2024-03-01 12:34:56.123456": NOON,
    # Digits below a microsecond are left out.
    "2024-03-01 12:34:56.123456789": NOON,
    "2024-03-01T12:34:56.1234567Z": NOON,
    "2024-03-01T12:34:56.123456789+02:00": NOON - timedelta(hours=2),
    "2024-03-01T12:34:56Z": NOON.replace(microsecond=0),
    "2024-03-01 12:34:56.123456+02:30": NOON - timedelta(hours=2, minutes=30),
    "2024-03-01 12:34:56.123456-0800": NOON + timedelta(hours=8),
    "2024-03-01 12:34:56.123456+01": NOON - timedelta(hours=1),
}


@pytest.mark.parametrize("text", DATES)
def test_a_date_is_the_moment_that_it_names(text: str) -> None:
    since = DATES[text] - datetime(1970, 1, 1, tzinfo=UTC)
    assert dates_of(pa.array([text])).tolist() == [since / timedelta(microseconds=1)]
    assert kinds_of(pa.array([text])).tolist() == [TextKind.DATE]


def test_dates_with_and_without_a_zone_keep_their_places_among_others() -> None:
    texts = ["2024-03-01", None, "2024-03-01T02:00:00+02:00", "soon", "2024-02-30", "2024-02-30T00:00Z", "2024-03-02Z"]
    day = (datetime(2024, 3, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)
    found = dates_of(pa.array(texts))
    np.testing.assert_array_equal(found[:6], [day, np.nan, day, np.nan, np.nan, np.nan])


#: Numbers by what comes before the fraction, with the texts that only look like one.
NUMBERS: dict[str, dict[str, float | None]] = {
    ".": {"1.234": 1.234, "-.5": -0.5, "2e3": 2000.0, "1,234": None, "1,5": None, "1.234,5": None, "x": None},
    ",": {"1,234": 1.234, "-,5": -0.5, "2e3": 2000.0, "1.234": None, "1.5": None, "1.234,5": None, "x": None},
}


@pytest.mark.parametrize("decimal", NUMBERS)
def test_a_separator_of_thousands_is_never_taken_for_the_decimal_sign(decimal: str) -> None:
    texts = pa.array(list(NUMBERS[decimal]))
    expected = [np.nan if value is None else value for value in NUMBERS[decimal].values()]
    np.testing.assert_array_equal(numbers_of(texts, decimal), expected)
    kinds = dict(zip(NUMBERS[decimal], kinds_of(texts, decimal).tolist(), strict=True))
    assert {text for text, kind in kinds.items() if kind == TextKind.NUMBER} == {
        text for text, value in NUMBERS[decimal].items() if value is not None
    }
    assert kinds["1.234,5"] == TextKind.WRITTEN_NUMBER
    assert kinds["1,234" if decimal == "." else "1.234"] == TextKind.WRITTEN_NUMBER


def test_a_table_without_thousands_is_not_read_otherwise() -> None:
    # All are numbers, so that none of them is looked at alone.
    np.testing.assert_array_equal(numbers_of(pa.array(["1,5", "-2,25", "3"]), ","), [1.5, -2.25, 3.0])


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()])
@pytest.mark.parametrize("values", [[1, 0, 1, 1, 0], [None, 1, None, 0, 1], [None] * 5, []])
@pytest.mark.parametrize("begin", [0, 3])
def test_values_of_arrow_become_those_of_numpy(kind: object, values: list[int | None], begin: int) -> None:
    # A part of an array shares its memory, and a truth value has a bit there.
    found = as_numpy(pa.array(values).cast(kind).slice(begin), 7)
    np.testing.assert_array_equal(found, [7 if value is None else value for value in values[begin:]])


def test_texts_become_those_of_arrow_and_are_taken_by_place_or_mask() -> None:
    texts = text_array(["a", "", "größer", "d"])
    assert texts.to_pylist() == ["a", "", "größer", "d"]
    assert taken(texts, np.array([2, 2, 0])).to_pylist() == ["größer", "größer", "a"]
    assert taken(texts.slice(1), np.array([True, False, True])).to_pylist() == ["", "d"]
    assert taken(text_array([]), np.zeros(0, np.bool_)).to_pylist() == []

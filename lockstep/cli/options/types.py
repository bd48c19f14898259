"""Kinds of command-line values that click does not have."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # for its name alone: a worker needs nothing of what it would import
    from lockstep.runs.trained_model import Moment


def seconds(text: str) -> float:
    """Return a time, finite and at least a tenth: click's own range lets `nan` through. Raises BadParameter."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.1 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is not a valid time: expected seconds, at least 0.1")
    return number


def share_below_one(text: str) -> float:
    """Return a share that leaves something of the whole, given as `20%` or `0.2`. Raises BadParameter."""
    number, sign, rest = text.strip().partition("%")
    try:
        part = float(number) / (100.0 if sign else 1.0)
    except ValueError:
        part = math.nan
    if rest or not 0.0 <= part < 1.0:
        raise click.BadParameter(f"{text!r} is not a valid share: expected less than 100%, as 20% or 0.2")
    return part


def moment(text: str) -> "Moment":
    """Return which of a run's weights `last`, `best` or a number of steps names. Raises BadParameter."""
    if text == "last":
        return "last"
    if text == "best":
        return "best"
    if text == "ema":
        return "ema"
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    raise click.BadParameter(f"{text!r} does not name weights: expected last, best, ema, or a number of steps, as 400")


def number_range(text: str, total: int | None = None) -> range:
    """Return the numbers that a range names: `A..B`, with both ends, or one number.

    Of `total` numbers in all, either end may be left out. Raises BadParameter.
    """
    found = re.fullmatch(r"([0-9]{1,18})?(\.\.)?([0-9]{1,18})?", text)
    numbers = range(0)
    if found is not None and (text.isdigit() or (found[2] and (total is not None or (found[1] and found[3])))):
        first, last = int(found[1] or 0), int(found[3] or (total or 0) - 1)
        numbers = range(first, (last if found[2] else first) + 1)
    if not numbers or (total is not None and numbers.stop > total):
        within = "A <= B" if total is None else f"0 <= A <= B <= {total - 1}"
        raise click.BadParameter(f"{text!r} is not a valid range: expected A..B with {within}, or one number")
    return numbers


def worker_counts(text: str) -> dict[str, int]:
    """Return what a number of workers, or the fewest and the most of them, say of a launch. Raises BadParameter."""
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        return {"workers": int(text)}
    with suppress(click.BadParameter):
        numbers = number_range(text)
        if numbers.start >= 1:
            # It begins with the fewest.
            return {"workers": numbers.stop - 1, "min_workers": numbers.start}
    raise click.BadParameter(f"{text!r} is not a number of workers: expected one as 4, or FEWEST..MOST as 2..16")


def whole_number(least: int, most: int | None = None) -> Callable[[object], int]:
    """Return what makes a text a whole number within bounds.

    The bounds are in the error, and not in the help as those of `click.IntRange`.
    """

    def convert(value: object) -> int:
        text = str(value).strip()
        number = int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else None
        if number is None or number < least or (most is not None and number > most):
            bounds = f">= {least}" if most is None else f"from {least} to {most}"
            raise click.BadParameter(f"{text!r}: expected a whole number {bounds}")
        return number

    return convert


#: The range of seeds: that of a job's.
SEED = whole_number(0, 2**63 - 1)

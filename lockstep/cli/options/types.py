"""Kinds of command-line values that click does not have."""

import math
import re
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


def share(text: str) -> float:
    """Return a part of a whole, given as `1%` or `0.01`. Raises BadParameter."""
    number, sign, rest = text.strip().partition("%")
    try:
        part = float(number) / (100.0 if sign else 1.0)
    except ValueError:
        part = math.nan
    if rest or not 0.0 <= part <= 1.0:
        raise click.BadParameter(f"{text!r} is not a valid share: expected 0% to 100%, or a number from 0 to 1")
    return part


def moment(text: str) -> "Moment":
    """Return which of a run's weights `last`, `best` or a number of steps names. Raises BadParameter."""
    if text == "last":
        return "last"
    if text == "best":
        return "best"
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    raise click.BadParameter(f"{text!r} names no weights: expected last, best, or a number of steps, as 400")


def number_range(text: str) -> range:
    """Return the numbers that `A:B` names, from A to before B, or the one of `A`. Raises BadParameter."""
    found = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    numbers = range(int(found[1]), int(found[2] or int(found[1]) + 1)) if found else range(0)
    if not numbers:
        raise click.BadParameter(f"{text!r} names no numbers: expected A:B with A < B, or one number")
    return numbers


def crowd(text: str) -> int | tuple[int, int]:
    """Return a number of workers, or the fewest and the most that `A..B` names. Raises BadParameter."""
    if re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        return int(text)
    found = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise click.BadParameter(f"{text!r} is not a number of workers: expected one as 4, or FEWEST..MOST as 2..16")
    return int(found[1]), int(found[2])

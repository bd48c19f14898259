"""Kinds of command-line values that click does not have."""

import math
import re

import click


def seconds(text: str) -> float:
    """Return a time, finite and at least a tenth: click's own range lets `nan` through. Raises BadParameter."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.1 <= number < math.inf:
        raise click.BadParameter(f"{text!r} is no time: expected seconds, at least 0.1")
    return number


def number_range(text: str) -> range:
    """Return the numbers that `A:B` names, from A to before B, or the one of `A`. Raises BadParameter."""
    found = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", text)
    numbers = range(int(found[1]), int(found[2] or int(found[1]) + 1)) if found else range(0)
    if not numbers:
        raise click.BadParameter(f"{text!r} names no numbers: expected A:B with A < B, or one number")
    return numbers

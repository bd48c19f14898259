"""Kinds of command-line values that click does not have."""

import math

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

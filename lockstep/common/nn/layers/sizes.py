"""Sizes that are given as one number for all axes or as one for each axis."""

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex


def positive(value: SupportsIndex, what: str) -> int:
    """Return `value` as an int; TypeError if it is not an integer, ValueError below 1. `what` names it in the text."""
    return _checked(value, what, at_least=1)


def per_axis(value: SupportsIndex | Sequence[int], axes: int, what: str, at_least: int = 1) -> tuple[int, ...]:
    """Return one number for each of `axes` axes; TypeError, ValueError if that cannot be or one is too small."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(sizes) != axes:
        raise ValueError(f"{what} is {value!r}: expected one integer, or {axes} of them")
    return tuple(_checked(size, what, at_least) for size in sizes)


def one_or_each(value: SupportsIndex | Sequence[int], axes: int, what: str, at_least: int = 1) -> int | tuple[int, ...]:
    """Check as `per_axis` does, and return one int if one was given."""
    sizes = per_axis(value, axes, what, at_least)
    return sizes[0] if isinstance(value, SupportsIndex) else sizes


def volume(value: object, axes: int = 1) -> int:
    """Return the product of unchecked sizes, given one by one or as one for all axes; else 1."""
    if isinstance(value, list | tuple):
        return math.prod(volume(size) for size in value)
    return max(1, value) ** axes if isinstance(value, int) else 1


def _checked(value: SupportsIndex, what: str, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{what} is {value!r}: expected an integer")
    size = operator.index(value)
    if size < at_least:
        raise ValueError(f"{what} is {size!r}: expected at least {at_least}")
    return size

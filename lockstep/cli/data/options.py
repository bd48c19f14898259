"""Flags that say how a source becomes a dataset, of `pack` and of `train`."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from lockstep.packing.options import Missing, PackOptions

F = TypeVar("F", bound=Callable[..., Any])


def size(text: str) -> tuple[int, int]:
    """Return (height, width), given as `32x48` or `32`. Raises BadParameter."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text.strip().lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a valid size: expected pixels as HEIGHTxWIDTH, like 32x32")
    return int(found[1]), int(found[2] or found[1])


def missing(text: str) -> Missing:
    """Return what a missing value becomes. Raises BadParameter."""
    if text in ("drop", "mean"):
        return text  # type: ignore[return-value]  # one of the two that were just compared
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise click.BadParameter(f"{text!r} is not a valid rule: expected drop, mean or a number")
    return number


_OPTIONS = (
    click.option("--target", multiple=True, metavar="COLUMN", help="column to predict; several make a regression"),
    click.option("--columns", multiple=True, metavar="A,B,C", help="columns to learn from  [all others]"),
    click.option("--task", type=click.Choice(["classes", "numbers"]), help="what the target is  [as its values are]"),
    click.option(
        "--missing",
        type=missing,
        metavar="RULE",
        help="what a missing value becomes: drop its row, mean, or a number  [refused]",
    ),
    click.option(
        "--standardize/--no-standardize", default=True, help="bring each column to mean 0 and deviation 1  [yes]"
    ),
    click.option("--size", type=size, metavar="HxW", help="bring pictures to this size  [theirs, if it is one]"),
    click.option("--grayscale", is_flag=True, help="read pictures without their colours"),
    click.option(
        "--dtype", type=click.Choice(["uint8", "float32"]), help="how samples are stored  [as suits the source]"
    ),
    click.option(
        "--test", type=click.Path(path_type=Path), metavar="SOURCE", help="table or folder of pictures to test with"
    ),
    click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="labels of the samples in an .npy"),
    click.option(
        "--test-split",
        type=click.FloatRange(0, 1, max_open=True),
        metavar="SHARE",
        default=0.2,
        help="share that becomes the test set, if the source has none  [0.2]",
    ),
    click.option(
        "--seed", type=click.IntRange(0, 2**63 - 1), metavar="INT", default=0, help="what draws that share  [0]"
    ),
)


def PACK_OPTIONS(command: F) -> F:  # noqa: N802  # used as the flags of other commands are
    """Add the flags of packing."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def options_of(given: Mapping[str, Any]) -> PackOptions:
    """Return what the flags say; columns may be separated by commas."""
    values = dict(given)
    values["target"] = tuple(values["target"])
    values["columns"] = tuple(name for text in values["columns"] for name in _names(text))
    return PackOptions(**values)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

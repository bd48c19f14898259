"""Brings a picture of one digit into MNIST's form: light on dark, in a box of 20x20, centred in 28x28. Pure.

LeCun, Cortes and Burges (yann.lecun.com/exdb/mnist): "The original black and white images were size normalized to fit
in a 20x20 pixel box while preserving their aspect ratio. [...] the images were centered in a 28x28 image by computing
the center of mass of the pixels, and translating the image so as to position this point at the center of the 28x28
field."
"""

import numpy as np

from common.autograd.primitives.primitive import Array
from common.errors import DataError
from lockstep.evaluation.predictions.resampling import resized

FIELD, BOX = 28, 20

#: Where the centre of mass of MNIST's images lies, counted in pixels from 0: 14.0 on average, in both directions.
CENTRE = 14.0

#: Part of the full contrast below which a pixel is paper, and below which a picture is empty.
PAPER, EMPTY = 0.15, 0.05

#: Part of all that is drawn which may be cut off on each side: a speck of dust is less, a row of a digit more.
DUST = 0.002


def as_digit(gray: Array) -> Array:
    """Return a gray picture (h, w), 0 black to 1 white, of a dark or a light digit, as (28, 28), 0 to 1.

    `DataError` where nothing is drawn in it.
    """
    drawn = _drawn(gray)
    rows, columns = _extent(drawn.sum(axis=1)), _extent(drawn.sum(axis=0))
    digit = drawn[rows, columns]
    height, width = digit.shape
    scale = BOX / max(height, width)
    digit = resized(digit, max(1, round(height * scale)), max(1, round(width * scale)))
    # A stroke thinner than a pixel becomes gray when it is made smaller; MNIST's are white in the middle.
    return _centred(np.minimum(1.0, digit / max(float(digit.max()), EMPTY)))


def _drawn(gray: Array) -> Array:
    """Return how much each pixel differs from the paper, which is what lies along the border: 0 to 1."""
    paper = float(np.median(np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])))
    difference = np.abs(gray - paper)
    most = float(difference.max(initial=0.0))
    if most < EMPTY:
        raise DataError(f"nothing is drawn in it: all pixels are within {most:.0%} of one gray; expected a digit")
    drawn = difference / most
    return np.asarray(np.where(drawn < PAPER, 0.0, drawn))


def _extent(sums: Array) -> slice:
    """Return from where to where something is drawn."""
    share = np.cumsum(sums) / sums.sum()
    start, end = np.searchsorted(share, [DUST, 1 - DUST], side="right")
    return slice(int(start), min(int(end) + 1, len(sums)))


def _centred(digit: Array) -> Array:
    """Return the field with the digit's centre of mass in its centre, as far as it stays inside."""
    field = np.zeros((FIELD, FIELD))
    top, left = (_start(digit.sum(axis=1 - axis), digit.shape[axis]) for axis in (0, 1))
    field[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return field


def _start(mass: Array, size: int) -> int:
    centre = float(np.sum(mass * np.arange(size)) / np.sum(mass))
    return min(max(0, round(CENTRE - centre)), FIELD - size)

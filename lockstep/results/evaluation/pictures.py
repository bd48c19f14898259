"""Pictures that become samples as those of the training set did."""

from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import DataError
from lockstep.common.job.losses import LossKind
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import as_dtype
from lockstep.ps.run.description import ArrayForm
from lockstep.results.evaluation.predictor import Predictor

#: The weights of red, green and blue in brightness (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])


class Recognizer(msgspec.Struct, frozen=True):
    """A predictor that accepts pictures of any size."""

    predictor: Predictor
    #: Whether the values of the training set are bytes, and which value is white.
    is_bytes: bool
    white: float
    #: Whether images are brought into MNIST's form, or only resized.
    centres: bool

    @classmethod
    def of(cls, predictor: Predictor, *, centres: bool) -> "Recognizer":
        """Return the recognizer of a model. Raises DataError unless it classifies images of one or three channels."""
        if predictor.kind is LossKind.OWN:
            raise DataError(
                "the model was trained with a loss of your own, and only that knows what the outputs mean: "
                "load_run(RUN).predict(array), in Python, returns them"
            )
        if predictor.kind is not LossKind.CLASSES:
            raise DataError(
                f"the model was trained with loss = {predictor.trained.job.loss!r}: expected a classifier; predict "
                "from an .npy or .npz file with samples as it was trained on"
            )
        train = predictor.data.train
        shape = train.sample_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"the model was trained on samples of shape {shape}: expected images, (1, height, width) or "
                "(3, height, width); predict from an .npy or .npz file with such samples"
            )
        is_bytes = train.images.dtype == np.uint8
        white = 255.0 if is_bytes or train.largest() > 1.5 else 1.0
        # Pictures that were packed from a folder are not brought into MNIST's form: their own were not.
        centres = centres and shape == (1, FIELD, FIELD) and not predictor.data.class_names
        return cls(predictor, is_bytes, white, centres)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample: (channels, height, width)."""
        return self.predictor.data.train.sample_shape

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in order; empty if they have none."""
        return self.predictor.data.class_names

    def probabilities(self, image: Array) -> Array:
        """Return the probability of each class, (classes,), for an image (3, height, width) from 0 to 1."""
        return np.asarray(self.predictor.probabilities(self.stored(image))[0])

    def read(self, path: Path) -> Array:
        """Return the picture in a file as the training set has its samples, (1, channels, height, width).

        If that was packed from pictures, it is read as these were. DataError names a file that is not a picture.
        """
        # Imported here, since the extra may not be installed.
        from lockstep.packing.pictures import PictureReader, named_faults, read_image

        data = self.predictor.trained.data
        if data.kind == "pictures":
            options = options_like(data.inputs[0])
            return as_dtype(PictureReader(options).sample(path)[np.newaxis], options.dtype)
        image = read_image(path)
        with named_faults(path):
            return self.stored(image)

    def stored(self, image: Array) -> Array:
        """Return an image as the training set has its samples, (1, channels, height, width)."""
        sample = self.sample(image)[np.newaxis] * self.white
        return np.rint(sample).astype(np.uint8) if self.is_bytes else sample.astype(np.float32)

    def sample(self, image: Array) -> Array:
        """Return an image in the shape of the samples, from 0 to 1."""
        gray = np.tensordot(_LUMA, image, axes=1)
        if self.centres:
            return as_digit(gray)[np.newaxis]
        return resized(gray[np.newaxis] if self.shape[0] == 1 else image, *self.shape[1:])


def options_like(form: ArrayForm) -> PackOptions:
    """Return the options by which pictures become samples of a form, as those of a packed training set have it."""
    channels, height, width = form.shape
    is_real = form.dtype == "<f4"
    return PackOptions(size=(height, width), grayscale=channels == 1, dtype="float32" if is_real else None)


#: Pixels on each side of MNIST's images, and of the box that a digit fits into.
FIELD, BOX = 28, 20

#: The mean centre of mass of MNIST's images, in pixels from 0, in both directions.
CENTRE = 14.0

#: Share of the full contrast below which a pixel is paper, and below which an image is empty.
PAPER, EMPTY = 0.15, 0.05

#: Share of the ink that may be cut off on each side: more than a speck of dust, less than a row of a digit.
DUST = 0.002


def as_digit(gray: Array) -> Array:
    """Return a gray image (h, w), 0 black to 1 white, of a dark or light digit in MNIST's form, (28, 28) from 0 to 1.

    The digit becomes light on dark, and fits into a box of 20x20 whose centre of mass is in the centre of the field.
    LeCun, Cortes and Burges (yann.lecun.com/exdb/mnist): "The original black and white images were size normalized to
    fit in a 20x20 pixel box while preserving their aspect ratio. [...] the images were centered in a 28x28 image by
    computing the center of mass of the pixels, and translating the image so as to position this point at the center of
    the 28x28 field."

    Raises DataError if nothing is drawn in the image.
    """
    drawn = _drawn(gray)
    rows, columns = _extent(drawn.sum(axis=1)), _extent(drawn.sum(axis=0))
    digit = drawn[rows, columns]
    height, width = digit.shape
    scale = BOX / max(height, width)
    digit = resized(digit, max(1, round(height * scale)), max(1, round(width * scale)))
    # A thin stroke becomes gray when it is made smaller; strokes in MNIST are white in the middle.
    return _centred(np.minimum(1.0, digit / max(float(digit.max()), EMPTY)))


def _drawn(gray: Array) -> Array:
    """Return how much each pixel differs from the paper, the median of the border, from 0 to 1."""
    paper = float(np.median(np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])))
    difference = np.abs(gray - paper)
    most = float(difference.max(initial=0.0))
    if most < EMPTY:
        raise DataError(f"nothing is drawn in it: all pixels are within {most:.0%} of one gray; expected a digit")
    drawn = difference / most
    return np.asarray(np.where(drawn < PAPER, 0.0, drawn))


def _extent(sums: Array) -> slice:
    """Return the range in which something is drawn."""
    share = np.cumsum(sums) / sums.sum()
    start, end = np.searchsorted(share, [DUST, 1 - DUST], side="right")
    return slice(int(start), min(int(end) + 1, len(sums)))


def _centred(digit: Array) -> Array:
    """Return the field with the centre of mass of the digit in its centre, as far as the digit stays inside."""
    field = np.zeros((FIELD, FIELD))
    top, left = (_start(digit.sum(axis=1 - axis), digit.shape[axis]) for axis in (0, 1))
    field[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return field


def _start(mass: Array, size: int) -> int:
    centre = float(np.sum(mass * np.arange(size)) / np.sum(mass))
    return min(max(0, round(CENTRE - centre)), FIELD - size)


def resized(image: Array, height: int, width: int) -> Array:
    """Return a float image (h, w) or (c, h, w) in another size, by a triangle filter as wide as a pixel of the result.

    Averages when the image becomes smaller, and interpolates linearly when it becomes larger. Turkowski, "Filters for
    common resampling tasks", Graphics Gems, 1990.
    """
    rows, columns = _weights(image.shape[-2], height), _weights(image.shape[-1], width)
    return np.asarray(rows @ image @ columns.T)


def _weights(size: int, wanted: int) -> Array:
    """Return the weights (wanted, size) of `size` pixels in each of `wanted` pixels; rows add up to 1."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(size) - centres[:, np.newaxis]) / max(1.0, scale)
    weights = np.maximum(0.0, 1.0 - distance)
    # At the edges, a part of the triangle lies outside.
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))

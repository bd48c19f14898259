"""What a trained model takes pictures for; knows no file of pictures."""

from dataclasses import dataclass

import numpy as np

from common.autograd import functional as F
from common.autograd.graph import no_grad
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.data.preparation import Preparation
from common.errors import DataError
from lockstep.evaluation.predictions.digit import FIELD, as_digit
from lockstep.evaluation.predictions.resampling import resized
from lockstep.runs.dataset import dataset_of
from lockstep.runs.trained import Trained

#: How the eye weighs red, green and blue (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Recognizer:
    """A trained model that takes pictures of any size."""

    trained: Trained
    preparation: Preparation
    #: (channels, height, width).
    shape: tuple[int, ...]
    #: Whether the training set's values are bytes, and which of its values stands for white.
    is_bytes: bool
    white: float
    #: Whether pictures are brought into MNIST's form, or only to the size.
    centres: bool

    @classmethod
    def of(cls, trained: Trained, *, centres: bool) -> "Recognizer":
        """Return one; `DataError` where the model was not trained on images of one or three channels."""
        if trained.job.loss == "mse":
            raise DataError(
                "the model is a regression: expected one of classes; `lockstep evaluate` tells how near it is"
            )
        train = dataset_of(trained.job).train
        shape = train.sample_shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"the model was trained on samples of shape {shape}: expected images, (1, height, width) or "
                "(3, height, width)"
            )
        preparation = Preparation.of(train) if trained.job.normalize else Preparation(mean=0.0, std=1.0)
        is_bytes = train.images.dtype == np.uint8
        white = 255.0 if is_bytes or float(train.images.max()) > 1.5 else 1.0
        return cls(trained, preparation, shape, is_bytes, white, centres and shape == (1, FIELD, FIELD))

    def probabilities(self, picture: Array) -> Array:
        """Return the probability of each class, (classes,), for a picture (3, height, width), 0 to 1."""
        sample = self.sample(picture)[np.newaxis]
        with no_grad():
            logits = self.trained.model(Tensor(self.preparation.images(self._stored(sample))))
            probabilities: Array = F.softmax(logits).data[0]
        return probabilities

    def _stored(self, sample: Array) -> Array:
        """Return a sample as the training set stores its own."""
        scaled = sample * self.white
        return np.rint(scaled).astype(np.uint8) if self.is_bytes else scaled.astype(np.float32)

    def sample(self, picture: Array) -> Array:
        """Return a picture in the shape of the samples, 0 to 1."""
        gray = np.tensordot(_LUMA, picture, axes=1)
        if self.centres:
            return as_digit(gray)[np.newaxis]
        image = gray[np.newaxis] if self.shape[0] == 1 else picture
        return resized(image, *self.shape[1:])

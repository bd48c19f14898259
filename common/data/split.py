"""Keeps a part of the training set out of training, to choose by: the test set is then looked at, and decides nothing.

Who stops a run at its best test figure, or chooses among runs by it, has fitted the test set, and reports a figure that
new data will not give (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 7.2).
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.data.dataset import Dataset, TrainTest
from common.errors import DataError
from common.random import Purpose, generator


def with_validation(data: TrainTest, share: float, seed: int) -> TrainTest:
    """Return the data with that share of the training samples, drawn by the seed, as its validation set.

    What stays keeps its order. With a share of 0, and of data that has a validation set, the data itself is returned.
    Raises DataError where one of the two sets would be empty.
    """
    if not share or data.validation is not None:
        return data
    size = len(data.train)
    kept_out = int(share * size)
    if not 0 < kept_out < size:
        raise DataError(
            f"validation_split = {share!r} of {size} training samples is {kept_out}: expected at least one, and at "
            "least one left to train on"
        )
    drawn = generator(seed, Purpose.VALIDATE).permutation(size)
    return replace(
        data,
        train=_taken(data.train, np.sort(drawn[kept_out:])),
        validation=_taken(data.train, np.sort(drawn[:kept_out])),
    )


def _taken(data: Dataset, places: NDArray[np.int64]) -> Dataset:
    return Dataset(data.images.take(places, axis=0), data.labels.take(places, axis=0), data.classes)

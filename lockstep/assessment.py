"""A trained model on a test set: its loss, and what it takes each sample for."""

from dataclasses import dataclass, replace

import numpy as np

from common.autograd.tensor import Tensor
from common.data.dataset import Dataset, TrainTest
from common.data.evaluation import evaluation_pieces
from common.data.source import load
from common.errors import DataError
from common.nn.module import Module
from common.reduction import Node, Vector
from common.tally import Tally
from lockstep.confusion import Confusion
from lockstep.trained import Trained
from worker.compute import Compute


@dataclass(frozen=True)
class Assessment:
    """What a model came to on a test set."""

    dataset: Dataset
    #: Summed as a run's own evaluation sums it, so that the bits are the same.
    tally: Tally
    #: The model's outputs, (n, classes).
    logits: Vector

    @property
    def confusion(self) -> Confusion:
        return Confusion.of(self.dataset.labels, self.logits.argmax(axis=1), self.logits.shape[1])


def assess(trained: Trained, data: str | None = None) -> Assessment:
    """Test a trained model on its own test set, or on that of another dataset, prepared by its own constants."""
    trained_on = load(trained.job.data)
    compute = Compute(trained.job, trained.model, trained_on)
    compute.weights[...] = trained.weights
    if data is not None:
        compute.data = _with_test_of(trained_on, load(data), data)
    test, pieces = compute.data.test, list[Vector]()

    def keep(name: str, module: Module, output: object) -> None:
        if module is trained.model:
            assert isinstance(output, Tensor)
            pieces.append(output.data.copy())

    with trained.model.observe_outputs(keep):
        tally = compute.evaluate(Node(0, evaluation_pieces(len(test))))
    return Assessment(test, tally, np.concatenate(pieces))


def _with_test_of(trained_on: TrainTest, other: TrainTest, data: str) -> TrainTest:
    shape, classes = trained_on.test.sample_shape, trained_on.test.classes
    if other.test.sample_shape != shape:
        raise DataError(f"{data}: samples of shape {other.test.sample_shape}: expected {shape}, as it was trained on")
    highest = int(other.test.labels.max())
    if highest >= classes:
        raise DataError(f"{data}: has the label {highest}: expected those of {classes} classes, as it was trained on")
    return replace(trained_on, test=replace(other.test, classes=classes))

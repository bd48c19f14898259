"""How large activations and gradients are on their way through the layers, from one pass over a batch."""

from dataclasses import dataclass

import numpy as np

from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.nn.inspection import first_nonfinite_layer
from lockstep.doctor.checks.watching import Call, watched
from lockstep.doctor.target import ExaminationTarget

#: Samples of the batch that is looked at.
SAMPLES = 256


@dataclass(frozen=True)
class Signals:
    """One forward and backward pass in training mode."""

    #: Inner modules before outer ones.
    calls: list[Call]
    #: Mean loss over the batch, and the model's output: (targets, classes), or of a regression (n, targets).
    loss: float
    outputs: Array
    #: 0 in a regression; then the loss of who always answers with the mean of the batch's targets.
    classes: int
    guess: float
    #: Root of the mean square of the prepared samples.
    input_size: float
    #: Of each weight with two axes or more, in order: its name, and the same of its gradient; None without one.
    gradients: list[tuple[str, float | None]]
    #: The first layer whose output is not finite.
    nonfinite: str | None


def signals_of(patient: ExaminationTarget, *, walks_back: bool) -> Signals:
    """Return what a pass over the job's first samples looks like; only forward where gradients are known wrong."""
    probe = patient.probe()
    images, targets = patient.batch(0, SAMPLES)
    x = Tensor(images)
    with np.errstate(all="ignore"):
        nonfinite = first_nonfinite_layer(probe, x)
        with watched(probe) as calls:
            outputs = probe(x)
            loss = patient.objective.training_loss(outputs, targets, "mean")
        if walks_back and loss.requires_grad:
            loss.backward()
    gradients = [
        (name, None if parameter.grad is None else root_mean_square(parameter.grad))
        for name, parameter in probe.named_parameters()
        if parameter.ndim >= 2
    ]
    is_regression = patient.objective.is_regression
    return Signals(
        calls=calls,
        loss=float(loss.data),
        outputs=patient.objective.rows(outputs.data),
        classes=0 if is_regression else patient.data.train.classes,
        guess=float(np.var(targets, axis=0, dtype=np.float64).mean()) if is_regression else 0.0,
        input_size=root_mean_square(images),
        gradients=gradients,
        nonfinite=nonfinite,
    )


def root_mean_square(array: Array) -> float:
    """Return the size of an array's typical element."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))

"""How large activations and gradients are on their way through the layers, from one pass over a batch."""

from dataclasses import dataclass

import numpy as np

from common.autograd import functional as F
from common.autograd.primitives.primitive import Array
from common.autograd.tensor import Tensor
from common.nn.inspection import first_nonfinite_layer
from lockstep.doctor.patient import Patient
from lockstep.doctor.watching import Call, watched

#: Samples of the batch that is looked at.
SAMPLES = 256


@dataclass(frozen=True)
class Signals:
    """One forward and backward pass in training mode."""

    #: Inner modules before outer ones.
    calls: list[Call]
    #: Mean loss over the batch, and the model's output (n, classes).
    loss: float
    logits: Array
    classes: int
    #: Root of the mean square of the prepared samples.
    input_size: float
    #: Of each weight with two axes or more, in order: its name, and the same of its gradient; None without one.
    gradients: list[tuple[str, float | None]]
    #: The first layer whose output is not finite.
    nonfinite: str | None


def signals_of(patient: Patient, *, walks_back: bool) -> Signals:
    """Return what a pass over the job's first samples looks like; only forward where gradients are known wrong."""
    probe = patient.probe()
    images, labels = patient.batch(0, SAMPLES)
    x = Tensor(images)
    with np.errstate(all="ignore"):
        nonfinite = first_nonfinite_layer(probe, x)
        with watched(probe) as calls:
            logits = probe(x)
            loss = F.cross_entropy(logits, labels, label_smoothing=patient.job.label_smoothing)
        if walks_back and loss.requires_grad:
            loss.backward()
    gradients = [
        (name, None if parameter.grad is None else root_mean_square(parameter.grad))
        for name, parameter in probe.named_parameters()
        if parameter.ndim >= 2
    ]
    return Signals(
        calls=calls,
        loss=float(loss.data),
        logits=logits.data,
        classes=patient.data.train.classes,
        input_size=root_mean_square(images),
        gradients=gradients,
        nonfinite=nonfinite,
    )


def root_mean_square(array: Array) -> float:
    """Return the size of an array's typical element."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))

"""Losses as modules; each compares (input, target) and reduces over the batch by `reduction`."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module, layer

#: `mean` over the batch, `sum`, or `none`: the losses of all samples, or of all elements.
Reduction = Literal["mean", "sum", "none"]


class _Loss(Module):
    """The common part of the layers: the reduction of the losses."""

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}: expected 'mean', 'sum' or 'none'")
        self.reduction = reduction


@layer(repeatable=False)
class CrossEntropyLoss(_Loss):
    """Negative log-likelihood of class indices (n,) under logits (n, classes), by softmax.

    For sequences, class indices (n, t) and logits (n, classes, t). With `label_smoothing` ε in [0, 1], a target is 1 -
    ε of its class and ε of all classes evenly. Szegedy et al., "Rethinking the Inception architecture", CVPR 2016,
    section 7. `reduction` is "mean", "sum" or "none". Raises ValueError for other values, and for targets that are not
    classes. `weight` (classes,) is what a target of each class weighs, and one that is `ignore_index` weighs nothing.

    Differs from PyTorch: targets are class indices, never probabilities.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        weight: Sequence[float] = (),
        ignore_index: int = -100,
    ) -> None:
        super().__init__(reduction)
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing!r}: expected a number in [0, 1]")
        self.label_smoothing = label_smoothing
        self.weight = list(weight)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor | NDArray[np.int64]) -> Tensor:
        has_ignored = bool(np.any((target.data if isinstance(target, Tensor) else target) == self.ignore_index))
        return F.cross_entropy(
            logits,
            target,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            weight=self.weight or None,
            ignore_index=self.ignore_index if has_ignored else None,
        )


@layer(repeatable=False)
class NLLLoss(_Loss):
    """Negative log-likelihood of class indices (n,) under log-probabilities (n, classes), as LogSoftmax returns them.

    `reduction` is "mean", "sum" or "none". Raises ValueError for another one, and for targets that are not classes.
    `weight` (classes,) is what a target of each class weighs, and one that is `ignore_index` weighs nothing.
    """

    def __init__(self, reduction: Reduction = "mean", weight: Sequence[float] = (), ignore_index: int = -100) -> None:
        super().__init__(reduction)
        self.weight = list(weight)
        self.ignore_index = ignore_index

    def forward(self, log_probabilities: Tensor, target: Tensor | NDArray[np.int64]) -> Tensor:
        has_ignored = bool(np.any((target.data if isinstance(target, Tensor) else target) == self.ignore_index))
        ignored = self.ignore_index if has_ignored else None
        return F.nll_loss(log_probabilities, target, self.reduction, self.weight or None, ignored)


@layer(repeatable=False)
class MSELoss(_Loss):
    """Squared difference of two tensors of one shape; its mean is over all elements.

    `reduction` is "mean", "sum" or "none". Raises ValueError for another one, and for shapes that differ.

    Differs from PyTorch: shapes that differ raise instead of being broadcast with a warning.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(x, target, reduction=self.reduction)


@layer(repeatable=False)
class L1Loss(_Loss):
    """Absolute difference of two tensors of one shape; its mean is over all elements.

    `reduction` is "mean", "sum" or "none". Raises ValueError for another one, and for shapes that differ.

    Differs from PyTorch: shapes that differ raise instead of being broadcast with a warning.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(x, target, reduction=self.reduction)


@layer(repeatable=False)
class SmoothL1Loss(_Loss):
    """Squared difference below 1, halved, and absolute difference above, less a half; its mean is over all elements.

    Girshick, "Fast R-CNN", ICCV 2015. `reduction` is "mean", "sum" or "none". Raises ValueError for another one, and
    for shapes that differ.

    Differs from PyTorch: `beta` is 1; shapes that differ raise instead of being broadcast with a warning.
    """

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(x, target, reduction=self.reduction)


@layer(repeatable=False)
class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of targets in [0, 1] under logits of the same shape; its mean is over all elements.

    `reduction` is "mean", "sum" or "none". Raises ValueError for another one, and for shapes that differ.

    Differs from PyTorch: there is no `weight` and no `pos_weight`.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction=self.reduction)

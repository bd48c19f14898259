"""The losses as modules; their formulas are tested with the functions that they call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.nn.examples import normal

LOGITS, LABELS, TARGET = normal((4, 3)), np.array([0, 2, 1, 2]), Tensor(np.linspace(0, 1, 12).reshape(4, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("loss", "function", "target"),
    [
        (nn.CrossEntropyLoss, F.cross_entropy, LABELS),
        (nn.NLLLoss, F.nll_loss, LABELS),
        (nn.MSELoss, F.mse_loss, TARGET),
        (nn.L1Loss, F.l1_loss, TARGET),
        (nn.SmoothL1Loss, F.smooth_l1_loss, TARGET),
        (nn.BCEWithLogitsLoss, F.binary_cross_entropy_with_logits, TARGET),
    ],
)
def test_a_loss_passes_its_reduction_on(
    loss: Callable[..., Any], function: Callable[..., Tensor], target: Any, reduction: str
) -> None:
    expected = function(LOGITS, target, reduction=reduction).data
    np.testing.assert_array_equal(loss(reduction=reduction)(LOGITS, target).data, expected)


def test_label_smoothing_mixes_in_all_classes() -> None:
    log_probabilities = F.log_softmax(LOGITS, dim=1).data
    hard, even = -log_probabilities[np.arange(4), LABELS].mean(), -log_probabilities.mean()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)(LOGITS, LABELS)
    assert loss.item() == pytest.approx(0.9 * hard + 0.1 * even)


def test_a_class_weighs_what_is_said_and_an_ignored_one_nothing() -> None:
    log_probabilities, weight = F.log_softmax(LOGITS, dim=1).data, np.array([1.0, 0.5, 3.0])
    losses = -log_probabilities[np.arange(4), LABELS] * weight[LABELS]
    loss = nn.CrossEntropyLoss(weight=weight.tolist(), ignore_index=1)(LOGITS, LABELS)
    assert loss.item() == pytest.approx(losses[[0, 1, 3]].sum() / weight[LABELS[[0, 1, 3]]].sum())
    only_ignored = nn.CrossEntropyLoss(ignore_index=1)(LOGITS, LABELS)
    assert only_ignored.item() == pytest.approx(-log_probabilities[[0, 1, 3], [0, 2, 2]].mean())


def test_wrong_options_are_told() -> None:
    with pytest.raises(ValueError, match="reduction is 'average': expected 'mean', 'sum' or 'none'"):
        nn.MSELoss(reduction="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label_smoothing is 2: expected a number in \[0, 1\]"):
        nn.CrossEntropyLoss(label_smoothing=2)

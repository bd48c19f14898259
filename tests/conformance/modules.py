"""Compares layers with those of PyTorch, by the samples of PyTorch's own tests."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.testing._internal.common_modules import module_db

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module
from tests.conformance.operations import REFUSALS, Outcome, Result, compared, gradients, listed, ours, refused, tensors


def module_results(names: Sequence[str] = (), most: int | None = None) -> Iterator[Result]:
    """Yield the outcomes of the samples of all layers, or of some, at most so many of each and each mode.

    Layers that differ in training are compared in both modes, with their running statistics afterwards.
    """
    for info in module_db:
        name = info.module_cls.__name__
        if name not in nn.__all__ or (names and f"nn.{name}" not in names):
            continue
        for is_training in (False, True) if info.train_and_eval_differ else (False,):
            torch.manual_seed(0)
            samples = info.module_inputs_func(info, "cpu", torch.float64, requires_grad=True, training=is_training)
            for sample in islice(samples, most):
                yield _result(f"nn.{name}", info.module_cls, sample, is_training=is_training)


def _result(name: str, kind: Any, sample: Any, *, is_training: bool) -> Result:
    built, given = sample.constructor_input, sample.forward_input
    torch.manual_seed(0)
    theirs = kind(*built.args, **built.kwargs).double().train(is_training)
    before = deepcopy(theirs)
    expected = list(tensors([theirs(*given.args, **given.kwargs)]))
    inputs = [each for each in tensors([*given.args, *given.kwargs.values()]) if each.requires_grad]
    reached = [each.sum() for each in expected if each.requires_grad]
    wanted = torch.autograd.grad(reached, inputs, allow_unused=True) if reached and inputs else ()
    wanted = tuple(torch.zeros_like(x) if each is None else each for x, each in zip(inputs, wanted, strict=False))
    leaves = list[Tensor]()
    try:
        layer = layer_of(kind.__name__, built, before)
        with np.errstate(all="ignore"):
            found = layer.train(is_training)(
                *ours(list(given.args), leaves), **{key: ours(value, leaves) for key, value in given.kwargs.items()}
            )
            results = [each for part in listed(found) for each in listed(part)]
            found_statistics = [each.value for _, each in layer.named_buffers()]
            statistics = [theirs.get_buffer(each) for each, _ in layer.named_buffers()]
            return compared(
                name,
                [*results, *gradients(tuple(results), leaves), *found_statistics],
                [*expected, *wanted, *statistics],
            )
    except REFUSALS as error:
        return refused((name, built.args, {**built.kwargs, **given.kwargs}, error))
    except Exception as error:  # noqa: BLE001  # of any kind: that is what is looked for
        return Result(name, Outcome.CRASHED, f"{type(error).__name__}: {error}")


def layer_of(name: str, built: Any, theirs: Any) -> Module:
    """Return our layer of that name, with the arguments and the values of PyTorch's."""
    layer: Module = getattr(nn, name)(*_plain(built.args), **_named(built.kwargs))
    _load(layer, theirs)
    return layer


def _plain(values: Sequence[Any]) -> list[Any]:
    return [each.tolist() if isinstance(each, torch.Tensor) else each for each in values]


def _named(values: Any) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in values.items()}


def _load(layer: Module, theirs: Any) -> None:
    """Give a layer the values of PyTorch's, in float64."""
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    for name, parameter in layer.named_parameters():
        parameter.data = state[name].copy()
    for name, statistic in layer.named_buffers():
        statistic.value = state[name].copy()

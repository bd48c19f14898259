"""Gradients by PyTorch, on one thread of a CPU."""

import faulthandler
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.records import fields_of
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import LossLibrary, Objective
from lockstep.common.model.port import (
    Batch,
    DrawKey,
    Inspection,
    LayerOutput,
    OnFinal,
    Outcome,
    arguments_of,
    compared,
    main_tensor,
)
from lockstep.common.model.pytorch.places import PlacedGradients, PlacedStatistics, PlacedWeights
from lockstep.common.model.pytorch.runtime import make_repeatable, placed, seed_draws
from lockstep.common.model.pytorch.structure import Structure
from lockstep.common.numerics.kernels.calls import is_aligned

#: The name of a layer, its class, and its output.
OnLayer = Callable[[str, str, Any], None]


class TorchEngine:
    """Computes a `torch.nn.Module`."""

    def __init__(self, module: Any, structure: Structure, objective: Objective) -> None:
        make_repeatable()
        self._module = module
        self.layout = structure.layout
        self._objective = objective
        self._weights = PlacedWeights(structure)
        self._gradients = PlacedGradients(structure)
        self._statistics = PlacedStatistics(structure)
        self._loss: Any = None
        self._is_training: bool | None = None

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        for vector in (*weights, *sums):
            assert is_aligned(vector), "kernels may have other bits at another alignment"
        for vector in sums:
            self.layout.clear_gaps(vector)
        self._weights.bind(weights)
        self._gradients.bind(sums)
        if not all(vector.flags.writeable for vector in weights) and not faulthandler.is_enabled():
            # A write to memory that is read only ends this process: show the line that did it.
            faulthandler.enable()
        self.read_from(0)
        self.write_to(0)

    def read_from(self, index: int) -> None:
        self._weights.read_from(index)
        self._statistics.place(self._weights.vector, is_training=bool(self._is_training))

    def write_to(self, index: int) -> None:
        self._gradients.write_to(index)

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        self._put(is_training=True)
        self._weights.place_again()
        self._weights.begin_audit()
        outputs = self._observing(images, key)
        loss, weight = self._objective.training_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        self._weights.check()
        self._statistics.end(len(images), self._weights.vector, self._gradients.vector)
        self._loss = loss
        return Outcome(loss.item(), taken(outputs).detach().numpy(), weight)

    def backward(self, on_final: OnFinal | None) -> None:
        loss, self._loss = self._loss, None
        if not loss.requires_grad:
            raise ModelError(
                "the loss does not depend on any parameter: expected a forward that stays in PyTorch's graph; remove "
                ".detach(), .data, .item(), .numpy() or torch.no_grad() on the way from the parameters to the outputs"
            )
        self._gradients.compute(loss, on_final)
        self._weights.check()
        self._weights.end_audit()
        self._statistics.end_backward(self._weights.vector, self._gradients.vector)

    def one_pass(self, count: int, samples: int, batches: Callable[[], Sequence[Batch]]) -> None:
        """Return None."""

    @property
    def obstacle(self) -> str:
        return "PyTorch's products of several micro-batches at once have other bits"

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        self._put(is_training=False)
        self._weights.place_again()
        seed_draws(None)
        with torch.no_grad():
            outputs = apply(self._module, images)
            loss, weight = self._objective.test_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        self._weights.check()
        return Outcome(loss.item(), taken(outputs).detach().numpy(), weight)

    def inspect(self, images: Array, targets: Array, key: DrawKey) -> Inspection:
        layers: list[LayerOutput] = []
        odd: list[str] = []

        def on_layer(name: str, kind: str, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                layers.append(LayerOutput(name, kind, output.detach().numpy().copy()))
            if not is_finite(output):
                odd.append(f"layer {name} ({kind})" if name else f"the model ({kind})")

        self._put(is_training=True)
        seed_draws(key)
        self._statistics.begin(self._weights.vector)
        with observed_layers(self._module, on_layer):
            outputs = apply(self._module, images)
        loss, weight = self._objective.training_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        if not is_finite(loss):
            odd.append("the loss")
        gradients = self._gradients.apart(loss)
        # Backward starts at the end, so that the last parameter is the first to get its gradient.
        odd += [f"the gradient of {name}" for name in reversed(gradients) if not np.isfinite(gradients[name]).all()]
        outcome = Outcome(loss.item(), taken(outputs).detach().numpy(), weight)
        return Inspection(outcome, layers, gradients, odd[0] if odd else None)

    def first_nonfinite_layer(self, images: Array, key: DrawKey | None) -> str | None:
        if not all(np.isfinite(array).all() for array in fields_of(images).values()):
            return "the input"
        found: list[str] = []

        def on_layer(name: str, kind: str, output: Any) -> None:
            if not is_finite(output):
                found.append(f"{name} ({kind})" if name else kind)

        self._put(is_training=key is not None)
        seed_draws(key)
        self._statistics.begin(self._weights.vector)
        with torch.no_grad(), observed_layers(self._module, on_layer):
            apply(self._module, images)
        return found[0] if found else None

    def _put(self, *, is_training: bool) -> None:
        if self._is_training is not is_training:
            self._module.train(is_training)
            self._is_training = is_training
            self._statistics.place_momenta(is_training=is_training)
            self._statistics.place(self._weights.vector, is_training=is_training)

    def _observing(self, images: Array, key: DrawKey) -> Any:
        """Return the outputs; compute them again if a layer was called more or less often than it was set up for."""
        for _ in range(2):
            seed_draws(key)
            self._statistics.begin(self._weights.vector)
            outputs = apply(self._module, images)
            if not self._statistics.adapt():
                break
        return outputs


#: PyTorch, which computes losses.
TORCH = LossLibrary(functional, lambda array: _tensor(np.ascontiguousarray(array)))


def apply(module: Any, images: Array) -> Any:
    """Return what a module makes of samples."""
    inputs, by_name = arguments_of(images, _input)
    return module(*inputs, **by_name)


def _tensor(array: Array) -> Any:
    """Return an array as a tensor. PyTorch has none that is read-only, as data that is mapped is: it gets a copy."""
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    # Whole numbers have the same bits at any place.
    return placed(tensor) if array.dtype.kind == "f" else tensor


def _input(array: Array) -> Any:
    x = _tensor(array)
    # PyTorch's own examples have tokens as int64, and so have models that are written after them.
    return x.long() if x.dtype == torch.int32 else x


def taken(outputs: Any) -> Any:
    """Return the tensor that named losses and evaluations take of outputs; `ModelError` without a tensor."""
    return main_tensor(outputs, torch.Tensor)


@contextmanager
def observed_layers(module: Any, on_layer: OnLayer) -> Iterator[None]:
    """Within the context, call `on_layer` after the forward of each layer."""
    handles = [layer.register_forward_hook(_observer(name, on_layer)) for name, layer in module.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observer(name: str, on_layer: OnLayer) -> Callable[[Any, Any, Any], None]:
    def hook(layer: Any, _: Any, output: Any) -> None:
        on_layer(name, type(layer).__name__, output)

    return hook


def is_finite(output: object) -> bool:
    """Tell whether a tensor, or all tensors of a tuple, list or dict, are finite; anything else counts as finite."""
    if isinstance(output, torch.Tensor):
        return bool(torch.isfinite(output).all())
    if isinstance(output, dict):
        return all(map(is_finite, output.values()))
    return all(map(is_finite, output)) if isinstance(output, tuple | list) else True

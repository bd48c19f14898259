"""Gradients by PyTorch, on one thread of a CPU.

Parameters are views into the vector of weights, and their gradients views into the vector of sums: PyTorch adds to a
gradient that is there already, so that it writes where the sums are to be.
"""

import faulthandler
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lockstep.common.aggregation.layout import LayoutEntry, ParameterLayout
from lockstep.common.aggregation.tree import LINE_BYTES, Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import Tree
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
    changed_freezing,
    compared,
    main_tensor,
)
from lockstep.common.model.pytorch.runtime import make_repeatable, placed, seed_draws
from lockstep.common.model.pytorch.structure import COUNTER, Structure

#: One in so many forwards computes with a copy of the weights, which shows writes that PyTorch does not count, as by
#: `.data`. It costs two copies and a comparison, less than a hundredth of so many forwards.
AUDITED = 128

#: The name of a layer, its class, and its output.
OnLayer = Callable[[str, str, Any], None]


class TorchEngine:
    """Computes a `torch.nn.Module`."""

    def __init__(self, module: Any, structure: Structure, objective: Objective) -> None:
        make_repeatable()
        self._module = module
        self._structure = structure
        self._objective = objective
        self._parameters = [parameter for _, parameter in structure.parameters]
        #: The vector of a batch's statistics: see `_observe`.
        self._observed = torch.zeros(structure.layout.size - structure.layout.parameter_size)
        self._observed_views = _views(structure.layout.statistics, self._observed, structure.layout.parameter_size)
        self._has_statistics = bool(structure.layout.statistics)
        #: By statistic, the calls of its layer in this pass, and whether the layer averages over several by itself.
        self._calls = [0] * len(structure.statistics)
        self._is_repeated = [False] * len(structure.statistics)
        self._counted = [0] * len(structure.statistics)
        self._samples = self._forwards = 0
        #: The copy of the weights with which an audited pass computes, and their values.
        self._audited: tuple[Vector, Vector] | None = None
        self._reading = self._writing = 0
        self._on_final: OnFinal | None = None
        self._frozen = [(name, each) for name, each in structure.frozen if isinstance(each, torch.nn.Parameter)]
        self._loss: Any = None
        self._is_training: bool | None = None
        self._expected: list[tuple[Any, int]] = []
        #: By parameter, how often its gradient was added to in the last backward; empty until it is needed.
        self._additions: list[int] = []
        #: Whether each gradient is final when it was added to once: not so within a re-entrant checkpoint.
        self._is_final_at_once: bool | None = None

    @property
    def layout(self) -> ParameterLayout:
        """The places of the model's values in a vector."""
        return self._structure.layout

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        layout = self._structure.layout
        for vector in (*weights, *sums):
            assert vector.ctypes.data % LINE_BYTES == 0, "kernels may have other bits at another alignment"
        for vector in sums:
            layout.clear_gaps(vector)
        flat = [_tensor(vector) for vector in weights]
        self._weights, self._sums = list(weights), list(sums)
        self._values = [_views(layout.parameters, vector) for vector in flat]
        self._averages = [_views(layout.statistics, vector) for vector in flat]
        self._gradients = [_views(layout.parameters, _tensor(vector)) for vector in sums]
        if not all(vector.flags.writeable for vector in weights) and not faulthandler.is_enabled():
            # A write to memory that is read only ends this process: show the line that did it.
            faulthandler.enable()
        self.read_from(0)
        self.write_to(0)

    def read_from(self, index: int) -> None:
        self._reading, self._audited = index, None
        self._place_parameters(self._values[index])
        self._place_statistics()
        self._expected = [(held.place[held.key], held.place[held.key]._version) for held in self._structure.held]

    def _place_parameters(self, views: Sequence[Any]) -> None:
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.data = view
        self._placed, self._addresses = views, [view.data_ptr() for view in views]

    def write_to(self, index: int) -> None:
        self._writing = index
        self._place_gradients()

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        self._put(is_training=True)
        self._check_place()
        self._begin_audit()
        outputs = self._observing(images, key)
        loss, weight = self._objective.training_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        self._check_held()
        self._end_statistics(len(images))
        self._loss = loss
        return Outcome(loss.item(), taken(outputs).detach().numpy(), weight)

    def backward(self, on_final: OnFinal | None) -> None:
        loss, self._loss = self._loss, None
        if not loss.requires_grad:
            raise ModelError(
                "the loss does not depend on any parameter: expected a forward that stays in PyTorch's graph; remove "
                ".detach(), .data, .item(), .numpy() or torch.no_grad() on the way from the parameters to the outputs"
            )
        self._place_gradients()
        self._sums[self._writing][: self._structure.layout.parameter_size].fill(0.0)
        if on_final is not None and not self._additions:
            self._listen()
        self._additions = [0] * len(self._additions)
        self._on_final = on_final if self._is_final_at_once else None
        loss.backward()
        self._on_final = None
        self._check_gradients(is_first=on_final is not None and self._is_final_at_once is None)
        self._check_held()
        self._end_audit()
        if self._has_statistics and self._count_calls():  # a checkpoint has computed a part of the forward again
            self._end_statistics(self._samples)

    def one_pass(self, tree: Tree, samples: int, batches: Callable[[], Sequence[Batch]]) -> None:
        """Return None."""

    @property
    def obstacle(self) -> str:
        return "PyTorch's products of several micro-batches at once have other bits"

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        self._put(is_training=False)
        self._check_place()
        seed_draws(None)
        with torch.no_grad():
            outputs = apply(self._module, images)
            loss, weight = self._objective.test_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        self._check_held()
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
        self._begin_statistics()
        with observed_layers(self._module, on_layer):
            outputs = apply(self._module, images)
        loss, weight = self._objective.training_loss(compared(self._objective, outputs, torch.Tensor), targets, TORCH)
        if not is_finite(loss):
            odd.append("the loss")
        gradients = self._gradients_of(loss)
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
        self._begin_statistics()
        with torch.no_grad(), observed_layers(self._module, on_layer):
            apply(self._module, images)
        return found[0] if found else None

    # Gradients

    def _place_gradients(self) -> None:
        """Let PyTorch add gradients to the vector of sums, whatever the model or another engine has put there."""
        for parameter, view in zip(self._parameters, self._gradients[self._writing], strict=True):
            if parameter.grad is not view:
                parameter.grad = view

    def _gradients_of(self, loss: Any) -> dict[str, Array]:
        """Return the gradients of a loss by the names of the parameters that take part, in memory of their own."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        found = {name: parameter.grad for name, parameter in self._structure.parameters if parameter.grad is not None}
        self._place_gradients()
        return {name: (grad.to_dense() if grad.is_sparse else grad).numpy() for name, grad in found.items()}

    def _listen(self) -> None:
        """Let PyTorch report each gradient that was added to, from now on."""
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(self._hook(index))
        self._additions = [0] * len(self._parameters)

    def _hook(self, index: int) -> Callable[[Any], None]:
        """Return what PyTorch calls when the gradient of a parameter was added to."""

        def finish(_: Any) -> None:
            self._additions[index] += 1
            if self._on_final is not None and self._additions[index] == 1:
                self._on_final(index)

        return finish

    def _check_gradients(self, *, is_first: bool) -> None:
        """Raise `ModelError` if a gradient is elsewhere, or was reported before it was final.

        The first backward finds out whether they can be reported at all.
        """
        for (name, parameter), view in zip(self._structure.parameters, self._gradients[self._writing], strict=True):
            if parameter.grad is not view:
                raise ModelError(
                    f"the model replaces the gradient of {name!r} in its backward: expected it to stay where it is; "
                    "remove the hook that sets .grad"
                )
        most = max(self._additions, default=0)
        if is_first:
            self._is_final_at_once = most <= 1
        elif self._is_final_at_once and most > 1:
            name = self._structure.parameters[self._additions.index(most)][0]
            raise ModelError(
                f"the gradient of {name!r} has several parts in one micro-batch, and had one before: expected the same "
                "graph each time; use torch.utils.checkpoint with use_reentrant=False"
            )

    def _check_place(self) -> None:
        """Let parameters be views into the weights again, if the model has computed with values of its own since."""
        if self._parameters and self._parameters[0].data_ptr() != self._addresses[0]:
            self._place_parameters(self._placed)

    # Statistics: a layer that averages with momentum 1 leaves those of its batch, whatever was there. What a spectral
    # norm moves begins with what the last step has left, and is the same in each micro-batch

    def _put(self, *, is_training: bool) -> None:
        if self._is_training is not is_training:
            self._module.train(is_training)
            self._is_training = is_training
            self._place_momenta()
            self._place_statistics()

    def _place_statistics(self) -> None:
        """Let layers have the averages so far in evaluations, and elsewhere a place for what they observe."""
        places = self._observed_views if self._is_training else self._averages[self._reading]
        for statistic, place in zip(self._structure.statistics, places, strict=True):
            statistic.layer._buffers[statistic.buffer] = place

    def _observing(self, images: Array, key: DrawKey) -> Any:
        """Return the outputs; compute them again if a layer was called more or less often than it was set up for.

        A layer that is called several times in a forward averages over its calls, with its own momentum; a layer that
        is called once leaves what it has observed. So the result depends on this micro-batch alone.
        """
        for _ in range(2):
            seed_draws(key)
            self._begin_statistics()
            outputs = apply(self._module, images)
            if not self._has_statistics:
                break
            self._count_calls()
            is_repeated = [calls > 1 for calls in self._calls]
            if is_repeated == self._is_repeated:
                break
            self._is_repeated = is_repeated
            self._place_momenta()
        return outputs

    def _count_calls(self) -> bool:
        """Count the calls of layers since the last count, by the changes of their own counters; tell if there is one.

        `InstanceNorm` counts nothing.
        """
        statistics = self._structure.statistics
        now = [getattr(each.layer._buffers.get(COUNTER), "_version", 0) for each in statistics]
        new = [after - before for after, before in zip(now, self._counted, strict=True)]
        self._counted = now
        self._calls = [calls + more for calls, more in zip(self._calls, new, strict=True)]
        return any(new)

    def _place_momenta(self) -> None:
        for statistic, is_repeated in zip(self._structure.statistics, self._is_repeated, strict=True):
            if statistic.is_average:
                is_one = self._is_training and not is_repeated
                statistic.layer.momentum = 1.0 if is_one else statistic.momentum

    def _begin_statistics(self) -> None:
        """Let each statistic stay as it is if its layer takes no part."""
        if self._has_statistics:
            size = self._structure.layout.parameter_size
            np.copyto(self._observed.numpy(), self._weights[self._reading][size:])
            self._count_calls()
            self._calls = [0] * len(self._calls)

    def _end_statistics(self, samples: int) -> None:
        if self._has_statistics:
            self._samples, size = samples, self._structure.layout.parameter_size
            sums = self._sums[self._writing][size:]
            np.multiply(self._observed.numpy(), np.float32(samples), out=sums)
            for index, calls in enumerate(self._calls):
                if calls > 1 and self._structure.statistics[index].momentum:
                    self._average_calls(index, calls)

    def _average_calls(self, index: int, calls: int) -> None:
        """Write the value by which one update with the momentum gives what several updates do."""
        layout, momentum = self._structure.layout, self._structure.statistics[index].momentum
        entry = layout.statistics[index]
        before, sums = entry.view(self._weights[self._reading]), entry.view(self._sums[self._writing])
        moved = self._observed_views[index].numpy() - before
        # A layer that was called once, and again in the backward, has observed the same in each of its calls.
        factor = 1.0 if self._is_repeated[index] else 1.0 - math.prod([1.0 - momentum] * calls)
        np.multiply(before + moved * np.float32(factor / momentum), np.float32(self._samples), out=sums)

    # What a forward has to leave alone

    def _check_held(self) -> None:
        """Raise `ModelError` if a weight or a buffer was changed: by PyTorch's count of changes, or by its identity."""
        for held, (tensor, version) in zip(self._structure.held, self._expected, strict=True):
            if held.place[held.key] is not tensor or tensor._version != version:
                raise changed(held.name)
        for (name, parameter), address in zip(self._structure.parameters, self._addresses, strict=True):
            if not parameter.requires_grad:
                raise changed_freezing(name, is_frozen=True)
            if parameter.data_ptr() != address:
                raise changed(name)
        for name, parameter in self._frozen:
            if parameter.requires_grad:
                raise changed_freezing(name, is_frozen=False)

    def _begin_audit(self) -> None:
        """Compute this micro-batch with a copy of the weights, if it is its turn."""
        if self._forwards % AUDITED == 0:
            copy = self.layout.new_vector()
            np.copyto(copy, self._weights[self._reading])
            self._audited = copy, copy.copy()
            self._place_parameters(_views(self.layout.parameters, _tensor(copy)))
        self._forwards += 1

    def _end_audit(self) -> None:
        """Raise `ModelError` if the copy was written to."""
        if self._audited is None:
            return
        (used, values), self._audited = self._audited, None
        self._place_parameters(self._values[self._reading])
        odd = used.view(np.uint32) != values.view(np.uint32)
        if odd.any():
            raise changed(self.layout.name_at(int(np.flatnonzero(odd)[0])))


#: PyTorch, which computes losses.
TORCH = LossLibrary(functional, lambda array: placed(torch.from_numpy(np.ascontiguousarray(array))))


def apply(module: Any, images: Array) -> Any:
    """Return what a module makes of samples."""
    inputs, by_name = arguments_of(images, _input)
    return module(*inputs, **by_name)


def _input(array: Array) -> Any:
    x = placed(torch.from_numpy(array))
    # PyTorch's own examples have tokens as int64, and so have models that are written after them.
    return x.long() if x.dtype == torch.int32 else x


def taken(outputs: Any) -> Any:
    """Return the tensor that named losses and evaluations take of outputs; `ModelError` without a tensor."""
    return main_tensor(outputs, torch.Tensor)


def changed(name: str) -> ModelError:
    """Return the error of a parameter or buffer that a model changes itself."""
    return ModelError(
        f"the model changes {name!r} in its forward: expected it to stay as it is, since another worker would not see "
        "the change; only parameters, which the server updates, and statistics of PyTorch's normalization layers may "
        "change"
    )


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


def _tensor(vector: Vector) -> Any:
    """Return a tensor over a vector's memory."""
    with warnings.catch_warnings():
        # A vector of weights is read only, which PyTorch does not know of; `_check_held` checks that it is not written.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(vector)


def _views(entries: Sequence[LayoutEntry], flat: Any, start: int = 0) -> list[Any]:
    """Return the tensors that lie in a flat one, which begins at place `start` of the layout."""
    return [
        flat[entry.offset - start : entry.offset - start + math.prod(entry.shape)].view(entry.shape)
        for entry in entries
    ]

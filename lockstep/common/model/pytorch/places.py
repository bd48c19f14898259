"""The places of a module's values in an engine's vectors: its parameters, their gradients, and its statistics.

Parameters are views into the vector of weights. Gradients are copied into the vector of sums: if PyTorch
added them to zeros there, that would be one pass more.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import torch

from lockstep.common.aggregation.layout import LayoutEntry
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError
from lockstep.common.model.port import OnFinal, changed_freezing
from lockstep.common.model.pytorch.structure import COUNTER, Held, Structure

#: One in so many forwards computes with a copy of the weights, which shows writes that PyTorch does not count, as by
#: `.data`. It costs two copies and a comparison, less than a hundredth of so many forwards.
AUDITED = 128

#: As an array, which NumPy begins with sooner than with a number.
_ZERO = np.zeros((), np.float32)


class PlacedWeights:
    """Parameters as views into a vector of weights; a forward must leave them alone, and all buffers but statistics."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._forwards = self._reading = 0
        #: The copy of the weights with which an audited pass computes, and their values.
        self._audited: tuple[Vector, Vector] | None = None
        self._parameters = [parameter for _, parameter in structure.parameters]
        self._expected: list[tuple[Held, Any, int]] = []

    @property
    def vector(self) -> Vector:
        """The vector that is read."""
        return self._vectors[self._reading]

    def bind(self, vectors: Sequence[Vector]) -> None:
        """Know these vectors by their indices."""
        self._vectors = list(vectors)
        self._views = [self._views_into(vector) for vector in vectors]

    def _views_into(self, vector: Vector) -> tuple[list[Any], list[int]]:
        """Return the parameters as they lie in a vector, and their addresses."""
        views = _views(self._structure.layout.parameters, _tensor(vector))
        return views, [view.data_ptr() for view in views]

    def read_from(self, index: int) -> None:
        """Let parameters be views into the vector of that index."""
        self._reading, self._audited = index, None
        self._place(*self._views[index])
        held = [(each, each.place[each.key]) for each in self._structure.held]
        self._expected = [(each, tensor, tensor._version) for each, tensor in held]

    def _place(self, views: Sequence[Any], addresses: Sequence[int]) -> None:
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.data = view
        self._placed, self._addresses = views, addresses

    def place_again(self) -> None:
        """Let parameters be views into the weights again, if the model has computed with values of its own since."""
        if self._parameters and self._parameters[0].data_ptr() != self._addresses[0]:
            self._place(self._placed, self._addresses)

    def check(self) -> None:
        """Raise `ModelError` if a weight or a buffer was changed: by PyTorch's count of changes, or by its identity."""
        for held, tensor, version in self._expected:
            if held.place[held.key] is not tensor or tensor._version != version:
                raise changed(held.name)
        for index, (parameter, address) in enumerate(zip(self._parameters, self._addresses, strict=True)):
            if not parameter.requires_grad:
                raise changed_freezing(self._structure.parameters[index][0], is_frozen=True)
            if parameter.data_ptr() != address:
                raise changed(self._structure.parameters[index][0])
        for name, each in self._structure.frozen:
            if each.requires_grad and isinstance(each, torch.nn.Parameter):
                raise changed_freezing(name, is_frozen=False)

    def begin_audit(self) -> None:
        """Compute this micro-batch with a copy of the weights, if it is its turn."""
        if self._forwards % AUDITED == 0:
            copy = self._structure.layout.new_vector()
            np.copyto(copy, self.vector)
            self._audited = copy, copy.copy()
            self._place(*self._views_into(copy))
        self._forwards += 1

    def end_audit(self) -> None:
        """Raise `ModelError` if the copy was written to."""
        if self._audited is None:
            return
        (used, values), self._audited = self._audited, None
        self._place(*self._views[self._reading])
        odd = used.view(np.uint32) != values.view(np.uint32)
        if odd.any():
            raise changed(self._structure.layout.name_at(int(np.flatnonzero(odd)[0])))


class PlacedGradients:
    """Takes the gradients that PyTorch makes into a vector of sums, and reports those that are final."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._parameters = [parameter for _, parameter in structure.parameters]
        self._writing = 0
        self._on_final: OnFinal | None = None
        #: By parameter, how often its gradient was added to in the last backward; empty until it is needed.
        self._additions: list[int] = []
        #: Whether each gradient is final when it was added to once: not so within a re-entrant checkpoint.
        self._is_final_at_once: bool | None = None

    @property
    def vector(self) -> Vector:
        """The vector that is written to."""
        return self._vectors[self._writing]

    def bind(self, vectors: Sequence[Vector]) -> None:
        """Know these vectors by their indices."""
        self._vectors = list(vectors)
        self._places = [[entry.view(vector) for entry in self._structure.layout.parameters] for vector in vectors]

    def write_to(self, index: int) -> None:
        """Write into the vector of that index."""
        self._writing = index

    def compute(self, loss: Any, on_final: OnFinal | None) -> None:
        """Write the gradients of a loss into the vector, and report each that is final as an engine does.

        The first backward with `on_final` finds out whether they can be reported at all.
        """
        if on_final is not None and not self._additions:
            self._listen()
        self._additions = [0] * len(self._additions)
        self._on_final = on_final if self._is_final_at_once else None
        self._backward(loss)
        taken = self._additions if self._on_final is not None else repeat(0)
        self._on_final = None
        for parameter, place, is_taken in zip(self._parameters, self._places[self._writing], taken, strict=False):
            if not is_taken:
                _take(parameter, place)
        self._check(is_first=on_final is not None and self._is_final_at_once is None)

    def apart(self, loss: Any) -> dict[str, Array]:
        """Return the gradients of a loss by the names of the parameters that take part, in memory of their own."""
        self._backward(loss)
        found = {name: parameter.grad for name, parameter in self._structure.parameters if parameter.grad is not None}
        return {name: (grad.to_dense() if grad.is_sparse else grad).numpy() for name, grad in found.items()}

    def _backward(self, loss: Any) -> None:
        """Let PyTorch leave gradients in memory of its own, whatever the model or another engine has put there."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()

    def _listen(self) -> None:
        """Let PyTorch report each gradient that was added to, from now on."""
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(self._hook(index))
        self._additions = [0] * len(self._parameters)

    def _hook(self, index: int) -> Callable[[Any], None]:
        """Return what PyTorch calls when the gradient of a parameter was added to."""

        def finish(parameter: Any) -> None:
            self._additions[index] += 1
            if self._on_final is not None and self._additions[index] == 1:
                _take(parameter, self._places[self._writing][index])
                self._on_final(index)

        return finish

    def _check(self, *, is_first: bool) -> None:
        """Raise `ModelError` if a gradient was reported before it was final."""
        most = max(self._additions, default=0)
        if is_first:
            self._is_final_at_once = most <= 1
        elif self._is_final_at_once and most > 1:
            name = self._structure.parameters[self._additions.index(most)][0]
            raise ModelError(
                f"the gradient of {name!r} has several parts in one micro-batch, and had one before: expected the same "
                "graph each time; use torch.utils.checkpoint with use_reentrant=False"
            )


def _take(parameter: Any, place: Array) -> None:
    """Write a gradient to its place, as if it were added to zeros, and let its memory go."""
    gradient, parameter.grad = parameter.grad, None
    if gradient is None:
        place.fill(0.0)
    else:
        np.add((gradient.to_dense() if gradient.is_sparse else gradient).numpy(), _ZERO, out=place)


class PlacedStatistics:
    """The buffers of layers that are statistics of batches, and what a micro-batch observes for them.

    A layer that averages with momentum 1 leaves the values of its batch, whatever was there. The vectors that a
    spectral norm moves begin as the last step has left them, and are the same in each micro-batch. A layer that is
    called several times in a forward averages over its calls, with its own momentum. So the result depends on the
    micro-batch alone.
    """

    def __init__(self, structure: Structure) -> None:
        layout, count = structure.layout, len(structure.statistics)
        self._structure = structure
        #: The vector of a batch's statistics, and the views into it that layers have in training.
        self._observed = torch.zeros(layout.size - layout.parameter_size)
        self._views = _views(layout.statistics, self._observed, layout.parameter_size)
        #: By statistic, the calls of its layer in this pass, and whether the layer averages over several by itself.
        self._calls = [0] * count
        self._is_repeated = [False] * count
        self._counted = [0] * count
        self._samples = 0

    def place(self, weights: Vector, *, is_training: bool) -> None:
        """Let layers have a place for what they observe in training, and elsewhere the averages among the weights."""
        places = self._views if is_training else _views(self._structure.layout.statistics, _tensor(weights))
        for statistic, place in zip(self._structure.statistics, places, strict=True):
            statistic.layer._buffers[statistic.buffer] = place

    def place_momenta(self, *, is_training: bool) -> None:
        """Let layers that are called once in a forward leave what they observe, if they are in training."""
        for statistic, is_repeated in zip(self._structure.statistics, self._is_repeated, strict=True):
            if statistic.is_average:
                statistic.layer.momentum = 1.0 if is_training and not is_repeated else statistic.momentum

    def begin(self, weights: Vector) -> None:
        """Begin a forward: each statistic stays as it is if its layer takes no part."""
        if not self._calls:
            return
        np.copyto(self._observed.numpy(), weights[self._structure.layout.parameter_size :])
        self._count_calls()
        self._calls = [0] * len(self._calls)

    def adapt(self) -> bool:
        """Set layers up for as many calls as this forward has made; tell if they were set up for more or less."""
        self._count_calls()
        is_repeated = [calls > 1 for calls in self._calls]
        if is_repeated == self._is_repeated:
            return False
        self._is_repeated = is_repeated
        self.place_momenta(is_training=True)
        return True

    def end(self, samples: int, weights: Vector, sums: Vector) -> None:
        """Write what a forward over so many samples has observed into the sums."""
        if not self._calls:
            return
        self._samples, size = samples, self._structure.layout.parameter_size
        np.multiply(self._observed.numpy(), np.float32(samples), out=sums[size:])
        for index, calls in enumerate(self._calls):
            if calls > 1 and self._structure.statistics[index].momentum:
                self._average_calls(index, weights, sums)

    def end_backward(self, weights: Vector, sums: Vector) -> None:
        """Write it again if a checkpoint has computed a part of the forward again."""
        if self._count_calls():
            self.end(self._samples, weights, sums)

    def _count_calls(self) -> bool:
        """Count the calls of layers since the last count, by the changes of their own counters; tell if there is one.

        `InstanceNorm` counts nothing.
        """
        statistics = self._structure.statistics
        if not statistics:
            return False
        now = [getattr(each.layer._buffers.get(COUNTER), "_version", 0) for each in statistics]
        new = [after - before for after, before in zip(now, self._counted, strict=True)]
        self._counted = now
        self._calls = [calls + more for calls, more in zip(self._calls, new, strict=True)]
        return any(new)

    def _average_calls(self, index: int, weights: Vector, sums: Vector) -> None:
        """Write the value by which one update with the momentum gives what several updates do."""
        entry, momentum = self._structure.layout.statistics[index], self._structure.statistics[index].momentum
        before = entry.view(weights)
        moved = self._views[index].numpy() - before
        # A layer that was called once, and again in the backward, has observed the same in each of its calls.
        factor = 1.0 if self._is_repeated[index] else 1.0 - math.prod([1.0 - momentum] * self._calls[index])
        np.multiply(before + moved * np.float32(factor / momentum), np.float32(self._samples), out=entry.view(sums))


def changed(name: str) -> ModelError:
    """Return the error of a parameter or buffer that a model changes itself."""
    return ModelError(
        f"the model changes {name!r} in its forward: expected it to stay as it is, since another worker would not see "
        "the change; only parameters, which the server updates, and statistics of PyTorch's normalization layers may "
        "change"
    )


def _tensor(vector: Vector) -> Any:
    """Return a tensor over a vector's memory."""
    with warnings.catch_warnings():
        # A vector of weights is read only, which PyTorch does not know of; it is checked that it is not written.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(vector)


def _views(entries: Sequence[LayoutEntry], flat: Any, start: int = 0) -> list[Any]:
    """Return the tensors that lie in a flat one, which begins at place `start` of the layout."""
    return [
        flat[entry.offset - start : entry.offset - start + math.prod(entry.shape)].view(entry.shape)
        for entry in entries
    ]

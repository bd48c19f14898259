"""A `torch.nn.Module` as a run's model."""

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from msgspec.structs import replace
from torch.nn.modules.instancenorm import _InstanceNorm

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import Evidence, Model, adopted, main_output
from lockstep.common.model.pytorch.engine import TorchEngine, apply, taken
from lockstep.common.model.pytorch.evidence import Trial
from lockstep.common.model.pytorch.runtime import placed, use_one_thread
from lockstep.common.model.pytorch.state import bytes_of
from lockstep.common.model.pytorch.structure import COUNTER, frozen_arrays, is_storable, structure_of


class TorchModel:
    """A module of PyTorch, with the values that it was built with until `load`."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.taken = ""
        self.structure = structure_of(module)
        # Tensors made from NumPy's arrays lie anywhere.
        for _, tensor in (*self.structure.parameters, *self.structure.frozen, *self.structure.constants):
            tensor.data = placed(tensor.data)
        self._look_at_frozen()
        #: The module's own values, whatever an engine has bound it to.
        self._own = [(parameter, parameter.data) for _, parameter in self.structure.parameters]
        self._averages = [(each, getattr(each.layer, each.buffer)) for each in self.structure.statistics]

    @property
    def layout(self) -> ParameterLayout:
        return self.structure.layout

    @property
    def module(self) -> Any:
        """The module with values of its own, in evaluation mode."""
        self._rest()
        return self._module

    def momenta(self) -> Vector:
        return self.layout.momenta(each.momentum for each in self.structure.statistics)

    def first_weights(self, seed: int) -> Vector:
        # The module was built with generators of that seed: see `lockstep.common.model.source`.
        self._rest()
        return self.structure.values()

    def own_arrays(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        """Leave out counters, and find shared values under any of their names."""
        names = {entry.name for entry in (*self.layout.parameters, *self.layout.statistics)}
        names |= {each.name for each in self.layout.frozen}
        held: dict[int, str] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            held.setdefault(id(tensor), name)
        own: dict[str, Array] = {}
        for name, tensor in self._module.state_dict(keep_vars=True).items():
            first = held[id(tensor)]
            if name in state and first in names:
                own.setdefault(first, state[name])
        known = self._module.state_dict().keys()
        return {**own, **{name: array for name, array in state.items() if name not in known}}

    def adopt(self, state: Mapping[str, Array]) -> None:
        tensors = dict(self.structure.frozen)
        with torch.no_grad():
            for name, array in adopted(self.layout, state).items():
                tensors[name].copy_(torch.from_numpy(array))
        self._look_at_frozen()

    def _look_at_frozen(self) -> None:
        """Let the layout have the memory and the values of the frozen parameters."""
        layout = replace(self.layout, frozen=tuple(frozen_arrays(self.structure.frozen)))
        self.structure = replace(self.structure, layout=layout)

    def state_dict(self) -> dict[str, Array]:
        self._rest()
        named = self._module.state_dict().items()
        return {
            name: tensor.numpy() for name, tensor in named if isinstance(tensor, torch.Tensor) and is_storable(tensor)
        }

    def load(self, weights: Vector, steps: int = 0) -> None:
        self._module.train()
        # A frozen backbone may stay in evaluation mode, in which nothing is counted.
        # InstanceNorm leaves its counter at 0.
        counting = [each for each in self.structure.counting if each.training and not isinstance(each, _InstanceNorm)]
        self._rest()
        tensors = [*(data for _, data in self._own), *(tensor for _, tensor in self._averages)]
        with torch.no_grad():
            for entry, tensor in zip((*self.layout.parameters, *self.layout.statistics), tensors, strict=True):
                tensor.copy_(torch.from_numpy(entry.view(weights).copy()))
            for layer in counting:
                getattr(layer, COUNTER).fill_(steps)

    def outputs(self, images: Array) -> Array:
        use_one_thread()
        self._rest()
        with torch.no_grad():
            outputs = apply(self._module, images)
        self.taken, _ = main_output(outputs)
        found: Array = taken(outputs).detach().numpy()
        return found

    def engine(self, objective: Objective) -> TorchEngine:
        return TorchEngine(self._module, self.structure, objective)

    def evidence(
        self, objective: Objective, images: Array, targets: Array, again: Callable[[], Model] | None = None
    ) -> Evidence:
        other = None if again is None else again()
        assert isinstance(other, TorchModel | None)
        if other is not None:
            check_equal(self, other)
        trial = self.trial(objective)
        found = trial.evidence(images, targets)
        if other is not None:
            other.trial(objective).check_order(images, targets, trial)
        return found

    def trial(self, objective: Objective) -> Trial:
        """Return what tries the model with its own values."""
        self._rest()
        names = (name for name, _ in self.structure.parameters)
        own = dict(zip(names, (data for _, data in self._own), strict=True))
        return Trial(self._module, self.structure, objective, own)

    def _rest(self) -> None:
        """Bind the module to its own values again, and put it into evaluation mode."""
        for parameter, data in self._own:
            parameter.data, parameter.grad = data, None
        for statistic, tensor in self._averages:
            statistic.layer._buffers[statistic.buffer] = tensor
            if statistic.is_average:
                statistic.layer.momentum = statistic.momentum
        self._module.eval()


def check_equal(model: TorchModel, again: TorchModel) -> None:
    """Raise `ModelError` with the first thing in which a model differs from one that was built again."""
    for one, other in zip_longest(_values(model), _values(again)):
        if one != other:
            name, _ = one or other
            raise ModelError(
                f"the model is another one when it is built again: {name!r} differs; expected the same each time, "
                "since every worker builds it: draw only from PyTorch's default generator, which is seeded before, and "
                "change no parameter or buffer in a forward or a hook"
            )


def _values(model: TorchModel) -> Iterator[tuple[str, tuple[object, bytes]]]:
    structure = model.structure
    for name, array in structure.layout.read(structure.values()).items():
        yield name, (array.shape, array.tobytes())
    for name, buffer in structure.constants:
        yield name, (buffer.shape, bytes_of(buffer))

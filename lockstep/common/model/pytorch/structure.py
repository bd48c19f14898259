"""The parts of a `torch.nn.Module` as a run sees it: parameters, statistics, constants; refuses all that has no place.

Running means and variances of PyTorch's own normalization layers are statistics, which the tree reduces (rule R8), and
so are the singular vectors of its spectral norms. All other buffers are constants: every process builds them alike, and
nothing may change them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import torch
from torch.nn.modules.batchnorm import SyncBatchNorm, _NormBase
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from lockstep.common.aggregation.layout import FrozenArray, ParameterLayout
from lockstep.common.aggregation.tree import LINE, Vector
from lockstep.common.errors import ModelError
from lockstep.common.model.pytorch.state import overlaps

#: The buffers of a normalization layer that are averages over batches, and the one that counts them.
AVERAGES, COUNTER = ("running_mean", "running_var"), "num_batches_tracked"

#: The types that NumPy and safetensors both have.
STORABLE = (
    *(torch.float32, torch.float64, torch.float16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)

#: Wrappers around a model that replicate or compile it.
WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "ScriptModule")

#: Classes of layers that quantization adds to a model.
OBSERVERS = ("FakeQuantizeBase", "ObserverBase")


class Statistic(msgspec.Struct, frozen=True):
    """A running mean or variance, or a singular vector of a spectral norm: a buffer of a layer."""

    name: str
    layer: Any
    buffer: str
    #: The weight of a new batch.
    momentum: float
    #: Whether the layer itself averages over batches, by its attribute `momentum`.
    is_average: bool = True


class Held(msgspec.Struct, frozen=True):
    """A tensor that a layer holds by a name, in one of its dicts: what a forward has to leave there."""

    name: str
    #: The layer's dict of parameters, or of buffers.
    place: dict[str, Any]
    key: str


class Structure(msgspec.Struct, frozen=True):
    """The parts of a model, each in the order of its names in PyTorch."""

    #: Those that are trained.
    parameters: tuple[tuple[str, Any], ...]
    #: Parameters with `requires_grad=False`, and constants that a state dict has.
    frozen: tuple[tuple[str, Any], ...]
    statistics: tuple[Statistic, ...]
    #: Layers whose batches are counted.
    counting: tuple[Any, ...]
    #: Everything that a forward must leave alone: parameters, and buffers that are not statistics.
    held: tuple[Held, ...]
    constants: tuple[tuple[str, Any], ...]
    layout: ParameterLayout

    def values(self) -> Vector:
        """Return a new vector of the values that the parameters and statistics have now."""
        vector = self.layout.new_vector()
        tensors = [tensor.detach() for _, tensor in self.parameters]
        tensors += [getattr(each.layer, each.buffer) for each in self.statistics]
        entries = (*self.layout.parameters, *self.layout.statistics)
        for entry, tensor in zip(entries, tensors, strict=True):
            entry.view(vector)[...] = tensor.numpy()
        return vector


def structure_of(module: Any) -> Structure:
    """Return the parts of a model; `ModelError` names the first that cannot be trained, and what to do."""
    for name, layer in module.named_modules():
        _check_layer(name, layer)
    named = tuple(module.named_parameters())
    for name, parameter in named:
        _check_parameter(name, parameter)
    parameters = tuple((name, parameter) for name, parameter in named if parameter.requires_grad)
    statistics, counting = tuple(_statistics(module)), tuple(_counting(module))
    averages = {id(getattr(each.layer, each.buffer)) for each in statistics} | {
        id(getattr(layer, COUNTER)) for layer in counting
    }
    constants = tuple((name, buffer) for name, buffer in module.named_buffers() if id(buffer) not in averages)
    for name, buffer in constants:
        _check_device(f"the buffer {name!r}", buffer)
    _check_memory(dict(named), dict(module.named_buffers()))
    kept = {id(tensor) for tensor in module.state_dict(keep_vars=True).values() if isinstance(tensor, torch.Tensor)}
    frozen = tuple((name, parameter) for name, parameter in named if not parameter.requires_grad)
    frozen += tuple((name, buffer) for name, buffer in constants if id(buffer) in kept and is_storable(buffer))
    layout = ParameterLayout.of(
        {name: parameter.shape for name, parameter in parameters},
        {each.name: getattr(each.layer, each.buffer).shape for each in statistics},
        frozen_arrays(frozen),
        alignment=LINE,
    )
    return Structure(parameters, frozen, statistics, counting, tuple(_held(module, averages)), constants, layout)


def frozen_arrays(frozen: Iterable[tuple[str, Any]]) -> Iterator[FrozenArray]:
    """Yield the arrays of frozen parameters and constants, in their own memory."""
    for name, tensor in frozen:
        yield FrozenArray.of(name, tensor.detach().numpy(), is_parameter=isinstance(tensor, torch.nn.Parameter))


def is_storable(tensor: Any) -> bool:
    """Tell whether a tensor is an array of numbers that a file of weights may have: neither sparse nor complex."""
    return bool(tensor.layout == torch.strided and tensor.dtype in STORABLE)


def _check_layer(name: str, layer: Any) -> None:
    where = f"the module {name!r}" if name else "the model"
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    for wrapper in WRAPPERS:
        if wrapper in kinds:
            article = "an" if wrapper[0] in "AEIOU" else "a"
            raise ModelError(
                f"{where} is {article} {wrapper}: expected the plain module; Lockstep distributes it, and runs it as "
                "it is written, since what a compiler makes of it has other bits"
            )
    compiled = [key for key, value in vars(layer).items() if hasattr(value, "_torchdynamo_orig_callable")]
    if compiled or vars(layer).get("_compiled_call_impl") is not None:
        raise ModelError(
            f"{where} has a part that torch.compile has compiled{f', {compiled[0]!r}' if compiled else ''}: expected "
            "the plain one, since what a compiler makes of it has other bits; remove the call of compile"
        )
    observer = next((kind for kind in OBSERVERS if kind in kinds), None)
    if observer is not None:
        raise ModelError(
            f"{where} is a {type(layer).__name__}, which records the range of what it sees in each forward: expected a "
            "model without observers, since another worker would not see that range; train the model without "
            "prepare_qat, and quantize the result"
        )
    if isinstance(layer, SyncBatchNorm):
        raise ModelError(
            f"{where} is a SyncBatchNorm, which exchanges statistics by itself: expected BatchNorm2d or its like, "
            "whose statistics Lockstep takes per micro-batch"
        )
    if isinstance(layer, _NormBase) and layer.track_running_stats and layer.momentum is None:
        raise ModelError(
            f"{where} is a {type(layer).__name__} with momentum=None, whose average depends on the number of batches "
            "before: expected a number, such as momentum=0.1"
        )


def _check_parameter(name: str, parameter: Any) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise ModelError(
            f"the parameter {name!r} has no shape yet: expected one before the first batch; give the sizes to the "
            "layer instead of using its lazy form"
        )
    _check_device(f"the parameter {name!r}", parameter)
    if not parameter.requires_grad:
        if not is_storable(parameter):
            raise ModelError(
                f"the frozen parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')}, which NumPy and "
                "files of weights lack: expected float32 or another of their types; convert it by .float()"
            )
        return
    if parameter.dtype != torch.float32:
        raise ModelError(
            f"the parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')}: expected float32, in which all "
            "weights are summed and updated; remove .half(), .double() or dtype="
        )
    if parameter.layout != torch.strided:
        raise ModelError(f"the parameter {name!r} is sparse: expected a dense one")


def _check_memory(parameters: Mapping[str, Any], buffers: Mapping[str, Any]) -> None:
    """Raise `ModelError` with the first parameter that shares memory with another one, or with a buffer."""
    for one, other in overlaps({**buffers, **parameters}):
        if one in parameters and other in parameters:
            raise ModelError(
                f"the parameters {one!r} and {other!r} share memory: expected one parameter under both names, as in "
                "head.weight = embedding.weight, since each of them has a gradient of its own"
            )
        if one in parameters or other in parameters:
            buffer, parameter = (other, one) if one in parameters else (one, other)
            raise ModelError(
                f"the buffer {buffer!r} shares memory with the parameter {parameter!r}: expected a copy, or the view "
                "to be taken in the forward, since a run has its parameters in other memory"
            )


def _check_device(what: str, tensor: Any) -> None:
    if isinstance(tensor, UninitializedBuffer):
        raise ModelError(f"{what} has no shape yet: expected one before the first batch; give the sizes to the layer")
    if tensor.device.type != "cpu":
        raise ModelError(
            f"{what} is on device {str(tensor.device)!r}: expected 'cpu', where other machines can repeat the bits; "
            "remove .to() or .cuda() from the function that builds the model"
        )


def _statistics(module: Any) -> Iterator[Statistic]:
    for prefix, layer in module.named_modules():
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            for buffer in AVERAGES:
                if getattr(layer, buffer) is not None:
                    name = _join(prefix, buffer)
                    if getattr(layer, buffer).dtype != torch.float32:
                        raise ModelError(f"the buffer {name!r} is {getattr(layer, buffer).dtype}: expected float32")
                    _check_device(f"the buffer {name!r}", getattr(layer, buffer))
                    yield Statistic(name, layer, buffer, layer.momentum)
        for buffer in _singular_vectors(layer):
            yield Statistic(_join(prefix, buffer), layer, buffer, momentum=1.0, is_average=False)


def _singular_vectors(layer: Any) -> Iterator[str]:
    """Yield the buffers that a spectral norm moves in training, if a layer is one or has one of the older kind."""
    if isinstance(layer, _SpectralNorm):
        yield from (buffer for buffer in ("_u", "_v") if buffer in layer._buffers)
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            yield from (f"{hook.name}_u", f"{hook.name}_v")


def _counting(module: Any) -> Iterator[Any]:
    for layer in module.modules():
        if isinstance(layer, _NormBase) and getattr(layer, COUNTER, None) is not None:
            yield layer


def _held(module: Any, averages: set[int]) -> Iterator[Held]:
    for prefix, layer in module.named_modules():
        for place in (layer._parameters, layer._buffers):
            for key, tensor in place.items():
                if tensor is not None and id(tensor) not in averages:
                    yield Held(_join(prefix, key), place, key)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name

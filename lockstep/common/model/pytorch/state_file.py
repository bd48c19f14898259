"""Reads what `torch.save` wrote of a state dict, without executing anything of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import FileFormatError
from lockstep.common.files.sanitize import one_line

#: Under which names training scripts, Lightning and others keep the state dict among what else they save.
NESTED = ("state_dict", "model_state_dict", "model", "module")

#: The prefixes that DistributedDataParallel and torch.compile put before each name.
WRAPPED = ("module.", "_orig_mod.")


def read_state(path: Path) -> dict[str, Array]:
    """Return the tensors of a state dict by name: floating ones as float32 or float64, others as they are.

    `FileFormatError` if the file cannot be read or has no state dict.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, most of them pickle's
        text = one_line(str(error).split("\n")[0], 160)
        raise FileFormatError(
            f"{path}: cannot be read by torch.load(weights_only=True) ({text}): expected what "
            "torch.save(model.state_dict(), path) writes"
        ) from error
    state = _state_in(found)
    if state is None:
        raise FileFormatError(
            f"{path}: holds a {type(found).__name__} without a state dict: expected what "
            "torch.save(model.state_dict(), path) writes"
        )
    # One may be around the other, in any order.
    while prefix := next((each for each in WRAPPED if all(name.startswith(each) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name: _array(path, name, tensor) for name, tensor in state.items()}


def _state_in(found: object) -> dict[str, Any] | None:
    """Return the tensors of a state dict, or of one that is among other things under a usual name."""
    if not isinstance(found, Mapping):
        return None
    inner = next((inner for name in NESTED if name in found and (inner := _state_in(found[name]))), None)
    # A script may save other tensors next to the state dict, as the best loss.
    return inner or {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)} or None


def _array(path: Path, name: str, tensor: Any) -> Array:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        raise FileFormatError(f"{path}: {name!r} is {tensor.dtype} of layout {tensor.layout}: expected a dense array")
    tensor = tensor.detach()
    is_narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
    array: Array = (tensor.float() if is_narrow else tensor).contiguous().numpy()
    return array

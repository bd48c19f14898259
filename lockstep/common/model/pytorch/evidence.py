"""Evidence that a model's bits can be repeated: what it computes of one micro-batch, twice, before a run begins.

The weights have another alignment the second time, since a kernel that minds has other bits there. The digest of what
was computed is compared with the server's (rule R6): it differs if PyTorch, the processor, or something that the model
was built from differs.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import DrawKey, Evidence
from lockstep.common.model.pytorch.engine import TorchEngine, changed
from lockstep.common.model.pytorch.runtime import build_name, fill_new_memory
from lockstep.common.model.pytorch.structure import Structure

#: Floats from a boundary of 64 bytes at which vectors begin, one a repetition.
ALIGNMENTS = (0, 3)

#: Bytes of a line of the cache.
_LINE = 64

#: The place in a run at which a model is tried.
_KEY = DrawKey(seed=0, step=0, micro_batch=0)


class Repetition(NamedTuple):
    """What a model computed once, and in what state it was afterwards."""

    loss: bytes
    outputs: bytes
    #: The vector of sums.
    sums: Vector
    #: The outputs in evaluation mode.
    evaluated: bytes
    #: What layers hold besides tensors that are registered.
    state: dict[str, object]


def evidence_of(module: Any, structure: Structure, objective: Objective, images: Array, targets: Array) -> Evidence:
    """Return PyTorch's build, and the digest of what the model computes of a micro-batch.

    `ModelError` if it computes something else the second time, changes what it must leave alone, or uses what PyTorch
    calls nondeterministic.
    """
    engine, weights = TorchEngine(module, structure, objective), structure.values()
    constants = {name: _bytes(buffer) for name, buffer in structure.constants}
    repetitions: list[Repetition] = []
    for alignment in ALIGNMENTS:
        # The second time, what is not written is NaN: a model that reads it anyway has other bits then.
        fill_new_memory(bool(repetitions))
        try:
            repetitions.append(_repeated(engine, module, _placed(weights, alignment), images, targets))
        finally:
            fill_new_memory(False)
    for name, buffer in structure.constants:
        if _bytes(buffer) != constants[name]:
            raise changed(name)
    _check_alike(structure, *repetitions)
    return Evidence(engine=build_name(), digest=_digest(repetitions[0], constants))


def _repeated(engine: TorchEngine, module: Any, weights: Vector, images: Array, targets: Array) -> Repetition:
    before, sums = weights.tobytes(), _placed(np.zeros_like(weights), 0)
    engine.bind([weights], [sums])
    try:
        loss, outputs, _ = engine.forward(images, targets, _KEY)
        kept = outputs.tobytes()
        engine.backward(None)
        evaluated = engine.evaluate(images, targets).outputs.tobytes()
    except RuntimeError as error:
        raise _refusal(error) from error
    one = Repetition(np.float64(loss).tobytes(), kept, sums, evaluated, dict(_state(module)))
    if weights.tobytes() != before:
        place = int(np.flatnonzero(weights.view(np.uint32) != np.frombuffer(before, np.uint32))[0])
        raise changed(engine.layout.name_at(place))
    return one


def _refusal(error: RuntimeError) -> ModelError:
    text = " ".join(str(error).split())
    if "does not have a deterministic implementation" in text:
        operation = text.split(" does not have", 1)[0]
        return ModelError(
            f"the model uses {operation}, which PyTorch calls nondeterministic: expected operations whose result is "
            "the same each time; replace it (see torch.use_deterministic_algorithms)"
        )
    return ModelError(f"the model cannot compute a micro-batch: it raised RuntimeError: {text}")


def _check_alike(structure: Structure, first: Repetition, second: Repetition) -> None:
    """Raise `ModelError` with the first thing in which two repetitions differ."""
    moved = [name for name in first.state.keys() | second.state.keys() if not _same(first, second, name)]
    if moved:
        raise ModelError(
            f"the model keeps state of its own from one call to the next, in {min(moved)!r}: expected a forward that "
            "depends on weights, samples and PyTorch's generator only, since another worker would not see that state"
        )
    odd = first.sums.view(np.uint32) != second.sums.view(np.uint32)
    if odd.any():
        name = structure.layout.name_at(int(np.flatnonzero(odd)[0]))
        raise ModelError(
            f"the model is not repeatable: the gradient of {name!r} differs when it is computed again from the same "
            "weights and samples; expected the same bits: draw only from PyTorch's generator, and keep no state"
        )
    for what, one, other in (
        ("loss", first.loss, second.loss),
        ("output", first.outputs, second.outputs),
        ("output in evaluation mode", first.evaluated, second.evaluated),
    ):
        if one != other:
            raise ModelError(
                f"the model is not repeatable: its {what} differs when it is computed again from the same weights and "
                "samples; expected the same bits: draw only from PyTorch's generator, and keep no state"
            )


def _same(first: Repetition, second: Repetition, name: str) -> bool:
    return name in first.state and name in second.state and bool(first.state[name] == second.state[name])


def _state(module: Any) -> Iterator[tuple[str, object]]:
    """Yield what layers hold in plain attributes, as values that can be compared; others cannot be looked into."""
    for prefix, layer in module.named_modules():
        for key, value in vars(layer).items():
            if not key.startswith("_") and (found := _comparable(value)) is not None:
                yield (f"{prefix}.{key}" if prefix else key), found


def _comparable(value: object, depth: int = 0) -> object:
    """Return a value by which to tell whether something has changed, None if there is none."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes() if value.device.type == "cpu" else None
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)  # NaN equals itself there
    if depth < 4 and isinstance(value, list | tuple | set | frozenset):
        return [_comparable(each, depth + 1) for each in value]
    if depth < 4 and isinstance(value, dict):
        return [(repr(key), _comparable(each, depth + 1)) for key, each in value.items()]
    return None


def _placed(values: Vector, alignment: int) -> Vector:
    """Return a copy that begins so many floats after a line of the cache."""
    room = np.empty(values.nbytes + 2 * _LINE, np.uint8)
    start = -room.ctypes.data % _LINE + 4 * alignment
    placed: Vector = room[start : start + values.nbytes].view(np.float32)
    placed[:] = values
    return placed


def _bytes(tensor: Any) -> bytes:
    data: bytes = tensor.detach().contiguous().numpy().tobytes()
    return data


def _digest(one: Repetition, constants: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for part in (one.loss, one.outputs, one.sums.tobytes(), one.evaluated):
        digest.update(part)
    for name, data in constants.items():
        digest.update(f"{name} {len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]

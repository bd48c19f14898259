"""Evidence that a model's bits can be repeated: what it computes of one micro-batch, twice, before a run begins.

Everything lies as it does in a run, whose vectors begin at a line of the cache like each array in them: some kernels of
oneDNN have other bits at another alignment, but no process of a run has one. The digest of the results is
compared with the server's (rule R6): it differs if PyTorch, the processor, or something that the model was built from
differs.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import DrawKey, Evidence
from lockstep.common.model.pytorch.engine import TorchEngine, changed
from lockstep.common.model.pytorch.runtime import build_name, fill_new_memory
from lockstep.common.model.pytorch.state import State, bytes_of, state_of, views_of
from lockstep.common.model.pytorch.structure import Structure, frozen_arrays
from lockstep.common.numerics.random import shared_generators

#: Generators that all code of a process shares.
SHARED = dict(shared_generators()).keys()

#: The place in a run at which a model is tried.
_KEY = DrawKey(seed=0, step=0, micro_batch=0)


class Repetition(NamedTuple):
    """The results of a model's pass, and its state afterwards."""

    loss: bytes
    outputs: bytes
    #: The vector of sums.
    sums: Vector
    #: The outputs in evaluation mode.
    evaluated: bytes
    #: The state that the model keeps besides parameters and buffers.
    state: State


@dataclass
class Trial:
    """A model that is tried on a micro-batch before a run."""

    module: Any
    structure: Structure
    objective: Objective
    #: The module's own values of the parameters, by name: in a run, the parameters are in other memory.
    own: Mapping[str, Any]
    #: Its first results.
    first: Repetition | None = None
    weights: Vector = field(init=False)
    _engine: TorchEngine = field(init=False)

    def __post_init__(self) -> None:
        # While the module still has its own values.
        self.weights = self.structure.values()
        self._engine = TorchEngine(self.module, self.structure, self.objective)

    def evidence(self, images: Array, targets: Array) -> Evidence:
        """Return PyTorch's build, and the digest of what the model computes of a micro-batch.

        `ModelError` if it computes something else the second time, changes what it must leave alone, keeps state, or
        uses what PyTorch calls nondeterministic.
        """
        constants = {name: bytes_of(buffer) for name, buffer in self.structure.constants}
        frozen = self._frozen_digests()
        first = self.first = self._computed(images, targets)
        for place, name in views_of(self.module, self.own):
            raise ModelError(
                f"the model keeps a view of the parameter {name!r} in {_attribute(place)!r}: expected it to be taken "
                "in the forward, since a run has its parameters in other memory"
            )
        # Memory that is not written is NaN the second time: a model that reads it anyway has other bits then.
        fill_new_memory(True)
        try:
            second = self._computed(images, targets)
        finally:
            fill_new_memory(False)
        for name, buffer in self.structure.constants:
            if bytes_of(buffer) != constants[name]:
                raise changed(name)
        for name, digest in self._frozen_digests().items():
            if digest != frozen[name]:
                raise changed(name)
        moved = sorted(_moved(first, second), key=lambda place: (place not in SHARED, place))
        if moved:
            raise _stateful(moved[0])
        if (what := self._difference(first, second)) is not None:
            raise ModelError(
                f"the model is not repeatable: {what} differs when it is computed again from the same weights and "
                "samples; expected the same bits: draw only from PyTorch's generator, and keep no state"
            )
        return Evidence(engine=build_name(), digest=_digest(first, constants))

    def _frozen_digests(self) -> dict[str, str]:
        """Return the digests of frozen parameters: the engine does not see writes by way of `.data`."""
        arrays = frozen_arrays(self.structure.frozen)
        return {array.name: array.sha256 for array in arrays if array.is_parameter}

    def check_order(self, images: Array, targets: Array, first: Repetition) -> None:
        """Raise `ModelError` if a micro-batch has other results after another one, in a model that was built again.

        `first` is what the other model computed of it at its beginning. So what a model keeps of the first micro-batch
        that it is given is found.
        """
        self._computed(-images[::-1] if images.dtype.kind == "f" else images[::-1], targets)
        later = self._computed(images, targets)
        if (what := self._difference(first, later)) is not None:
            moved = sorted(_moved(first, later))
            where = f", in {_attribute(moved[0])!r}" if moved else ""
            raise ModelError(
                f"the model keeps state of its own from one call to the next{where}: {what} differs when the model "
                "was given another micro-batch before; expected a forward that depends on weights, samples and "
                "PyTorch's generator only"
            )

    def _computed(self, images: Array, targets: Array) -> Repetition:
        return _repeated(self._engine, self.module, self.weights, images, targets)

    def _difference(self, first: Repetition, second: Repetition) -> str | None:
        """Return the first thing in which two results differ, in words."""
        odd = first.sums.view(np.uint32) != second.sums.view(np.uint32)
        if odd.any():
            return f"the gradient of {self.structure.layout.name_at(int(np.flatnonzero(odd)[0]))!r}"
        for what, one, other in (
            ("its loss", first.loss, second.loss),
            ("its output", first.outputs, second.outputs),
            ("its output in evaluation mode", first.evaluated, second.evaluated),
        ):
            if one != other:
                return what
        return None


def _repeated(engine: TorchEngine, module: Any, weights: Vector, images: Array, targets: Array) -> Repetition:
    before, sums = weights.tobytes(), engine.layout.new_vector()
    engine.bind([weights], [sums])
    try:
        loss, outputs, _ = engine.forward(images, targets, _KEY)
        kept = outputs.tobytes()
        engine.backward(None)
        evaluated = engine.evaluate(images, targets).outputs.tobytes()
    except RuntimeError as error:
        raise _refusal(error) from error
    one = Repetition(np.float64(loss).tobytes(), kept, sums, evaluated, state_of(module))
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
            f"the same each time; {_replacement(operation)} (see torch.use_deterministic_algorithms)"
        )
    return ModelError(f"the model cannot compute a micro-batch: it raised RuntimeError: {text}")


def _replacement(operation: str) -> str:
    """Return what to write in place of an operation."""
    if operation.startswith("max_unpooling"):
        return "write an unpooling as torch.zeros(n, c, size).scatter(2, indices.flatten(2), x.flatten(2)).view(...)"
    return "replace it"


def _moved(first: Repetition, second: Repetition) -> Iterator[str]:
    """Yield the places at which two states differ."""
    for place in first.state.keys() | second.state.keys():
        if place not in first.state or place not in second.state or first.state[place] != second.state[place]:
            yield place


def _attribute(place: str) -> str:
    """Return the place of a whole list or dictionary, of which an element is given."""
    return place.partition("[")[0]


def _stateful(place: str) -> ModelError:
    if place in SHARED:
        return ModelError(
            f"the model draws from {place}: expected draws from PyTorch's generator only, which is seeded for each "
            "micro-batch; use torch.rand(()).item() or torch.randint"
        )
    return ModelError(
        f"the model keeps state of its own from one call to the next, in {_attribute(place)!r}: expected a forward "
        "that depends on weights, samples and PyTorch's generator only, since another worker would not see that state"
    )


def _digest(one: Repetition, constants: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for part in (one.loss, one.outputs, one.sums.tobytes(), one.evaluated):
        digest.update(part)
    for name, data in constants.items():
        digest.update(f"{name} {len(data)}\0".encode() + data)
    return digest.hexdigest()[:16]

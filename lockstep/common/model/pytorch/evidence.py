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
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import Objective
from lockstep.common.model.port import Batch, DrawKey, Evidence
from lockstep.common.model.pytorch.engine import TorchEngine
from lockstep.common.model.pytorch.places import changed
from lockstep.common.model.pytorch.runtime import build_name, fill_new_memory
from lockstep.common.model.pytorch.state import State, StateSearch, bytes_of, views_of
from lockstep.common.model.pytorch.structure import Structure, frozen_arrays
from lockstep.common.numerics.kernels.calls import place_of
from lockstep.common.numerics.random import shared_generators
from lockstep.common.runtime.clock import clocks_ahead

#: Generators that all code of a process shares.
SHARED = dict(shared_generators()).keys()

#: The place in a run at which a model is tried.
_KEY = DrawKey(seed=0, step=0, micro_batch=0)


class WeightWrites(TorchDispatchMode):  # type: ignore[misc]  # PyTorch's classes are not looked at
    """Records, within the context, at which places of the weights PyTorch's operations write: `.data` counts nothing.

    A clamp of weights that are within its bounds writes equal values, which no comparison of bytes shows.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: otherwise PyTorch loads its compiler, which takes a second and sets a variable."""
        return False

    def __init__(self, weights: Vector) -> None:
        super().__init__()
        self._start = place_of(weights)
        self._stop = self._start + weights.nbytes
        #: In elements of the vector.
        self.places = list[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((each.name for each in function._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in function._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._look(given.get(argument.name))
        return function(*args, **(kwargs or {}))

    def _look(self, written: Any) -> None:
        for tensor in written if isinstance(written, list | tuple) else (written,):
            if isinstance(tensor, torch.Tensor) and self._start <= tensor.data_ptr() < self._stop:
                self.places.append((tensor.data_ptr() - self._start) // 4)


def other_samples(images: Array) -> Array:
    """Return samples of the same shapes and within the same bounds: with another maximum, and other values.

    Of floats, half of each and a quarter; of whole numbers, half of the way to the smallest. Masks are only in another
    order, in which all samples come. Several arrays are changed one by one.
    """
    turned = images[::-1].copy()
    for name in images.dtype.names or ((),):
        field = turned[name]
        if field.dtype.kind == "f":
            field[...] = field * 0.5 + 0.25
        elif field.dtype.kind in "iu" and field.size and field.min() >= 0 and field.max() > 1:
            field[...] = field.min() + (field - field.min()) // 2
    return turned


def _resized(samples: Array) -> Array:
    """Return another number of samples, as few as a normalization needs: micro-batches of a run may differ in size."""
    return samples[:2] if len(samples) > 2 else np.concatenate([samples, samples[:1]])


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
    #: The types of the objects that the search for state could not look into, by place.
    opaque: Mapping[str, str]


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
        unused = self._check_writes(images, targets)
        for place, name in views_of(self.module, self.own):
            raise ModelError(
                f"the model keeps a view of the parameter {name!r} in {_attribute(place)!r}: expected it to be taken "
                "in the forward, since a run has its parameters in other memory"
            )
        # Memory that is not written is NaN the second time, and clocks are ahead: a model that reads them anyway has
        # other bits then.
        fill_new_memory(True)
        try:
            with clocks_ahead(StateSearch.of(self.module).namespaces.values()):
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
                "samples; expected the same bits: draw only from PyTorch's generator, read no clock, and keep no state"
                f"{_opaque(second)}"
            )
        return Evidence(engine=build_name(), digest=_digest(first, constants), unused=unused)

    def _frozen_digests(self) -> dict[str, str]:
        """Return the digests of frozen parameters: the engine does not see writes by way of `.data`."""
        arrays = frozen_arrays(self.structure.frozen)
        return {array.name: array.sha256 for array in arrays if array.is_parameter}

    def check_order(self, images: Array, targets: Array, tried: "Trial") -> None:
        """Raise `ModelError` if the order of micro-batches changes anything, in this model, which was built again.

        `tried` has computed the micro-batch of `evidence`, which comes after another one here, and before it there. So
        a maximum is found whichever of the two has the greater one, and so is what a model keeps of the first.
        """
        assert tried.first is not None
        turned = other_samples(images)
        resized = self._first_of((_resized(turned), _resized(targets)))
        found = self._first_of((turned, targets), (images[::-1], targets))
        if found is None:
            return
        other, first = found
        self._compare_after_another(tried.first, self._computed(images, targets))
        if resized is not None:
            self._compare_after_another(resized[1], self._computed(*resized[0]))
            # A table by the number of samples, which a model may keep, is whole before states are compared.
            tried._computed(_resized(images), _resized(targets))
        again = self._computed(*other)
        self._compare_after_another(first, again)
        before = tried._computed(images, targets)
        self._compare_after_another(tried.first, before)
        if resized is not None:
            self._compare_after_another(resized[1], tried._computed(*resized[0]))
        self._compare_after_another(first, tried._computed(*other))
        for one, two in ((first, again), (before, tried._computed(images, targets))):
            if moved := sorted(_moved(one, two)):
                raise _stateful(moved[0])

    def _first_of(self, *batches: Batch) -> tuple[Batch, Repetition] | None:
        """Return the first of some batches that the model can compute, and its results."""
        for batch in batches:
            try:
                return batch, self._computed(*batch)
            except Exception:  # noqa: BLE001  # samples that the user's code may not be made for
                continue
        return None

    def _compare_after_another(self, first: Repetition, later: Repetition) -> None:
        if (what := self._difference(first, later)) is None:
            return
        moved = sorted(_moved(first, later))
        where = f", in {_attribute(moved[0])!r}" if moved else ""
        raise ModelError(
            f"the model keeps state of its own from one call to the next{where}: {what} differs when the model "
            "was given another micro-batch before; expected a forward that depends on weights, samples and "
            f"PyTorch's generator only{'' if moved else _opaque(later)}"
        )

    def _check_writes(self, images: Array, targets: Array) -> tuple[str, ...]:
        """Return the names of the parameters that get no gradient.

        `ModelError` if an operation writes to the memory of the weights, even equal values.
        """
        watch, used = WeightWrites(self.weights), set[int]()
        parameters = self.structure.parameters
        handles = [each.register_post_accumulate_grad_hook(lambda each: used.add(id(each))) for _, each in parameters]
        try:
            with watch:
                self._computed(images, targets)
        finally:
            for handle in handles:
                handle.remove()
        if watch.places:
            raise changed(self.structure.layout.name_at(watch.places[0]))
        return tuple(name for name, parameter in parameters if id(parameter) not in used)

    def _computed(self, images: Array, targets: Array) -> Repetition:
        engine, weights, sums = self._engine, self.weights, self.structure.layout.new_vector()
        before = weights.tobytes()
        engine.bind([weights], [sums])
        try:
            loss, outputs, _ = engine.forward(images, targets, _KEY)
            kept = outputs.tobytes()
            engine.backward(None)
            evaluated = engine.evaluate(images, targets).outputs.tobytes()
        except RuntimeError as error:
            raise _refusal(error) from error
        search = StateSearch.of(self.module)
        if weights.tobytes() != before:
            place = int(np.flatnonzero(weights.view(np.uint32) != np.frombuffer(before, np.uint32))[0])
            raise changed(self.structure.layout.name_at(place))
        return Repetition(np.float64(loss).tobytes(), kept, sums, evaluated, search.found, search.opaque)

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


def _opaque(later: Repetition) -> str:
    """Return the end of a message about the first object that cannot be looked into, if there is one."""
    return next(
        (f"; {_attribute(at)!r} is a {kind}, which cannot be looked into" for at, kind in sorted(later.opaque.items())),
        "",
    )


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

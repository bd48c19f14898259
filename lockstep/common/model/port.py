"""The port between a run and a model: the same for our autograd, for PyTorch, and for whatever else computes gradients.

A `Model` is trained. Its `Engine` computes: the weights of a slot and a micro-batch go in, sums are written
into a flat vector, and the loss and the outputs come out. Samples, leases, the tree of sums, the update, checkpoints
and verification know these two protocols only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.records import are_numbered
from lockstep.common.errors import ModelError
from lockstep.common.job.losses import LossKind
from lockstep.common.job.objective import Objective

#: Called with the index of a parameter, in the order of the layout, as soon as its gradient is final.
OnFinal = Callable[[int], None]


class DrawKey(NamedTuple):
    """The key of all random numbers of a micro-batch; a layer adds its place in the model to it (rule R2)."""

    seed: int
    step: int
    micro_batch: int


class Outcome(NamedTuple):
    """The result of a forward."""

    #: The sum of the losses, as a float32 that may not be finite.
    loss: float
    #: The model's outputs; valid until the next forward.
    outputs: Array
    #: The sum of the targets' weights, None if each that is not ignored weighs 1.
    weight: float | None = None


#: The inputs of a micro-batch's model, and the targets of its outputs.
Batch = tuple[Array, Array]


class OnePass(Protocol):
    """Computes several micro-batches of one size at once, with the bits that they have one by one."""

    #: To be filled before each pass: what the model is given of each micro-batch, along the first axis,
    images: Array
    #: and what its outputs are compared with.
    targets: Array
    #: The number of times that a pass calls `between`.
    length: int
    #: Whether random numbers are drawn: then `reseed` is called before each pass.
    draws: bool

    def reseed(self, keys: Sequence[DrawKey]) -> None:
        """Draw in the next pass as an engine does for micro-batches of these keys."""

    def forward(self, between: Callable[[], None]) -> tuple[Array, Array]:
        """Return the sum of the losses and the outputs of each micro-batch, along the first axis.

        They are valid until the next. `between` is called from time to time, as in `backward`; it may raise.
        """

    def observe(self, sums: Vector, weights: Sequence[float], *, adds: bool = False) -> None:
        """Write what the last forward observed for the running statistics, added over the tree, into `sums`.

        It is weighted by samples, and by what a sample of each micro-batch weighs; `adds` as in `backward`.
        """

    def backward(
        self, sums: Vector, between: Callable[[], None], on_final: OnFinal | None, *, adds: bool = False
    ) -> None:
        """Write the gradients of the last forward, added over the tree, into `sums`; `on_final` as an engine's.

        If it adds, which a pass over one micro-batch can, they are added to those there, as the second of two halves.
        """


class LayerOutput(NamedTuple):
    """The output of a layer for a micro-batch."""

    name: str
    kind: str
    output: Array


class Inspection(NamedTuple):
    """The values of a micro-batch: outputs of layers, and gradients."""

    outcome: Outcome
    #: In the order of computation.
    layers: list[LayerOutput]
    #: By the names of the parameters that took part.
    gradients: dict[str, Array]
    #: The origin of the first number that is not finite; None if all are finite.
    first_nonfinite: str | None


class Evidence(NamedTuple):
    """Evidence that a model computes the same here as elsewhere; empty if the fingerprint of the numerics is enough."""

    #: The library that computes, its version, and the instructions that it uses of the processor.
    engine: str = ""
    #: The digest of what it computed with the model, in hex.
    digest: str = ""
    #: The names of the trained parameters that got no gradient.
    unused: tuple[str, ...] = ()

    def notices(self) -> list[str]:
        """Return a line about parameters without a gradient, if there are any."""
        if not self.unused:
            return []
        more = f" and {len(self.unused) - 1} more parameters get" if len(self.unused) > 1 else " gets"
        text = (
            f"{self.unused[0]!r}{more} no gradient in the first step, which counts as a gradient of 0: weight decay "
            "and momentum still move them, while PyTorch's optimizers leave them as they are; to keep a parameter, set "
            "requires_grad = False"
        )
        return [text]


#: Passes over as many micro-batches of one size that are computed one by one before a program is made for them, which
#: takes as long as some dozen: a short run, as in a test, is over before that pays.
WARM_UP = 8


class Engine(Protocol):
    """Computes with values that lie in flat vectors of the layout's size.

    Equal weights, samples and keys give equal bits, whatever was computed before.
    """

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        """Compute with these vectors from now on, at first with the first of each. `weights` is read only."""

    def read_from(self, index: int) -> None:
        """Compute with the weights vector of that index."""

    def write_to(self, index: int) -> None:
        """Write gradients, and observed statistics, into the sums vector of that index."""

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        """Compute in training mode. A statistic that is observed is written as statistic × samples (rule R8)."""

    def backward(self, on_final: OnFinal | None) -> None:
        """Write the gradients of the sum of the losses of the last forward: zeros if a parameter took no part in it.

        `on_final` is called at most once for each parameter, in any order; one for which it is not called is final at
        the end.
        """

    def one_pass(self, count: int, samples: int, batches: Callable[[], Sequence[Batch]]) -> OnePass | None:
        """Return what computes so many micro-batches of so many samples at once, with gradients added over the tree.

        None if they have to be computed one by one. `batches` returns them, for which the weights of the moment are
        used: an engine may try with them.
        """

    @property
    def obstacle(self) -> str | None:
        """Why `one_pass` always returns None, in words for a person; None if it may return something."""

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        """Compute in evaluation mode, with the loss of the test set."""

    def inspect(self, images: Array, targets: Array, key: DrawKey) -> Inspection:
        """Compute forward and backward in training mode, and return the observed values; the vector of sums stays."""

    def first_nonfinite_layer(self, images: Array, key: DrawKey | None) -> str | None:
        """Return where the forward with that key, or the evaluation if None, first had a number that is not finite.

        As `"3.1 (Linear)"`; None if the outputs of all layers are finite.
        """


class Model(Protocol):
    """A model in training: named arrays, and a function of them and of samples."""

    @property
    def layout(self) -> ParameterLayout:
        """The places of each parameter and running statistic in a flat vector."""

    @property
    def module(self) -> Any:
        """The model as its user knows it."""

    @property
    def taken(self) -> str:
        """The output of several that `outputs` last returned, in words; empty if there is only one."""

    def momenta(self) -> Vector:
        """Return the momentum of each value of a running statistic, (size - parameter_size,)."""

    def first_weights(self, seed: int) -> Vector:
        """Return a new vector of the values that a run with that seed begins with."""

    def own_arrays(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the part of a state dict that belongs into the layout, by the layout's names."""

    def adopt(self, state: Mapping[str, Array]) -> None:
        """Give frozen parameters the values that a state dict has of them, before the layout's digest is taken.

        `ModelError` if a shape differs. The rest of the state dict is not looked at.
        """

    def state_dict(self) -> dict[str, Array]:
        """Return what the module's `load_state_dict` takes, with the values that it has now."""

    def load(self, weights: Vector, steps: int = 0) -> None:
        """Copy the weights after so many steps into the model, and put it into evaluation mode."""

    def outputs(self, images: Array) -> Array:
        """Return the outputs of the model in evaluation mode, with the values that it has now."""

    def evidence(
        self, objective: Objective, images: Array, targets: Array, again: Callable[[], "Model"] | None = None
    ) -> Evidence:
        """Compute a micro-batch with the first weights; `ModelError` if the model's bits cannot be repeated.

        `again` builds the model once more: that has to have the same values, and the same results after another
        micro-batch.
        """

    def engine(self, objective: Objective) -> Engine:
        """Return what computes with this model; it has to be bound to vectors first."""


def adopted(layout: ParameterLayout, state: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a state dict has of the frozen values of a layout, in their dtypes; `ModelError` as of `adopt`."""
    found = {}
    for each in layout.frozen:
        if each.name in state:
            array = np.asarray(state[each.name])
            if array.shape != each.array.shape:
                raise ModelError(
                    f"weights do not fit the model: {each.name!r} is {array.shape}, not {each.array.shape}"
                )
            found[each.name] = array.astype(each.array.dtype)
    return found


def changed_freezing(name: str, *, is_frozen: bool) -> ModelError:
    """Return the error of a parameter that is frozen in some steps, and trained in others."""
    was, became = ("trained", "frozen") if is_frozen else ("frozen", "trained")
    return ModelError(
        f"the model sets requires_grad of {name!r} in its forward, so that the parameter is {became} that was {was} "
        "when the model was built: expected a frozen parameter to stay so for the whole run; to train in two "
        "phases, start a second run with --initial and the first one's weights.safetensors"
    )


#: The output that is taken of those with names, if there is one of that name.
LOGITS = "logits"

#: An output that is never taken: models of transformers return it first if they are given labels.
LOSS = "loss"


def main_output(outputs: Any) -> tuple[str, Any]:
    """Return the output that named losses and evaluations take: "logits" of a dictionary, or else the first of several.

    Before it comes its name among several, in words; empty if it is the only one. Dictionaries may be of any kind, as
    the `ModelOutput` of transformers. A part of a tuple may be a tuple again.
    """
    if isinstance(outputs, Mapping):
        names = [name for name in outputs if name != LOSS]
        if not names:
            return "", outputs
        name = LOGITS if LOGITS in names else names[0]
        return f"{name!r} of {', '.join(map(repr, outputs))}", main_output(outputs[name])[1]
    if isinstance(outputs, Sequence) and outputs:
        which = f"the first of {len(outputs)}" if len(outputs) > 1 else ""
        return which, main_output(outputs[0])[1]
    return "", outputs


def main_tensor(outputs: Any, kind: type) -> Any:
    """Return the output that named losses and evaluations take, a tensor of this kind; `ModelError` if it is none."""
    found = outputs if isinstance(outputs, kind) else main_output(outputs)[1]
    if not isinstance(found, kind):
        raise ModelError(
            f"the model returned a {type(found).__name__}: expected a tensor of outputs, or several of them in a tuple "
            "or a dictionary; return the logits from its forward"
        )
    return found


def compared(objective: Objective, outputs: Any, kind: type) -> Any:
    """Return the outputs that a loss takes: one of the user takes all that the model returns."""
    return outputs if objective.kind is LossKind.OWN else main_tensor(outputs, kind)


def arguments_of(images: Array, tensor: Callable[[Array], Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return samples as a model is given them: several arrays by their names, or in order if these are their places."""
    names = images.dtype.names
    if names is None:
        return [tensor(np.ascontiguousarray(images))], {}
    fields = {name: tensor(np.ascontiguousarray(images[name])) for name in names}
    return (list(fields.values()), {}) if are_numbered(names) else ([], fields)

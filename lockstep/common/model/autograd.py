"""Models of the library's own layers, and of others that compute with its tensors: gradients come from our autograd."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lockstep.common.aggregation.layout import (
    Binding,
    LayoutEntry,
    ParameterLayout,
    gather,
    layout_of,
    running_statistics,
    statistic_momenta,
)
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd import graph
from lockstep.common.autograd.capture import Capture, TapedCapture, capture
from lockstep.common.autograd.graph import Leaf, no_grad, observing
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import Program, Stretch, Tree, proven, run
from lockstep.common.autograd.tape import UntapeableError
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.job.objective import Objective
from lockstep.common.model.inspection import inspected
from lockstep.common.model.port import Batch, DrawKey, Evidence, Inspection, OnFinal, Outcome
from lockstep.common.nn.inspection import first_nonfinite_layer
from lockstep.common.nn.module import Module, Parameter, Stochastic, first_unrepeatable, is_repeatable

#: Passes over as many micro-batches of one size that are computed one by one before a program is made for them, which
#: takes as long as some dozen: a short run, as in a test, is over before that pays.
WARM_UP = 8


@dataclass
class AutogradModel:
    """A `Module`."""

    module: Module
    #: Passes over micro-batches of one size that are computed as the module says before they are computed by a program.
    warm_up: int = WARM_UP
    layout: ParameterLayout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = layout_of(self.module)

    def momenta(self) -> Vector:
        return statistic_momenta(self.module, self.layout)

    def first_weights(self, seed: int) -> Vector:
        return gather(self.module.initialize(seed), self.layout)

    def own_arrays(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        return state

    def load(self, weights: Vector, steps: int = 0) -> None:
        self.module.load_state_dict(self.layout.read(weights))
        self.module.eval()

    def outputs(self, images: Array) -> Array:
        self.module.eval()
        with no_grad():
            outputs: Array = self.module(Tensor(images)).data
        return outputs

    def evidence(self, objective: Objective, images: Array, targets: Array) -> Evidence:
        return Evidence()

    def engine(self, objective: Objective) -> "AutogradEngine":
        return AutogradEngine(self.module, self.layout, objective, self.warm_up)


@dataclass
class TrainingPass:
    """Forward and backward of a model over a micro-batch: by the engine the first time, then by what was captured.

    Either way the bits are the same.
    """

    model: Module
    parameters: list[Parameter]
    objective: Objective
    #: Whether the model is known to do the same with every batch of one shape.
    _is_repeatable: bool = field(init=False)
    #: By the shape of the images: what follows from it is the same for all batches of a job.
    _captures: dict[tuple[int, ...], Capture] = field(default_factory=dict)
    #: What walks back over the last forward.
    _pending: Tensor | Capture | None = None

    def __post_init__(self) -> None:
        self._is_repeatable = is_repeatable(self.model)

    def forward(self, images: Array, targets: Array) -> tuple[Array, Array]:
        """Return the sum of the losses, a number, and the model's outputs; `targets` are as the objective has them."""
        # An observer of the engine wants to see it at work.
        captured = self._captures.get(images.shape) if observing.get() is None else None
        if captured is not None:
            loss, outputs = captured.forward(images, targets)
            self._pending = captured
            return loss, outputs
        return self._forward_by_engine(images, targets)

    def _forward_by_engine(self, images: Array, targets: Array) -> tuple[Array, Array]:
        if self._is_repeatable:
            results, captured = capture(self._compute, (images, targets), self.parameters)
            if captured is not None:
                self._captures[images.shape] = captured
        else:
            results = self._compute(images, targets)
        loss, outputs = results
        self._pending = loss
        return loss.data, outputs.data

    def _compute(self, images: Array, targets: Array) -> tuple[Tensor, Tensor]:
        outputs = self.model(Tensor(images))
        return self.objective.training_loss(outputs, targets), outputs

    def captured(self, images: Array) -> Capture | None:
        """Return what was captured of a pass over a batch of that shape."""
        return self._captures.get(images.shape)

    def backward(self, on_final: graph.OnFinal | None = None) -> None:
        """Add to the parameters' gradients those of the last forward, once after each; `on_final` as in `Tensor`."""
        pending, self._pending = self._pending, None
        if isinstance(pending, Capture):
            pending.backward(on_final)
        else:
            assert pending is not None
            pending.backward(retain_graph=False, on_final=on_final)


@dataclass(eq=False)
class StackedPass:
    """A program, and its versions for the vectors that it was used with."""

    program: Program
    module: Module
    layout: ParameterLayout
    #: Whether a gradient reaches each parameter.
    is_reached: Sequence[bool]
    #: The vector that the next pass reads.
    weights: Vector
    images: Array = field(init=False)
    targets: Array = field(init=False)
    #: The parameters that no gradient reaches.
    _unreached: list[LayoutEntry] = field(init=False)
    #: By the addresses of vectors, which it keeps, so that no others are made there.
    _forward: dict[int, tuple[list[Stretch], Vector]] = field(default_factory=dict)
    _backward: dict[tuple[int, int, bool], tuple[list[Stretch], Vector, Vector]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images, self.targets = self.program.inputs
        entries = zip(self.is_reached, self.layout.parameters, strict=True)
        self._unreached = [entry for is_reached, entry in entries if not is_reached]

    @property
    def length(self) -> int:
        return self.program.length

    @property
    def draws(self) -> bool:
        return self.program.draws

    def reseed(self, keys: Sequence[DrawKey]) -> None:
        self.program.reseed(lambda batch: self.module.reseed(*keys[batch]))

    def forget(self) -> None:
        """Keep no vector."""
        self._forward.clear()
        self._backward.clear()

    def forward(self, between: Callable[[], None]) -> tuple[Array, Array]:
        weights = self.weights
        known = self._forward.get(id(weights))
        if known is None:
            known = self._forward[id(weights)] = self.program.forward(self._views(weights)), weights
        run(known[0], lambda finishes: between())
        losses, outputs = self.program.outputs
        return losses, outputs

    def observe(self, sums: Vector, targets: int, *, adds: bool = False) -> None:
        size = self.layout.parameter_size
        total = self._observed(self.program.tree, targets)
        sums[size:] = sums[size:] + total if adds else total

    def _observed(self, tree: Tree, targets: int) -> Vector:
        """Return what a tree of micro-batches observed, as `observe` writes it."""
        if not isinstance(tree, int):
            first, second = (self._observed(each, targets) for each in tree)
            return np.add(first, second, out=first)
        # What no forward observes stays as it is: its sum is the number of samples times its value.
        seen = self.weights[self.layout.parameter_size :] * np.float32(self.images.shape[1])
        for entry, statistic in zip(self.layout.statistics, running_statistics(self.module).values(), strict=True):
            start = entry.offset - self.layout.parameter_size
            statistic.observed = seen[start : start + entry.size].reshape(entry.shape)
        self.program.observe(tree)
        return np.multiply(seen, np.float32(targets), out=seen) if targets != 1 else seen

    def backward(
        self, sums: Vector, between: Callable[[], None], on_final: OnFinal | None, *, adds: bool = False
    ) -> None:
        weights = self.weights
        known = self._backward.get((id(weights), id(sums), adds))
        if known is None:
            made = self.program.backward(self._views(weights), self._views(sums), adds=adds)
            known = self._backward[id(weights), id(sums), adds] = made, weights, sums

        def end(finishes: Sequence[int]) -> None:
            if on_final is not None:
                for index in finishes:
                    on_final(index)
            between()

        run(known[0], end)
        if not adds:
            for entry in self._unreached:
                entry.view(sums).fill(0.0)

    def _views(self, vector: Vector) -> list[Vector]:
        return [entry.view(vector) for entry in self.layout.parameters]


class AutogradEngine:
    """Computes a model by our autograd, whose backward writes gradients into their views in the vector of sums."""

    def __init__(self, module: Module, layout: ParameterLayout, objective: Objective, warm_up: int = WARM_UP) -> None:
        self._module = module
        self._warm_up = warm_up
        self._layout = layout
        self._objective = objective
        # Every part of it, whatever the model's builder left behind: `_put` looks at the root only.
        module.train()
        #: Whether any module draws random numbers in its forward.
        self._draws = any(isinstance(each, Stochastic) for each in module.modules())
        self._pass = TrainingPass(module, list(module.parameters()), objective)
        self._indices: dict[Leaf | None, int] = {
            parameter.leaf: index for index, parameter in enumerate(self._pass.parameters)
        }
        #: What of the module keeps it from being captured; looking for it takes as long as a small micro-batch.
        self._unrepeatable = first_unrepeatable(module)
        #: Why no program can be made, once that was tried.
        self._refusal: str | None = None
        #: How often micro-batches of so many samples were wanted in one pass, by the tree over them.
        self._wanted: Counter[tuple[Tree, int]] = Counter()
        self._stacked: dict[tuple[Tree, int], StackedPass | None] = {}
        self._taped: dict[tuple[int, ...], TapedCapture | None] = {}

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        self._binding = Binding(self._module, self._layout, weights, sums)
        self._weights = weights
        self._reads = self._writes = 0
        #: The vectors that the module's arrays are in, by their indices; None if not all are.
        self._bound: tuple[int, int] | None = (0, 0)
        for known in self._stacked.values():
            if known is not None:
                known.forget()

    def read_from(self, index: int) -> None:
        self._reads = index

    def write_to(self, index: int) -> None:
        self._writes = index

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        self._put(is_training=True)
        if self._draws:
            self._module.reseed(*key)
        loss, outputs = self._pass.forward(images, targets)
        return Outcome(float(loss), outputs)

    def backward(self, on_final: OnFinal | None) -> None:
        for parameter in self._pass.parameters:
            parameter.grad = None
        indices = self._indices
        self._pass.backward(None if on_final is None else lambda leaf: on_final(indices[leaf]))
        for parameter, sums in zip(self._pass.parameters, self._binding.gradients, strict=True):
            if parameter.grad is None:
                sums.fill(0.0)

    def one_pass(self, tree: Tree, samples: int, batches: Callable[[], Sequence[Batch]]) -> StackedPass | None:
        if observing.get() is not None or self.obstacle is not None:
            return None
        key = (tree, samples)
        if key not in self._stacked:
            self._wanted[key] += 1
            if self._wanted[key] <= self._warm_up:
                return None
            self._stacked[key] = self._made(tree, batches())
        made = self._stacked[key]
        if made is not None:
            made.weights = self._weights[self._reads]
            if self._layout.statistics:
                self._bound = None  # a pass turns the statistics to memory of its own
        return made

    def _made(self, tree: Tree, batches: Sequence[Batch]) -> StackedPass | None:
        self._put(is_training=True)
        images, targets = batches[0]
        if self._pass.captured(images) is None:
            self._pass.forward(images, targets)

        def reseed(batch: int) -> None:
            if self._draws:
                self._module.reseed(0, 0, batch)

        captured = self._pass.captured(images)
        taped = None if captured is None else self._tape(captured, batches[0])
        if captured is None or taped is None:
            return None
        try:
            program = proven(captured, taped, self._pass.parameters, tree, batches, reseed)
        except UntapeableError as error:
            self._refusal = str(error)
            return None
        if program is None:
            return None
        return StackedPass(program, self._module, self._layout, taped.is_reached, self._weights[0])

    def _tape(self, captured: Capture, batch: Batch) -> TapedCapture | None:
        shape = batch[0].shape
        if shape not in self._taped:
            try:
                self._taped[shape] = captured.taped(batch)
            except UntapeableError as error:
                self._taped[shape], self._refusal = None, str(error)
        return self._taped[shape]

    @property
    def obstacle(self) -> str | None:
        module = self._unrepeatable
        return self._refusal if module is None else f"{module} may compute something else with each batch"

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        self._put(is_training=False)
        with no_grad():
            outputs = self._module(Tensor(images))
            loss = self._objective.test_loss(outputs, targets)
        return Outcome(float(loss.data), outputs.data)

    def inspect(self, images: Array, targets: Array, key: DrawKey) -> Inspection:
        self._put(is_training=True)
        self._module.zero_grad()
        self._module.reseed(*key)
        return inspected(self._module, self._objective, images, targets)

    def first_nonfinite_layer(self, images: Array, key: DrawKey | None) -> str | None:
        self._put(is_training=key is not None)
        if key is not None:
            # The forward that looks for the layer is to draw the very numbers of the other one.
            self._module.reseed(*key)
        return first_nonfinite_layer(self._module, Tensor(images))

    def _put(self, *, is_training: bool) -> None:
        """Put the whole model into one mode, and turn it to the vectors at hand, which a program does not need."""
        if self._module.training != is_training:
            self._module.train(is_training)
        if self._bound != (self._reads, self._writes):
            self._binding.read_from(self._reads)
            self._binding.write_to(self._writes)
            self._bound = self._reads, self._writes

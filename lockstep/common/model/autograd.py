"""Models of the library's own layers, and of others that compute with its tensors: gradients come from our autograd."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.common.aggregation.layout import (
    Binding,
    ParameterLayout,
    gather,
    layout_of,
    trained_parameters,
)
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.capture import Capture, capture
from lockstep.common.autograd.graph import Leaf, no_grad, observing, watch
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import CallList, Program, proven, run
from lockstep.common.autograd.tape import UntapeableError
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.errors import ModelError
from lockstep.common.job.objective import LossSum, Objective
from lockstep.common.model.port import (
    WARM_UP,
    Batch,
    DrawKey,
    Evidence,
    Inspection,
    LayerOutput,
    Model,
    OnFinal,
    Outcome,
    adopted,
    arguments_of,
    changed_freezing,
    compared,
    main_output,
    main_tensor,
)
from lockstep.common.nn.inspection import Inspector, first_nonfinite_layer
from lockstep.common.nn.module import Module, Stochastic, first_unrepeatable
from lockstep.common.numerics.sums import over_tree


def apply(module: Module, images: Array) -> Any:
    """Return what a module makes of samples."""
    inputs, by_name = arguments(images)
    return module(*inputs, **by_name)


def arguments(images: Array) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return samples as a module is given them."""
    return arguments_of(images, Tensor)


def taken(outputs: Any) -> Tensor:
    """Return the output that a named loss and evaluations take of a model that has several."""
    found: Tensor = main_tensor(outputs, Tensor)
    return found


@dataclass
class AutogradModel:
    """A `Module`."""

    module: Module
    #: Passes over micro-batches of one size that are computed as the module says before they are computed by a program.
    warm_up: int = WARM_UP
    layout: ParameterLayout = field(init=False)
    taken: str = field(default="", init=False)
    #: Values that are the same for any seed, although a module would draw them, by name: those that the model's builder
    #: has set, or a file has.
    own_values: dict[str, Array] = field(init=False)

    def __post_init__(self) -> None:
        self.own_values = {name: each.data.copy() for name, each in self.module.own_initial_values()}
        self.layout = layout_of(self.module)

    def initialize(self, seed: int) -> None:
        """Draw all parameters from the seed, frozen ones too, but for those that have values of their own."""
        self.module.initialize(seed)
        for name, parameter in self.module.named_parameters():
            if name in self.own_values:
                parameter.data[...] = self.own_values[name]
        self.layout = layout_of(self.module)

    def adopt(self, state: Mapping[str, Array]) -> None:
        parameters = dict(self.module.named_parameters())
        for name, array in adopted(self.layout, state).items():
            self.own_values[name] = array
            parameters[name].data[...] = array
        self.layout = layout_of(self.module)

    def state_dict(self) -> dict[str, Array]:
        return self.module.state_dict()

    def momenta(self) -> Vector:
        return self.layout.momenta(each.momentum for each in self.module.buffers())

    def first_weights(self, seed: int) -> Vector:
        self.initialize(seed)
        return gather(self.module, self.layout)

    def own_arrays(self, state: Mapping[str, Array]) -> Mapping[str, Array]:
        return state

    def load(self, weights: Vector, steps: int = 0) -> None:
        self.module.load_state_dict(self.layout.read(weights))
        self.module.eval()

    def outputs(self, images: Array) -> Array:
        self.module.eval()
        with no_grad():
            outputs = apply(self.module, images)
        self.taken, _ = main_output(outputs)
        found: Array = taken(outputs).data
        return found

    def evidence(
        self, objective: Objective, images: Array, targets: Array, again: Callable[[], Model] | None = None
    ) -> Evidence:
        if again is not None and (self.own_values or self.layout.frozen):
            other = again()
            assert isinstance(other, AutogradModel)
            self._check_same_values(other)
        return Evidence()

    def _check_same_values(self, other: "AutogradModel") -> None:
        """Raise `ModelError` with the first value that the model's function sets to something else each time."""
        here, there = ({name: each.tobytes() for name, each in model.own_values.items()} for model in (self, other))
        names = [name for name in (*here, *there) if here.get(name) != there.get(name)]
        frozen = zip(self.layout.frozen, other.layout.frozen, strict=True)
        names += [one.name for one, another in frozen if one.sha256 != another.sha256]
        if names:
            raise ModelError(
                f"the model has other initial values when it is built again: {names[0]!r} differs; expected the same "
                "each time, so that the run can be repeated: set them from a generator with a fixed seed, such as "
                "numpy.random.default_rng(0)"
            )

    def engine(self, objective: Objective) -> "AutogradEngine":
        return AutogradEngine(self.module, self.layout, objective, self.warm_up)


#: Returns loss and output of a batch.
ComputeBatch = Callable[[Array, Array], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class StackedPass:
    """A program, and its versions for the vectors that it was used with."""

    program: Program
    module: Module
    layout: ParameterLayout
    images: Array = field(init=False)
    targets: Array = field(init=False)
    length: int = field(init=False)
    draws: bool = field(init=False)
    #: The vectors of weights, and the index of the one that the next pass reads.
    _weights: Sequence[Vector] = ()
    _reads: int = 0
    #: By the index of the weights.
    _forward: dict[int, list[CallList]] = field(default_factory=dict)
    #: By the index of the weights, and by whether sums are added to the values there: for each vector of sums.
    _backward: dict[tuple[int, bool], list[tuple[Vector, list[CallList]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images, self.targets = self.program.inputs
        self.length, self.draws = self.program.length, self.program.draws

    def reseed(self, keys: Sequence[DrawKey]) -> None:
        self.program.reseed(lambda batch: self.module.reseed(*keys[batch]))

    def bind(self, weights: Sequence[Vector]) -> None:
        """Compute with these vectors of weights; keep no other vector."""
        self._weights = weights
        self._forward.clear()
        self._backward.clear()

    def read_from(self, index: int) -> None:
        """Let the next pass read the weights vector of that index."""
        self._reads = index

    def forward(self, between: Callable[[], None]) -> tuple[Array, Array]:
        segments = self._forward.get(self._reads)
        if segments is None:
            segments = self._forward[self._reads] = self.program.forward(self._read())
        run(segments, lambda finishes: between())
        losses, outputs = self.program.outputs
        return losses, outputs

    def observe(self, sums: Vector, weights: Sequence[float], *, adds: bool = False) -> None:
        size, statistics = self.layout.parameter_size, list(self.module.buffers())
        places = [statistic.observed for statistic in statistics]
        total = over_tree(len(weights), lambda batch: self._observed(batch, weights[batch]), np.add)
        sums[size:] = sums[size:] + total if adds else total
        # A micro-batch that is computed without a pass observes where the engine has put them.
        for statistic, place in zip(statistics, places, strict=True):
            statistic.observed = place

    def _observed(self, batch: int, weight: float) -> Vector:
        """Return what a micro-batch observed, times its weight."""
        # A statistic that no forward observes stays as it is: its sum is the number of samples times its value.
        seen = self._weights[self._reads][self.layout.parameter_size :] * np.float32(self.images.shape[1])
        for entry, statistic in zip(self.layout.statistics, self.module.buffers(), strict=True):
            start = entry.offset - self.layout.parameter_size
            statistic.observed = seen[start : start + entry.size].reshape(entry.shape)
        self.program.observe(batch)
        return np.multiply(seen, np.float32(weight), out=seen) if weight != 1.0 else seen

    def backward(
        self, sums: Vector, between: Callable[[], None], on_final: OnFinal | None, *, adds: bool = False
    ) -> None:
        def end(finishes: Sequence[int]) -> None:
            if on_final is not None:
                for index in finishes:
                    on_final(index)
            between()

        run(self._segments_for(sums, adds=adds), end)

    def _segments_for(self, sums: Vector, *, adds: bool) -> list[CallList]:
        known = self._backward.setdefault((self._reads, adds), [])
        for vector, segments in known:
            if vector is sums:
                return segments
        made = self.program.backward(self._read(), self._views(sums), adds=adds)
        known.append((sums, made))
        return made

    def _read(self) -> list[Array]:
        """Return the vectors that the next pass reads: the weights, and the frozen values."""
        return [*self._views(self._weights[self._reads]), *(each.array for each in self.layout.frozen)]

    def _views(self, vector: Vector) -> list[Vector]:
        return [entry.view(vector) for entry in self.layout.parameters]


class StackedPasses:
    """The passes of a model over several micro-batches: each is made when it was wanted so often that it pays."""

    def __init__(self, module: Module, layout: ParameterLayout, compute: ComputeBatch, warm_up: int) -> None:
        self._module = module
        self._layout = layout
        #: Returns loss and output of a batch, by the same calls for each if there is no obstacle.
        self._compute = compute
        self._warm_up = warm_up
        self._parameters = list(trained_parameters(module).values())
        self._frozen = [each for _, each in module.named_parameters() if not each.requires_grad]
        # It is looked for once, which takes as long as a small micro-batch.
        part = first_unrepeatable(module)
        #: Why no pass can be made; the reason may show only when one is tried.
        self.obstacle = None if part is None else f"{part} may compute something else with each batch"
        #: How often so many micro-batches of so many samples were wanted in one pass.
        self._wanted: Counter[tuple[int, int]] = Counter()
        #: The passes by the same; None where one by one is the only way.
        self.made: dict[tuple[int, int], StackedPass | None] = {}
        self._captures: dict[tuple[int, ...], Capture] = {}
        self._weights: Sequence[Vector] = ()

    def bind(self, weights: Sequence[Vector]) -> None:
        """Compute with these vectors of weights."""
        self._weights = weights
        for known in self.made.values():
            if known is not None:
                known.bind(weights)

    def want(self, count: int, samples: int, batches: Callable[[], Sequence[Batch]]) -> StackedPass | None:
        """Return a pass as the engine's `one_pass`; if it is to be made, the model is used after `batches`."""
        key = (count, samples)
        if key not in self.made:
            self._wanted[key] += 1
            if self._wanted[key] <= self._warm_up:
                return None
            self.made[key] = self._make(batches())
        return self.made[key]

    def _make(self, batches: Sequence[Batch]) -> StackedPass | None:
        def reseed(batch: int) -> None:
            self._module.reseed(0, 0, batch)

        frozen = [each.data for each in self._frozen]
        try:
            captured = self._captured(batches[0], frozen)
            program = proven(self._compute, captured, self._parameters, batches, reseed, frozen)
        except UntapeableError as error:
            self.obstacle = str(error)
            return None
        if program is None:
            return None
        made = StackedPass(program, self._module, self._layout)
        made.bind(self._weights)
        return made

    def _captured(self, batch: Batch, frozen: Sequence[Array]) -> Capture:
        shape = batch[0].shape
        if shape not in self._captures:
            self._captures[shape] = capture(self._compute, batch, self._parameters, frozen)
        return self._captures[shape]


class AutogradEngine:
    """Computes a model by our autograd, whose backward writes gradients into their views in the vector of sums."""

    def __init__(self, module: Module, layout: ParameterLayout, objective: Objective, warm_up: int = WARM_UP) -> None:
        self._module = module
        self._layout = layout
        self._objective = objective
        # Every part of it, whatever the model's builder left behind: `_put` looks at the root only.
        module.train()
        #: Whether any module draws random numbers in its forward.
        self._draws = any(isinstance(each, Stochastic) for each in module.modules())
        self._trained = trained_parameters(module)
        self._frozen = {name: each for name, each in module.named_parameters() if not each.requires_grad}
        self._indices: dict[Leaf | None, int] = {each.leaf: index for index, each in enumerate(self._trained.values())}
        #: The loss of the last forward.
        self._loss: Tensor | None = None
        self._passes = StackedPasses(module, layout, self._compute_repeatedly, warm_up)

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        self._weights, self._sums = weights, sums
        self._binding = Binding(self._module, self._layout, weights, sums)
        self._reads = self._writes = 0
        #: The vectors that the module's arrays are in, by their indices; None if they are in others.
        self._bound: tuple[int, int] | None = (0, 0)
        self._passes.bind(weights)

    def read_from(self, index: int) -> None:
        self._reads = index

    def write_to(self, index: int) -> None:
        self._writes = index

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        self._put(is_training=True)
        if self._draws:
            self._module.reseed(*key)
        (self._loss, weight), outputs = self._compute(images, targets)
        return Outcome(float(self._loss.data), taken(outputs).data, weight)

    def _compute(self, images: Array, targets: Array) -> tuple[LossSum, Any]:
        """Return the sum of the losses, and the outputs."""
        outputs = apply(self._module, images)
        return self._objective.training_loss(compared(self._objective, outputs, Tensor), targets), outputs

    def _compute_repeatedly(self, images: Array, targets: Array) -> tuple[Tensor, Tensor]:
        """Return the same of a model and a loss that make the same calls with each batch."""
        (loss, _), outputs = self._compute(images, targets)
        return loss, taken(outputs)

    def backward(self, on_final: OnFinal | None) -> None:
        loss, self._loss = self._loss, None
        assert loss is not None
        self._check_frozen()
        for parameter in self._trained.values():
            parameter.grad = None
        indices = self._indices
        loss.backward(retain_graph=False, on_final=None if on_final is None else lambda leaf: on_final(indices[leaf]))
        for parameter, sums in zip(self._trained.values(), self._binding.gradients, strict=True):
            if parameter.grad is None:
                sums.fill(0.0)

    def _check_frozen(self) -> None:
        """Raise `ModelError` if a forward has frozen a parameter, or let one be trained that was frozen."""
        for name, parameter in self._trained.items():
            if parameter.leaf not in self._indices:
                raise changed_freezing(name, is_frozen=not parameter.requires_grad)
        for name, parameter in self._frozen.items():
            if parameter.requires_grad:
                raise changed_freezing(name, is_frozen=False)

    def one_pass(self, count: int, samples: int, batches: Callable[[], Sequence[Batch]]) -> StackedPass | None:
        def on_copies() -> Sequence[Batch]:
            # A pass is compared with what the model computes after it. Both read a copy of the weights, since the other
            # processes of a team do not wait, and may write those of a later step in between.
            self._put(is_training=True)
            weights = self._layout.new_vector()
            np.copyto(weights, self._weights[self._reads])
            Binding(self._module, self._layout, [weights], [self._sums[self._writes]])
            self._bound = None
            return batches()

        if observing.get() is not None or self.obstacle is not None:
            return None
        made = self._passes.want(count, samples, on_copies)
        if self._bound is None:
            self._put(is_training=True)
        if made is not None:
            made.read_from(self._reads)
        return made

    @property
    def obstacle(self) -> str | None:
        if not self._objective.is_stackable:
            return "a loss of your own may compute something else with each batch"
        return self._passes.obstacle

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        self._put(is_training=False)
        with no_grad():
            outputs = apply(self._module, images)
            loss, weight = self._objective.test_loss(compared(self._objective, outputs, Tensor), targets)
        return Outcome(float(loss.data), taken(outputs).data, weight)

    def inspect(self, images: Array, targets: Array, key: DrawKey) -> Inspection:
        self._put(is_training=True)
        self._module.zero_grad()
        self._module.reseed(*key)
        inspector = Inspector()
        with watch(inspector.on_operation), self._module.observe_outputs(inspector.on_layer):
            (loss, weight), outputs = self._compute(images, targets)
            loss.backward()
        named = self._module.named_parameters()
        gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        layers = [LayerOutput(*each) for each in inspector.outputs]
        return Inspection(
            Outcome(float(loss.data), taken(outputs).data, weight),
            layers,
            gradients,
            inspector.first_nonfinite(gradients),
        )

    def first_nonfinite_layer(self, images: Array, key: DrawKey | None) -> str | None:
        self._put(is_training=key is not None)
        if key is not None:
            # The forward that looks for the layer is to draw the very numbers of the other one.
            self._module.reseed(*key)
        inputs, by_name = arguments(images)
        return first_nonfinite_layer(self._module, *inputs, **by_name)

    def _put(self, *, is_training: bool) -> None:
        """Put the whole model into one mode, and turn it to the current vectors, which a program does not need."""
        if self._module.training != is_training:
            self._module.train(is_training)
        if self._bound != (self._reads, self._writes):
            self._binding.read_from(self._reads)
            self._binding.write_to(self._writes)
            self._bound = self._reads, self._writes

"""A model that remembers what it computed, for all processes of all simulated runs: most of them compute the same.

An answer is found by all of its inputs, bit by bit: weights, samples and key. So a process that has other weights or
samples than it should computes something else here too. The model must not know which process computes, or why.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np

from lockstep.common.aggregation.layout import ParameterLayout
from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.program import Tree
from lockstep.common.job.objective import Objective
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Batch, DrawKey, Engine, Inspection, Model, OnePass, OnFinal, Outcome
from lockstep.common.model.source import ModelSource
from lockstep.common.nn.description import build

#: Bytes of vectors that each model remembers at most.
MOST_BYTES = 2**25

#: Number of first and of last weights that tell most vectors apart before all are compared.
ENDS = 8

#: A micro-batch, or without a key a chunk of an evaluation: the bytes of its samples, and of some of the weights.
Question = tuple[DrawKey | None, bytes, bytes, bytes, bytes]


class RememberedSums(msgspec.Struct, frozen=True):
    """The results of a model's computation, and the weights that it used."""

    weights: Vector
    outcome: Outcome
    #: The sums, empty for an evaluation, and the parameters in the order in which their gradients became final.
    sums: Vector
    finals: Sequence[int]


@dataclass
class Answers:
    """All answers that one model has computed so far, and the engine that computes new ones."""

    engine: Engine
    layout: ParameterLayout
    known: dict[Question, RememberedSums] = field(default_factory=dict)
    #: The weights of the last answer.
    weights: Vector = field(default_factory=lambda: np.empty(0, np.float32))
    bytes: int = 0

    def to(self, key: DrawKey | None, images: Array, targets: Array, weights: Vector) -> RememberedSums:
        """Return the answer to a question."""
        samples = images.tobytes(), targets.tobytes()
        question = key, *samples, weights[:ENDS].tobytes(), weights[-ENDS:].tobytes()
        known = self.known.get(question)
        if known is not None and is_same(known.weights, weights):
            return known
        answer = self._compute(key, images, targets, weights)
        if known is None and self.bytes < MOST_BYTES:
            self.known[question] = answer
            self.bytes += answer.sums.nbytes
        return answer

    def _compute(self, key: DrawKey | None, images: Array, targets: Array, weights: Vector) -> RememberedSums:
        if not is_same(self.weights, weights):
            self.weights = weights.copy()
            self.bytes += weights.nbytes
        sums, size = np.empty_like(weights), self.layout.parameter_size
        self.engine.bind([self.weights], [sums])
        if key is None:
            outcome = self.engine.evaluate(images, targets)
            return RememberedSums(self.weights, kept(outcome), sums[:0], ())
        # Running statistics that a forward does not observe keep their values.
        np.multiply(weights[size:], np.float32(len(images)), out=sums[size:])
        finals = list[int]()
        outcome = kept(self.engine.forward(images, targets, key))
        self.engine.backward(finals.append)
        return RememberedSums(self.weights, outcome, sums, finals)


def kept(outcome: Outcome) -> Outcome:
    """Return an outcome that stays valid."""
    return outcome._replace(outputs=outcome.outputs.copy())


def is_same(one: Vector, other: Vector) -> bool:
    """Tell whether vectors have the same bits."""
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


@dataclass(eq=False)
class RememberedPass(OnePass):
    """Several micro-batches at once, whose weights are read twice: for the forward, and for the backward."""

    answers: Answers
    tree: Tree
    images: Array
    targets: Array
    weights: Vector = field(default_factory=lambda: np.empty(0, np.float32))
    draws: bool = True
    _keys: Sequence[DrawKey] = ()
    _found: Sequence[RememberedSums] = ()

    def reseed(self, keys: Sequence[DrawKey]) -> None:
        self._keys = keys

    def _ask(self) -> None:
        each = zip(self._keys, self.images, self.targets, strict=True)
        self._found = [self.answers.to(key, images, targets, self.weights) for key, images, targets in each]

    def forward(self, between: Callable[[], None]) -> tuple[Array, Array]:
        self._ask()
        outcomes = [found.outcome for found in self._found]
        between()
        return np.array([each.loss for each in outcomes], np.float32), np.stack([each.outputs for each in outcomes])

    @property
    def length(self) -> int:
        return 1 + len(self.answers.layout.parameters)

    def observe(self, sums: Vector, weights: Sequence[float], *, adds: bool = False) -> None:
        part = slice(self.answers.layout.parameter_size, None)
        of = {id(found): np.float32(weight) for found, weight in zip(self._found, weights, strict=True)}
        seen = self._added(self.tree, lambda found: found.sums[part] * of[id(found)])
        sums[part] = sums[part] + seen if adds else seen

    def backward(
        self, sums: Vector, between: Callable[[], None], on_final: OnFinal | None, *, adds: bool = False
    ) -> None:
        if not is_same(self._found[0].weights, self.weights):
            self._ask()
        # Other processes see the sums while they are written, some of them new and some not.
        for index in self._found[0].finals:
            entry = self.answers.layout.parameters[index]
            self._write(slice(entry.offset, entry.offset + entry.size), sums, adds=adds)
            if on_final is not None:
                on_final(index)
            between()

    def _write(self, part: slice, sums: Vector, *, adds: bool) -> None:
        found = self._added(self.tree, lambda found: found.sums[part])
        sums[part] = sums[part] + found if adds else found

    def _added(self, tree: Tree, of: Callable[[RememberedSums], Vector]) -> Vector:
        """Return vectors of all micro-batches, added over the tree."""
        return of(self._found[tree]) if isinstance(tree, int) else np.add(*(self._added(each, of) for each in tree))


@dataclass
class RememberingEngine(Engine):
    """Computes answers that are not known yet, and writes them as an engine does."""

    answers: Answers
    _weights: Sequence[Vector] = ()
    _sums: Sequence[Vector] = ()
    _reads: int = 0
    _writes: int = 0
    #: The answer of the last forward.
    _answer: RememberedSums | None = None
    _passes: dict[tuple[Tree, int], RememberedPass] = field(default_factory=dict)

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        self._weights, self._sums = weights, sums
        self._reads = self._writes = 0

    def read_from(self, index: int) -> None:
        self._reads = index

    def write_to(self, index: int) -> None:
        self._writes = index

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        sums, size = self._sums[self._writes], self.answers.layout.parameter_size
        answer = self._answer = self.answers.to(key, images, targets, self._weights[self._reads])
        sums[size:] = answer.sums[size:]
        return answer.outcome

    def backward(self, on_final: OnFinal | None) -> None:
        answer, size = self._answer, self.answers.layout.parameter_size
        assert answer is not None
        self._sums[self._writes][:size] = answer.sums[:size]
        if on_final is not None:
            for index in answer.finals:
                on_final(index)

    def one_pass(self, tree: Tree, samples: int, batches: Callable[[], Sequence[Batch]]) -> RememberedPass:
        if (tree, samples) not in self._passes:
            images, targets = (np.stack(arrays) for arrays in zip(*batches(), strict=True))
            self._passes[tree, samples] = RememberedPass(self.answers, tree, images, targets)
        found = self._passes[tree, samples]
        found.weights = self._weights[self._reads]
        return found

    @property
    def obstacle(self) -> str | None:
        return None

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        return self.answers.to(None, images, targets, self._weights[self._reads]).outcome

    def inspect(self, images: Array, targets: Array, key: DrawKey) -> Inspection:
        return self._bound().inspect(images, targets, key)

    def first_nonfinite_layer(self, images: Array, key: DrawKey | None) -> str | None:
        return self._bound().first_nonfinite_layer(images, key)

    def _bound(self) -> Engine:
        """Return what computes by itself, with our vectors."""
        self.answers.engine.bind([self._weights[self._reads]], [self._sums[self._writes]])
        return self.answers.engine


@dataclass
class RememberingModel(AutogradModel):
    """A module, all of whose engines remember what one of them has computed."""

    _answers: dict[Objective, Answers] = field(default_factory=dict)

    def engine(self, objective: Objective) -> RememberingEngine:  # type: ignore[override]
        if objective not in self._answers:
            self._answers[objective] = Answers(super().engine(objective), self.layout)
        return RememberingEngine(self._answers[objective])


def remembering(source: ModelSource, seed: int) -> Model:
    """Return the model of a description, the same one each time: its values are those of the last computation."""
    return _model_of(msgspec.json.encode(source.own))


@cache
def _model_of(description: bytes) -> RememberingModel:
    return RememberingModel(build(msgspec.json.decode(description)))

"""A model that remembers what it computed, for all processes of all simulated runs: most of them compute the same.

What is remembered is found by all that goes in, bit by bit: weights, samples and key. So a process that has other
weights or samples than it should computes something else here too. Must not know who computes, or why.
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
from lockstep.common.model.port import Batch, DrawKey, Engine, Inspection, Model, OnFinal, OnePass, Outcome
from lockstep.common.model.source import ModelSource
from lockstep.common.nn.description import build

#: Bytes of vectors that each model remembers at most.
MOST_BYTES = 2**25

#: Number of first and of last weights that tell most vectors apart before all are compared.
ENDS = 8

#: A micro-batch, or without a key a chunk of an evaluation: the bytes of its samples, and of some of the weights.
Question = tuple[DrawKey | None, bytes, bytes, bytes, bytes]


@dataclass(frozen=True)
class Answer:
    """What a model computed, with which weights."""

    weights: Vector
    outcome: Outcome
    #: The sums, empty for an evaluation, and the parameters in the order in which their gradients became final.
    sums: Vector
    finals: Sequence[int]


@dataclass
class Answers:
    """What one model has computed so far, and what computes the rest."""

    engine: Engine
    known: dict[Question, Answer] = field(default_factory=dict)
    #: The weights of the last answer.
    weights: Vector = field(default_factory=lambda: np.empty(0, np.float32))
    bytes: int = 0

    def to(self, key: DrawKey | None, images: Array, targets: Array, weights: Vector, sums: Vector) -> Answer:
        """Return the answer to a question: `sums` has what a forward leaves as it is, and stays as it was."""
        samples = images.tobytes(), targets.tobytes()
        question = key, *samples, weights[:ENDS].tobytes(), weights[-ENDS:].tobytes()
        known = self.known.get(question)
        if known is not None and _is_same(known.weights, weights):
            return known
        answer = self._compute(key, images, targets, weights, sums)
        if known is None and self.bytes < MOST_BYTES:
            self.known[question] = answer
            self.bytes += answer.sums.nbytes
        return answer

    def _compute(self, key: DrawKey | None, images: Array, targets: Array, weights: Vector, sums: Vector) -> Answer:
        if not _is_same(self.weights, weights):
            self.weights = weights.copy()
            self.bytes += weights.nbytes
        sums = sums.copy()
        self.engine.bind([self.weights], [sums])
        if key is None:
            loss, outputs = self.engine.evaluate(images, targets)
            return Answer(self.weights, Outcome(loss, outputs.copy()), sums[:0], ())
        finals = list[int]()
        loss, outputs = self.engine.forward(images, targets, key)
        outcome = Outcome(loss, outputs.copy())
        self.engine.backward(finals.append)
        return Answer(self.weights, outcome, sums, finals)


def _is_same(one: Vector, other: Vector) -> bool:
    """Tell whether vectors have the same bits."""
    return np.array_equal(one.view(np.uint32), other.view(np.uint32))


@dataclass
class RememberingEngine(Engine):
    """Computes what nobody has computed yet, and writes it as an engine does."""

    answers: Answers
    layout: ParameterLayout
    _weights: Sequence[Vector] = ()
    _sums: Sequence[Vector] = ()
    _reads: int = 0
    _writes: int = 0
    #: The answer of the last forward.
    _answer: Answer | None = None

    def bind(self, weights: Sequence[Vector], sums: Sequence[Vector]) -> None:
        self._weights, self._sums = weights, sums
        self._reads = self._writes = 0

    def read_from(self, index: int) -> None:
        self._reads = index

    def write_to(self, index: int) -> None:
        self._writes = index

    def forward(self, images: Array, targets: Array, key: DrawKey) -> Outcome:
        sums, size = self._sums[self._writes], self.layout.parameter_size
        answer = self._answer = self._ask(images, targets, key)
        sums[size:] = answer.sums[size:]
        return answer.outcome

    def _ask(self, images: Array, targets: Array, key: DrawKey | None) -> Answer:
        return self.answers.to(key, images, targets, self._weights[self._reads], self._sums[self._writes])

    def backward(self, on_final: OnFinal | None) -> None:
        answer, sums = self._answer, self._sums[self._writes]
        assert answer is not None
        size = self.layout.parameter_size
        sums[:size] = answer.sums[:size]
        if on_final is not None:
            for index in answer.finals:
                on_final(index)

    def one_pass(self, tree: Tree, samples: int, batches: Callable[[], Sequence[Batch]]) -> OnePass | None:
        return None

    @property
    def obstacle(self) -> str | None:
        return "each micro-batch is remembered"

    def evaluate(self, images: Array, targets: Array) -> Outcome:
        return self._ask(images, targets, None).outcome

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
            self._answers[objective] = Answers(super().engine(objective))
        return RememberingEngine(self._answers[objective], self.layout)


def remembering(source: ModelSource, seed: int) -> Model:
    """Return the model of a description, the same one each time: its values are those of whoever computes last."""
    return _model_of(msgspec.json.encode(source.own))


@cache
def _model_of(description: bytes) -> RememberingModel:
    return RememberingModel(build(msgspec.json.decode(description)))

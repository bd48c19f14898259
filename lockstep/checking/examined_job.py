"""The job that the doctor examines, with its data and its model; and a finding, which is one line. Runs no check."""

import copy
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.data.dataset import TrainTest
from lockstep.common.data.folder import table_at
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import OwnCode
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Batch, DrawKey, Inspection, Model
from lockstep.common.nn.module import Module
from lockstep.worker.batches import Batches

#: Samples of a batch at most, so that the user waits a few seconds.
SAMPLES = 128


class Group(StrEnum):
    """The parts of a job that are examined, in this order, and the connection to a server."""

    DATA = "data"
    GRADIENTS = "gradients"
    ACTIVATIONS = "activations"
    FIRST_STEPS = "first steps"
    CONNECTION = "connection"


class Finding(msgspec.Struct, frozen=True):
    """A mistake, as one line."""

    group: Group
    what: str
    #: The command that fixes it, or the change in the user's code.
    fix: str

    def __str__(self) -> str:
        return f"{self.group}: {self.what}; {self.fix}"


@dataclass(frozen=True)
class ExaminedJob:
    """A job on batches of one micro-batch, with its data, and a model with the weights that it begins with."""

    job: Job
    data: TrainTest
    model: Model
    weights: Vector
    #: Functions of the user's own that the job names.
    own: OwnCode

    @cached_property
    def batches(self) -> Batches:
        return Batches(self.job, self.data, self.own)

    @property
    def objective(self) -> Objective:
        return self.batches.objective

    @cached_property
    def batch(self) -> Batch:
        """The first batch as the model is given it, and its targets."""
        return self.batches.training(self.batches.sampler.indices(0, 0), 0, 0)

    @property
    def module(self) -> Module | None:
        """A copy of the module with its first values; None if another library computes the model."""
        return copy.deepcopy(self.model.module).train() if isinstance(self.model, AutogradModel) else None

    def fresh_model(self) -> Model:
        """Return a model whose values may be changed."""
        module = self.module
        return self.model if module is None else AutogradModel(module)

    def fresh_weights(self) -> Vector:
        """Return a copy of the first weights, in memory that begins as an engine needs it."""
        vector = self.model.layout.new_vector()
        vector[:] = self.weights
        return vector

    @cached_property
    def first_pass(self) -> Inspection:
        """The outputs of all layers and the gradients of the first batch."""
        model = self.fresh_model()
        engine = model.engine(self.objective)
        engine.bind([self.fresh_weights()], [model.layout.new_vector()])
        with np.errstate(all="ignore"):
            return engine.inspect(*self.batch, DrawKey(self.job.seed, 0, 0))

    @property
    def nonfinite(self) -> str:
        """The place of the first number that is not finite; empty if loss and gradients are finite."""
        seen = self.first_pass
        # A mask in attention is infinite, and does no harm.
        is_finite = np.isfinite(seen.outcome.loss) and all(np.isfinite(each).all() for each in seen.gradients.values())
        return "" if is_finite else str(seen.first_nonfinite)

    @cached_property
    def columns(self) -> list[str]:
        """The name of the column of a table that each input is made of; empty for other data."""
        table = table_at(self.job.data)
        return [] if table is None else [column.name for column in table.columns for _ in column.inputs]

    def named(self, feature: int) -> str:
        """Return how a person finds an input of the model."""
        return f"column {one_line(self.columns[feature], 60)!r}" if self.columns else f"feature {feature}"


def root_mean_square(array: Array) -> float:
    """Return the size of a typical element."""
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))

"""The target of an examination: a model as it is now, its data, and the job that would train it; and its findings."""

import copy
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib import resources
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Vector
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.columns import Column
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.data.folder import table_at
from lockstep.common.data.preparation import Preparation
from lockstep.common.data.sampler import Sampler
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import NO_CODE, OwnCode
from lockstep.common.nn.module import Module


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One mistake. Each text is one line; `change` is what the user has to do."""

    #: The kind of mistake for programs, in a word or two joined by hyphens.
    kind: str
    what: str
    evidence: str
    cause: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}: {self.evidence}; {self.cause}; {self.change}"


def found(name: str, /, **facts: object) -> Finding:
    """Return a finding by its name in `findings.toml`, with the facts filled in."""
    return Finding(**{key: text.format(**facts) for key, text in texts()[name].items()})


@cache
def texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(resources.files(__package__).joinpath("findings.toml").read_text(encoding="utf-8"))


def class_named(label: int, names: Sequence[str]) -> str:
    """Return how a person knows a class: by its name, or by its number."""
    return f"class {one_line(names[label], 40)!r}" if label < len(names) else f"class {label}"


#: Characters per line.
WIDTH = 80


def findings_lines(findings: Sequence[Finding]) -> list[str]:
    """Return the findings, numbered, each after an empty line."""
    lines = list[str]()
    for number, finding in enumerate(findings, 1):
        lines += ["", *wrapped(f"{number}. ", finding.what)]
        for heading in ("evidence", "cause", "change"):
            lines += wrapped(f"   {heading:<10}", getattr(finding, heading))
    return lines


def wrapped(lead: str, text: str) -> list[str]:
    """Return text after a lead, with its other lines indented as far."""
    return textwrap.wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


#: A backward pass from a scalar loss that leaves gradients in the leaves: `Tensor.backward`, or that of the user.
Walk = Callable[[Tensor], None]


class ExaminedData(msgspec.Struct, frozen=True, dict=True):
    """The data of a job, as its model receives them; some checks of it need the model as well."""

    job: Job
    data: TrainTest

    @property
    def objective(self) -> Objective:
        return Objective(self.job)

    @cached_property
    def columns(self) -> Sequence[Column]:
        """The columns of a table; empty for other data."""
        table = table_at(self.job.data)
        return () if table is None else table.columns

    @cached_property
    def counted_classes(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """The classes that count of the training set and of the test set, (targets,) each; for classifiers only."""
        return self._counted(self.data.train), self._counted(self.data.test)

    def _counted(self, part: Dataset) -> NDArray[Any]:
        classes = self.objective.compared(self.objective.targets(part.labels))
        counted: NDArray[Any] = classes[classes != self.job.ignore_index]
        return counted

    def column_of(self, feature: int) -> Column | None:
        """Return the column that an input of the model is made of; None if it has no name."""
        columns = [column for column in self.columns for _ in column.inputs]
        return columns[feature] if feature < len(columns) else None

    def named(self, feature: int, *, is_whole: bool = False) -> str:
        """Return how a person finds an input of the model, or its whole column: by the column, or by its number."""
        column = self.column_of(feature)
        if column is None:
            return f"feature {feature}"
        inputs = [name for each in self.columns for name in each.inputs]
        category = f", category {one_line(inputs[feature], 40)!r}," if column.one_hot and not is_whole else ""
        return f"column {one_line(column.name, 60)!r}{category}"

    def batch(self, step: int, most: int) -> tuple[Vector, Vector]:
        """Return at most `most` prepared samples of a step of the job, and the targets of its loss."""
        sampler = self._sampler
        whole = np.concatenate([sampler.indices(step, m) for m in range(sampler.micro_batches)])[:most]
        train = self.data.train
        targets = self.objective.targets(train.labels.take(whole, axis=0))
        return self.preparation.images(train.images.take(whole, axis=0)), targets

    @cached_property
    def _sampler(self) -> Sampler:
        job, samples = self.job, len(self.data.train)
        # A batch larger than the data is a mistake of the job, which is reported elsewhere.
        return Sampler(samples, min(job.global_batch, samples), job.micro_batches, job.seed)

    @cached_property
    def preparation(self) -> Preparation:
        preparation = Preparation.of(self.data.train, self.job.max_shift)
        return preparation if self.job.normalize else replace(preparation, mean=0.0, std=1.0)


class ExaminationTarget(ExaminedData, frozen=True):
    """A model, which is only ever copied, with what it would be trained on."""

    model: Module
    #: The number of worker processes that was asked for, if any.
    workers: int | None = None
    walk: Walk = Tensor.backward
    #: The name of the learning rate of `job` in the job that was asked about.
    rate_name: str = "lr"
    #: Functions of the user's own that the job names.
    own: OwnCode = NO_CODE

    def probe(self) -> Module:
        """Return a copy of the model to be examined, in training mode, with its first random numbers."""
        probe = copy.deepcopy(self.model).train()
        probe.reseed(self.job.seed, 0, 0)
        probe.zero_grad()
        return probe

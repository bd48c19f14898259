"""Check by the ledger of a run that each epoch used every sample once, and list repeated computations. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.common.data.sampler import Sampler
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.ps.records.ledger import Line, OmittedEntries, RunBegun, StepDone, UnusedWork, WorkerConvicted
from lockstep.ps.run.plan import Plan

#: Most faults of one kind to report per step or epoch.
MOST_FAULTS = 3


@dataclass
class EpochCoverage:
    """The coverage of one epoch, as far as the ledger goes."""

    epoch: int
    #: Training samples, and how many of them the epoch used.
    samples: int
    used: int = 0
    steps: int = 0
    micro_batches: int = 0
    #: Violations; empty if every sample was used once, or not yet.
    faults: list[str] = field(default_factory=list)
    #: Leases whose results were not used.
    again: list[UnusedWork] = field(default_factory=list)
    #: Number of further such leases, which the ledger does not list.
    omitted: int = 0

    def is_whole(self) -> bool:
        """Return whether every sample was used."""
        return self.used == self.samples


class CoverageReport(msgspec.Struct, frozen=True):
    """The coverage of a whole run."""

    epochs: list[EpochCoverage]
    #: The points at which the run was resumed.
    resumed: list[RunBegun]
    #: Workers that computed wrongly, and were evicted: nothing of theirs is left that no audit has confirmed.
    convicted: list[WorkerConvicted]

    def faults(self) -> list[str]:
        return [fault for epoch in self.epochs for fault in epoch.faults]


def check_coverage(lines: list[Line], plan: Plan, sampler: Sampler) -> CoverageReport:
    """Return the coverage that a ledger shows, for a run with that plan and order of samples."""
    epochs: dict[int, EpochCoverage] = {}
    for line in lines:
        if isinstance(line, StepDone | UnusedWork | OmittedEntries):
            number = plan.epoch_of(line.step - (line.work not in OF_A_STEP if not isinstance(line, StepDone) else 0))
            epoch = epochs.setdefault(number, EpochCoverage(number, sampler.size))
            if isinstance(line, UnusedWork):
                epoch.again.append(line)
            elif isinstance(line, OmittedEntries):
                epoch.omitted += line.count
    done = [line for line in lines if isinstance(line, StepDone)]
    for number, epoch in epochs.items():
        _count(epoch, [line for line in done if plan.epoch_of(line.step) == number], sampler)
    _check_order(done, plan, epochs)
    begun = [line for line in lines if isinstance(line, RunBegun)]
    resumed = [line for place, line in enumerate(begun) if place or line.lost_steps]
    convicted = [line for line in lines if isinstance(line, WorkerConvicted)]
    return CoverageReport([epochs[number] for number in sorted(epochs)], resumed, convicted)


def _count(epoch: EpochCoverage, steps: list[StepDone], sampler: Sampler) -> None:
    """Count how often an epoch's steps used each sample."""
    uses: NDArray[np.int64] = np.zeros(sampler.size, np.int64)
    for line in steps:
        micro_batches = [m for share in line.shares for m in range(share.lo, share.hi)]
        epoch.faults += _miscounted(line, micro_batches, sampler.micro_batches)
        for m in micro_batches:
            if m < sampler.micro_batches:
                np.add.at(uses, sampler.indices(line.step, m), 1)
        epoch.micro_batches += len(micro_batches)
    epoch.steps, epoch.used = len(steps), int(np.count_nonzero(uses))
    for sample in np.flatnonzero(uses > 1)[:MOST_FAULTS]:
        epoch.faults.append(f"epoch {epoch.epoch}: sample {sample} was used {uses[sample]} times: expected once")


def _miscounted(line: StepDone, used: list[int], micro_batches: int) -> Iterator[str]:
    counts = np.bincount(used, minlength=micro_batches)
    for m in np.flatnonzero(counts[:micro_batches] != 1)[:MOST_FAULTS]:
        yield f"step {line.step}: micro-batch {m} was added {counts[m]} times: expected once"
    for m in np.flatnonzero(counts[micro_batches:])[:MOST_FAULTS]:
        yield f"step {line.step}: micro-batch {m + micro_batches} is not one of the {micro_batches}"


def _check_order(done: list[StepDone], plan: Plan, epochs: dict[int, EpochCoverage]) -> None:
    """Check that the ledger has all steps from the first on, each once and in order."""
    for expected, line in enumerate(done):
        if line.step != expected:
            number = plan.epoch_of(line.step)
            epochs[number].faults.append(f"step {line.step} is in the place of step {expected}")
            return

"""Compute a recorded run again on this machine, step by step, and find the first difference. Check its signatures.

The ledger shows that each epoch used every sample once, and lists repeated computations."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from lockstep.checking.recorded_run import RecordedRun
from lockstep.common.aggregation.checksum import checksum_after
from lockstep.common.aggregation.layout import weights_digest
from lockstep.common.aggregation.tree import Node, is_node
from lockstep.common.data.sampler import Sampler
from lockstep.common.job.tally import Tally
from lockstep.common.protocol.messages import OF_A_STEP
from lockstep.common.protocol.statement import result_digest, signed_run
from lockstep.ps.coordinator.failures import diverged_text
from lockstep.ps.records.ledger import (
    EpochDone,
    LedgerShare,
    Line,
    OmittedEntries,
    RunBegun,
    SignedResult,
    StepDone,
    UnusedWork,
    WeightsAt,
    WorkerConvicted,
    WorkerIn,
    with_workers,
)
from lockstep.ps.run.plan import Plan
from lockstep.ps.setup import RunSetup
from lockstep.runs.single_process import SingleProcessTrainer
from lockstep.worker.gradient_sink import NotFiniteError

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


def has_signatures(run: RecordedRun) -> bool:
    """Tell whether any result of a run is signed, or was to be."""
    return any(
        line.signer if isinstance(line, WorkerIn) else isinstance(line, StepDone) and line.signed for line in run.lines
    )


def check_signatures(run: RecordedRun, known: Mapping[str, str] | None = None) -> tuple[Counter[str], list[str]]:
    """Check the signature of each result of a run; return how many are right by each owner, and the faults in order.

    An owner is the name of a key, or of a worker. `known` are the keys that are believed, by the names of their owners:
    by default those that the ledger names, which a forger of the ledger may have chosen.
    """
    # The library for it is not part of the core, and most runs have no signatures.
    from lockstep.common.transport.auth.signing import is_signed

    by, faults, job = Counter[str](), list[str](), run.receipt.job_sha256
    name = signed_run(run.receipt.run, run.receipt.chain[0].link)
    owners = None if known is None else {public: owner for owner, public in known.items()}
    for line, workers in with_workers(run.lines):
        if not isinstance(line, StepDone):
            continue
        for share, signed in _pairs(line):
            worker = workers.get(share.rank)
            fault = _missing(signed, worker, owners)
            if not fault and signed is not None and worker is not None:
                is_valid = is_signed(worker.signer, signed.statement(job), signed.signature)
                forged = f"the signature is forged: it is not one of the key {worker.signer[:12]}…"
                fault = _replayed(line.step, share, signed, name) if is_valid else forged
            if fault:
                who = f"worker {share.rank}" if worker is None else worker.named()
                faults.append(f"step {line.step}, micro-batches {Node(share.lo, share.hi)}, {who}: {fault}")
            elif worker is not None:
                by[worker.named() if owners is None else f"key {owners[worker.signer]!r}"] += 1
    return by, faults


def _pairs(line: StepDone) -> Iterator[tuple[LedgerShare, SignedResult | None]]:
    for number, share in enumerate(line.shares):
        yield share, line.signed[number] if number < len(line.signed) else None


def _missing(signed: SignedResult | None, worker: WorkerIn | None, owners: Mapping[str, str] | None) -> str:
    """Describe which signature, or key, a share lacks; empty if it has both."""
    if signed is None or worker is None or not worker.signer:
        return "the result is not signed: expected a signature of its worker's key"
    if owners is not None and worker.signer not in owners:
        return f"signed with the key {worker.signer[:12]}…, which is not one of those that are known"
    return ""


def _replayed(step: int, share: LedgerShare, signed: SignedResult, run: str) -> str:
    """Describe what else a signature is of, which its worker has really made; empty if it is of this share."""
    if signed.run != run:
        return f"the signature is of another run, {signed.run[:12]}…: expected {run[:12]}…"
    if signed.step != step:
        return f"the signature is of another step, {signed.step}"
    if (signed.lo, signed.hi) != (share.lo, share.hi):
        return f"the signature is of other micro-batches, {Node(signed.lo, signed.hi)}"
    return ""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where the run and its recomputation differ."""

    step: int
    #: None if all losses agree, but not the weights after the step.
    micro_batch: int | None = None
    text: str


@dataclass
class Verifier:
    """One recomputation, from the weights of the shard on."""

    run: RecordedRun
    setup: RunSetup
    #: Micro-batches and steps that were found equal.
    micro_batches: int = 0
    steps: int = 0
    #: The losses of the last step, as computed here.
    _losses: list[float] = field(default_factory=list)
    _steps: dict[int, StepDone] = field(init=False)
    _workers: dict[int, dict[int, WorkerIn]] = field(init=False)
    #: Number of steps -> (source, SHA-256 of the weights after them).
    _digests: dict[int, list[tuple[str, str]]] = field(init=False)

    def __post_init__(self) -> None:
        self._steps, self._workers = self.run.steps(), self.run.workers()
        self._digests = {}
        for line in self.run.lines:
            if isinstance(line, RunBegun | WeightsAt | EpochDone):
                named = "the weights that it was resumed from" if isinstance(line, RunBegun) else "the checkpoint"
                named = f"epoch {line.epoch}" if isinstance(line, EpochDone) else named
                self._digests.setdefault(line.step, []).append((named, line.weights_sha256))

    def verify(self, until: int, watch: Callable[[int], None]) -> Difference | None:
        """Compute all steps before `until` again, and return the first difference. Calls `watch` after each step."""
        first = self.setup.shard.updates
        if (odd := self._other_digest(first)) is not None:
            text = f"the weights after {first} steps, from which this starts, are not those of the run: {odd}"
            return Difference(step=first, text=text)
        found: Difference | None = None
        trainer = SingleProcessTrainer(self.setup)
        for step in range(first, until):
            if found is not None:
                return found
            found = self._step(step, trainer)
            watch(step)
        return found

    def _step(self, step: int, trainer: SingleProcessTrainer) -> Difference | None:
        recorded = self._steps.get(step)
        if recorded is None:
            return Difference(step=step, text=f"step {step} is not in the ledger: expected its entry")
        try:
            if (found := self._compute(recorded, trainer)) is not None:
                return found
        except NotFiniteError as error:
            diverged = diverged_text("train", step, error.micro_batch, error.layer, error.quantity)
            text = f"{diverged}; in the run it was finite"
            return Difference(step=step, micro_batch=error.micro_batch, text=text)
        here = np.array(self._losses, "<f4")
        if here.tobytes() != recorded.losses:
            return self._loss_difference(recorded, here)
        self.micro_batches += len(here)
        weights = self.setup.shard.weights
        if checksum_after(step, weights) != recorded.checksum:
            return self._weights_difference(recorded, "the checksum in the ledger")
        self.steps += 1
        odd = self._other_digest(step + 1)
        return None if odd is None else self._weights_difference(recorded, odd)

    def _compute(self, recorded: StepDone, trainer: SingleProcessTrainer) -> Difference | None:
        """Make a step; return the first result that differs from what its worker has signed.

        The signed results are of parts of the step, which add up to the same sums.
        """
        step, found = recorded.step, None
        if not is_signed_whole(recorded, self.run.job.micro_batches):
            trainer.step(step)
            self._losses = trainer.compute.losses
            return None
        losses: dict[int, float] = {}
        total = Tally()
        for share, signed in sorted(zip(recorded.shares, recorded.signed, strict=True), key=lambda pair: pair[0].lo):
            node = Node(share.lo, share.hi)
            sums, tally = trainer.node_sums(step, node)
            losses.update(zip(range(node.lo, node.hi), trainer.compute.losses, strict=True))
            total += tally
            digest = result_digest(sums, trainer.compute.losses, tally)
            if digest != signed.digest and found is None:
                text = (
                    f"step {step}, micro-batches {node}: {self._who(recorded, node.lo)}, which has signed a result "
                    f"with SHA-256 {signed.digest[:12]}…; computed again it is {digest[:12]}…"
                )
                found = Difference(step=step, micro_batch=node.lo, text=text)
            trainer.setup.shard.add(node, sums.copy())
        trainer.setup.shard.update(step, total.divisor)
        self._losses = [losses[micro_batch] for micro_batch in sorted(losses)]
        return found

    def _loss_difference(self, recorded: StepDone, here: NDArray[np.float32]) -> Difference:
        there = recorded.loss_sums()
        if len(there) != len(here):
            text = f"step {recorded.step} has {len(there)} losses in the ledger: expected {len(here)}"
            return Difference(step=recorded.step, text=text)
        micro_batch = int(np.flatnonzero(there.view(np.uint32) != here.view(np.uint32))[0])
        text = (
            f"step {recorded.step}, micro-batch {micro_batch}: the sum of its losses was {there[micro_batch]!s} "
            f"({there[micro_batch].tobytes()[::-1].hex()}), {self._who(recorded, micro_batch)}; computed again it is "
            f"{here[micro_batch]!s} ({here[micro_batch].tobytes()[::-1].hex()})"
        )
        return Difference(step=recorded.step, micro_batch=micro_batch, text=text)

    def _who(self, recorded: StepDone, micro_batch: int) -> str:
        workers, found = self._workers[recorded.step], []
        for number, share in enumerate(recorded.shares):
            if share.lo <= micro_batch < share.hi:
                who = workers[share.rank].named() if share.rank in workers else "the single training process"
                is_known = number < len(recorded.processes)
                found.append(f"by {who}, process {recorded.processes[number]}" if is_known else f"by {who}")
        return " and ".join(found) or "by no worker"

    def _other_digest(self, steps: int) -> str | None:
        """Return which recorded digest differs from the current weights after that number of steps, if any."""
        if steps not in self._digests:
            return None
        here = weights_digest(self.setup.shard.weights)
        odd = (pair for pair in self._digests[steps] if pair[1] != here)
        return next((f"{named} has SHA-256 {digest[:12]}…, here {here[:12]}…" for named, digest in odd), None)

    def _weights_difference(self, recorded: StepDone, where: str) -> Difference:
        workers = "; ".join(f"{share.lo}-{share.hi - 1} {self._who(recorded, share.lo)}" for share in recorded.shares)
        text = (
            f"step {recorded.step}: the losses of all its micro-batches are the same, and the weights after it are not "
            f"({where}): a gradient differs, or the update; computed {workers}"
        )
        return Difference(step=recorded.step, text=text)


def is_signed_whole(recorded: StepDone, micro_batches: int) -> bool:
    """Tell whether the signed results of a step are nodes of its tree that add up to all of it."""
    nodes = sorted((share.lo, share.hi) for share in recorded.shares)
    begins = [0, *(hi for _, hi in nodes)]
    is_tiled = begins == [*(lo for lo, _ in nodes), micro_batches]
    has_nodes = all(is_node(lo, hi, micro_batches) for lo, hi in nodes)
    return len(recorded.signed) == len(nodes) and is_tiled and has_nodes

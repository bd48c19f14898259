"""The ledger: the worker and the loss of each micro-batch of each step, and repeated computations. Pure.

One JSON line for each entry, in the order in which things happened. With the job's arithmetic of samples it proves that
an epoch used each sample exactly once; with the losses, which come for free, it names the place where a recomputed run
differs.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FileFormatError
from lockstep.common.files.reading import decode
from lockstep.common.protocol.messages import Result, Work


class UnusedCause(StrEnum):
    """Why a result was not used although its worker was neither late nor gone."""

    FASTER = "faster"
    AUDITED = "audited"


#: The same in words.
CAUSES = {
    UnusedCause.FASTER: "others had done it, or it came twice",
    UnusedCause.AUDITED: "for the audit: the same bits",
}

#: Most entries of a round besides that of its step: what a peer sends must not fill our memory.
MOST_ENTRIES = 1000

Count = Annotated[int, Meta(ge=0, le=2**62)]

#: Seconds from the begin of a round, in whole microseconds: an unrounded number would take twice as many bytes.
RoundSeconds = Annotated[float, Meta(ge=0, le=1e9)]

#: A micro-batch, or the end of some: a job has at most so many.
MicroBatch = Annotated[int, Meta(ge=0, le=4096)]


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """The root of all entries."""


class RunBegun(LedgerEntry, frozen=True, kw_only=True, tag="begun"):
    """A process began or resumed the run after `step` steps; ranks start from 0 again."""

    #: The number of steps that were made before.
    step: Count
    #: Of the weights that it continues with.
    weights_sha256: str
    #: Steps of this ledger that are made again, as they came after the checkpoint that the run is resumed from.
    lost_steps: Count = 0


class WorkerIn(LedgerEntry, frozen=True, kw_only=True, tag="worker", omit_defaults=True):
    """The worker that has a rank."""

    #: The worker's number in the lines that follow.
    rank: Count
    #: The name of its machine.
    host: str
    #: The number of its process; of a team's leader.
    pid: Count
    #: Of how many processes it is a team.
    processes: Count = 1
    #: By what it is known when it comes back: the name of its key, or what its process has drawn at its start.
    identity: str = ""

    def named(self) -> str:
        """Return how the worker is named in messages to people."""
        return worker_name(self.rank, self.host, self.pid, self.processes)


class WorkerOut(LedgerEntry, frozen=True, kw_only=True, tag="left"):
    """The worker of that rank is no longer in the run."""

    #: The worker.
    rank: Count
    #: The reason.
    why: str


def worker_name(rank: int, host: str, pid: int, processes: int) -> str:
    """Return the name of a worker in messages to people: for them, each process of a team is a worker."""
    if processes == 1:
        return f"worker {rank} (host {host}, pid {pid})"
    return f"team {rank} (host {host}, pid {pid}, {processes} workers)"


class LedgerShare(msgspec.Struct, frozen=True, array_like=True):
    """The micro-batches `[lo, hi)`, accepted from a worker."""

    #: The first micro-batch.
    lo: MicroBatch
    #: The end: the first micro-batch that is not meant.
    hi: MicroBatch
    #: The worker.
    rank: Count
    #: When they were leased to the worker, in seconds from the begin of the round. None in a run without workers.
    began_s: RoundSeconds | None = None
    #: When its result was accepted, in seconds from the begin of the round.
    ended_s: RoundSeconds | None = None

    def __post_init__(self) -> None:
        if self.lo >= self.hi:
            raise ValueError(f"micro-batches from {self.lo} to {self.hi}: expected at least one")


class StepDone(LedgerEntry, frozen=True, kw_only=True, tag="step", omit_defaults=True):
    """A training step, after its update."""

    #: The step, from 0.
    step: Count
    #: The workers that computed the micro-batches.
    shares: list[LedgerShare]
    #: The sum of losses of each micro-batch: float32, little-endian, in order.
    losses: bytes
    #: Of the weights after the update: see `common.aggregation.checksum`. Up to 64 bits. On disk it is called `mark`.
    checksum: Annotated[int, Meta(ge=0)] = msgspec.field(name="mark")
    #: For each share, which process of its worker computed it. Empty if that is unknown, or each worker is one process.
    processes: list[Count] = []

    def __post_init__(self) -> None:
        if self.checksum >= 2**64:  # more than the validator can compare with
            raise ValueError(f"a checksum of {self.checksum.bit_length()} bits: expected at most 64")
        if len(self.losses) % 4:
            raise ValueError(f"losses of {len(self.losses)} bytes: expected 4 for each micro-batch")

    def loss_sums(self) -> NDArray[np.float32]:
        """Return the losses, (micro-batches,)."""
        return np.frombuffer(self.losses, dtype="<f4")


class UnusedWork(LedgerEntry, frozen=True, kw_only=True, tag="again", omit_defaults=True):
    """Micro-batches that were computed, or begun, by a worker whose sums were not used, and why."""

    #: The kind of round.
    work: Work
    #: The step, from 0.
    step: Count
    #: The first micro-batch, or chunk of an evaluation.
    lo: Count
    #: The end: the first one that is not meant.
    hi: Count
    #: The worker.
    rank: Count
    #: The reason in words.
    why: str
    #: The reason if it is one of these; None if the worker was late or gone.
    cause: UnusedCause | None = None
    #: When they were leased to the worker, in seconds from the begin of the round. None if that is unknown.
    began_s: RoundSeconds | None = None
    #: When its result was refused or its lease ended. None if that is unknown.
    ended_s: RoundSeconds | None = None

    def node(self) -> Node:
        return Node(self.lo, self.hi)


class OmittedEntries(LedgerEntry, frozen=True, kw_only=True, tag="unlisted"):
    """Entries of one round beyond the limit, which are only counted."""

    #: The kind of round.
    work: Work
    #: The step, from 0.
    step: Count
    #: The number of entries that are left out.
    count: Count


class EpochDone(LedgerEntry, frozen=True, kw_only=True, tag="epoch"):
    """An epoch, after its evaluation: one link of the receipt's chain."""

    #: The epoch, from 1.
    epoch: Count
    #: The number of steps made so far.
    step: Count
    #: The digest of the weights after it.
    weights_sha256: str
    #: The SHA-256 over the link before, the epoch, the steps and the weights: see the receipt.
    link: str


class WeightsAt(LedgerEntry, frozen=True, kw_only=True, tag="weights"):
    """The weights of a checkpoint."""

    #: The number of steps made so far.
    step: Count
    #: The digest of the weights.
    weights_sha256: str


class ResultInDoubt(msgspec.Struct, frozen=True, array_like=True):
    """The micro-batches `[lo, hi)` of a step, accepted from a worker that computes wrongly."""

    #: The step, from 0.
    step: Count
    #: The first micro-batch.
    lo: MicroBatch
    #: The end: the first micro-batch that is not meant.
    hi: MicroBatch


class WorkerConvicted(LedgerEntry, frozen=True, kw_only=True, tag="convicted"):
    """An audit found that a worker computes wrongly: it may not come back, and what it changed is computed again."""

    #: The worker, as messages name it.
    worker: str
    #: By what it is known when it comes back.
    identity: str
    #: The step whose audit found it.
    step: Count
    #: The micro-batch about which it was wrong.
    micro_batch: MicroBatch
    #: The worker's result: its digest, or the name of the values that were not finite.
    found: str
    #: The right result.
    right: str
    #: The workers that found that.
    judges: list[str]
    #: Its accepted results since its last audit that agreed, at most 1000 of them.
    since: list[ResultInDoubt]
    #: The number of these results.
    since_count: Count
    #: The number of all its accepted results that no audit has confirmed.
    unconfirmed_count: Count
    #: The step of the first of all its unconfirmed results; None if all are confirmed.
    first_unconfirmed: Count | None
    #: After how many steps the run was resumed without it: all steps from there on were computed again.
    back_to: Count

    def why(self) -> str:
        """Return how the audit found it."""
        return f"{self.worker} computed micro-batch {self.micro_batch} of step {self.step} wrongly, as an audit found"


Line = (
    RunBegun | WorkerIn | WorkerOut | StepDone | UnusedWork | OmittedEntries | EpochDone | WeightsAt | WorkerConvicted
)


@dataclass
class Account:
    """Collects a round's entries."""

    micro_batches: int = 0
    #: Work given to others or done twice, and workers that joined, since the round before.
    entries: list[LedgerEntry] = field(default_factory=list)
    shares: list[LedgerShare] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    omitted: int = 0
    _losses: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self._losses = bytearray(4 * self.micro_batches)

    def record_accepted(
        self,
        node: Node,
        rank: int,
        losses: bytes,
        began_s: float | None = None,
        ended_s: float | None = None,
        process: int | None = None,
    ) -> None:
        """Record micro-batches that were accepted; `losses` as in `StepDone`, of these alone.

        The times are seconds from the round's begin: when the lease was given out, and when its result came. `process`
        is the one of the worker's that computed them, None if that is unknown: the same for all of a step.
        """
        share = LedgerShare(node.lo, node.hi, rank, in_microseconds(began_s), in_microseconds(ended_s))
        self.shares.append(share)
        self.processes += [] if process is None else [process]
        if len(losses) == 4 * len(node):
            self._losses[4 * node.lo : 4 * node.hi] = losses

    def add(self, entry: LedgerEntry) -> None:
        """Add an entry; above the limit it is only counted."""
        if len(self.entries) < MOST_ENTRIES:
            self.entries.append(entry)
        else:
            self.omitted += 1

    def record_recomputed(
        self,
        work: Work,
        step: int,
        nodes: Sequence[Node],
        rank: int,
        why: str | UnusedCause,
        began_s: Sequence[float | None] = (),
        ended_s: float | None = None,
    ) -> None:
        """Record micro-batches that one worker computed or began, and another has to compute as well.

        `began_s` has a time for each node, or is empty if they are unknown; all of them end at `ended_s`.
        """
        cause = why if isinstance(why, UnusedCause) else None
        for node, began in zip(nodes, began_s or [None] * len(nodes), strict=True):
            entry = UnusedWork(
                work=work,
                step=step,
                lo=node.lo,
                hi=node.hi,
                rank=rank,
                why=why if cause is None else CAUSES[cause],
                cause=cause,
                began_s=in_microseconds(began),
                ended_s=in_microseconds(ended_s),
            )
            self.add(entry)

    def merge(self, before: "Account") -> None:
        """Add the entries of the round before this one, which has no line of its own."""
        for entry in before.entries:
            self.add(entry)
        self.omitted += before.omitted

    def record_unused(
        self, result: Result, rank: int, began_s: float | None = None, ended_s: float | None = None
    ) -> None:
        """Record a result that is not needed."""
        if result.lo < result.hi:
            self.record_recomputed(
                result.work, result.step, [result.node()], rank, UnusedCause.FASTER, [began_s], ended_s
            )

    def step_done(self, step: int, checksum: int) -> StepDone:
        """Return the entry of a training step that is over."""
        losses = bytes(self._losses)
        return StepDone(
            step=step,
            shares=self.shares,
            losses=losses,
            checksum=checksum,
            processes=self.processes,
        )

    def other_entries(self, work: Work, step: int) -> list[LedgerEntry]:
        """Return the other entries of a round of that kind."""
        if not self.omitted:
            return self.entries
        return [*self.entries, OmittedEntries(work=work, step=step, count=self.omitted)]


def with_workers(lines: Iterable[Line]) -> Iterator[tuple[Line, dict[int, WorkerIn]]]:
    """Yield each line with the workers of the run at it, by rank: ranks start again when a run is resumed."""
    workers: dict[int, WorkerIn] = {}
    for line in lines:
        if isinstance(line, RunBegun):
            workers = {}
        elif isinstance(line, WorkerIn):
            workers = {**workers, line.rank: line}
        yield line, workers


def in_microseconds(seconds: float | None) -> float | None:
    """Return seconds rounded to microseconds, and at least 0, which readers demand whatever became of the clock."""
    return None if seconds is None else max(0.0, round(seconds, 6))


def read_lines(data: bytes, name: str) -> list[Line]:
    """Return the entries of a ledger; `FileFormatError` with the number of the first line that is not one.

    A last line without its end, cut off when the process was killed, is left out.
    """
    lines: list[Line] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            lines.append(decode(line, Line))
        except msgspec.MsgspecError as error:
            raise FileFormatError(
                f"{name}: line {number} is not an entry of a ledger: {error}: it was changed, or another version of "
                "lockstep wrote it: use that version"
            ) from error
    return lines

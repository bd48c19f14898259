"""The audit: which micro-batches a second worker computes again, and whether it finds the same bits. Pure.

The choice follows from the seed, the step and the micro-batch (rule R2), so that an audit can be repeated whoever takes
part. It falls between a step's last sums and its update: what is in doubt is never applied. Digests are compared, made
by the workers of all that they found; the sums are not sent again.
"""

from dataclasses import dataclass, field

import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.messages import Diverged, Result
from lockstep.common.random import Purpose, generator
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.run.plan import Round

#: Why the ledger lists a micro-batch that was audited.
AUDITED = "for the audit: the same bits"


def chosen_for_audit(share: float, seed: int, step: int, micro_batches: int) -> frozenset[int]:
    """Return which micro-batches of a step are audited, each with the probability `share`."""
    if not share:
        return frozenset()
    drawn = generator(seed, Purpose.AUDIT, at=step).random(micro_batches)
    return frozenset(np.flatnonzero(drawn < share).tolist())


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """What a worker, which may be gone by now, found for a micro-batch."""

    rank: int
    named: str
    digest: str


@dataclass
class Audit:
    """The micro-batches of one step that are computed twice."""

    #: The training round.
    round: Round
    chosen: frozenset[int] = frozenset()
    #: By micro-batch, what the worker found that computed it first.
    findings: dict[int, AuditFinding] = field(default_factory=dict)

    @classmethod
    def of(cls, at: Round, share: float, seed: int) -> "Audit":
        """Return the audit of a round: an empty one unless it is a training step."""
        is_training = at.work == "train"
        return cls(at, chosen_for_audit(share, seed, at.step, at.micro_batches) if is_training else frozenset())

    def record(self, member: Member, result: Result) -> None:
        """Record a result that counts, if it is to be computed again."""
        if result.lo in self.chosen:
            self.findings[result.lo] = AuditFinding(member.rank, member.named(), result.digest)

    def is_due(self) -> bool:
        """Tell whether any micro-batch is still to be computed again."""
        return bool(self.findings)

    def excluded(self) -> dict[int, int]:
        """Return by micro-batch which rank may not compute it again."""
        return {micro_batch: first.rank for micro_batch, first in self.findings.items()}

    def difference(self, member: Member, result: Result) -> str:
        """Describe how another worker's finding differs; empty if it is the same."""
        first = self.findings[result.lo]
        if result.digest == first.digest:
            return ""
        return self._describe(result.lo, first, f"found {first.digest[:12]}…, {member.named()} {result.digest[:12]}…")

    def divergence(self, member: Member, diverged: Diverged) -> str:
        """Describe that another worker found a value that is not finite; empty if that one is not audited."""
        first = self.findings.get(diverged.micro_batch)
        if first is None:
            return ""
        where = f"from layer {diverged.layer} on" if diverged.quantity == "loss" else f"first of {diverged.layer!r}"
        what = f"found a finite {diverged.quantity}, {member.named()} one that is not, {where}"
        return self._describe(diverged.micro_batch, first, what)

    def _describe(self, micro_batch: int, first: AuditFinding, what: str) -> str:
        of = self.round.named([Node(micro_batch, micro_batch + 1)])
        return (
            f"the audit found a difference in {of}: {first.named} {what}; one of them computes wrongly, and the step"
            " was not applied: find out which with `lockstep verify`, or by leaving out one at a time, and resume from "
            "the last checkpoint"
        )

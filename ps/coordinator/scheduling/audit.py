"""The audit: which micro-batches another worker computes again, and whether it finds the same bits. Pure.

Which they are follows from the seed, the step and the piece (rule R2), so that an audit can be repeated whoever takes
part. It falls between a step's last sums and its update: what is in doubt is never applied. Digests are compared, made
by the workers of all that they found; nothing of the sums is sent again.
"""

from dataclasses import dataclass, field

import numpy as np

from common.aggregation.tree import Node
from common.protocol.messages import Diverged, Result
from common.random import Purpose, generator
from ps.coordinator.membership import Member
from ps.run.plan import Round

#: Why the ledger lists a piece that was audited.
WHY = "for the audit: the same bits"

#: What tells the text of a difference from others.
_MARK = "the audit found a difference"


def chosen_pieces(share: float, seed: int, step: int, pieces: int) -> frozenset[int]:
    """Return which of a step's `pieces` are audited, each with the probability `share`."""
    if not share:
        return frozenset()
    drawn = generator(seed, Purpose.AUDIT, at=step).random(pieces)
    return frozenset(np.flatnonzero(drawn < share).tolist())


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """What a worker, which may be gone by now, found of a piece."""

    rank: int
    named: str
    digest: str


@dataclass
class Audit:
    """The pieces of one step that are computed twice."""

    #: The training round.
    round: Round
    chosen: frozenset[int] = frozenset()
    #: By piece, what was found by who computed it first.
    findings: dict[int, AuditFinding] = field(default_factory=dict)

    @classmethod
    def of(cls, at: Round, share: float, seed: int) -> "Audit":
        """Return what of a round is to be computed twice: nothing where it is no training."""
        chosen = chosen_pieces(share, seed, at.step, at.pieces) if at.work == "train" else frozenset[int]()
        return cls(at, chosen)

    def book(self, member: Member, result: Result) -> None:
        """Book what counts, where it is to be computed again."""
        if result.lo in self.chosen:
            self.findings[result.lo] = AuditFinding(member.rank, member.named(), result.digest)

    def is_due(self) -> bool:
        """Tell whether any piece waits to be computed again."""
        return bool(self.findings)

    def barred(self) -> dict[int, int]:
        """Return by piece who is not to compute it again."""
        return {piece: first.rank for piece, first in self.findings.items()}

    def difference(self, member: Member, result: Result) -> str:
        """Return what a person is told where another worker found something else, empty where it is the same."""
        first = self.findings[result.lo]
        if result.digest == first.digest:
            return ""
        return self._told(result.lo, first, f"found {first.digest[:12]}…, {member.named()} {result.digest[:12]}…")

    def divergence(self, member: Member, diverged: Diverged) -> str:
        """Return what a person is told where another worker found none that is finite, if that is audited."""
        first = self.findings.get(diverged.micro_batch)
        if first is None:
            return ""
        where = f"from layer {diverged.layer} on" if diverged.quantity == "loss" else f"first of {diverged.layer!r}"
        what = f"found a finite {diverged.quantity}, {member.named()} one that is not, {where}"
        return self._told(diverged.micro_batch, first, what)

    def _told(self, piece: int, first: AuditFinding, what: str) -> str:
        of = self.round.named([Node(piece, piece + 1)])
        return (
            f"{_MARK} in {of}: {first.named} {what}; one of them computes wrongly, and the step was not applied: find "
            "out which by lockstep verify, or leave out one at a time, and go on from the last checkpoint"
        )


def is_difference(text: str) -> bool:
    """Tell whether a failure is that of an audit."""
    return text.startswith(_MARK)

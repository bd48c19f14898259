"""The audit: which micro-batches a second worker computes again, and who is wrong if it finds other bits. Pure.

The choice follows from the seed, the step and the micro-batch (rule R2), so that an audit can be repeated whoever takes
part. It falls between a step's last sums and its update: what is in doubt is never applied. Digests are compared, made
by the workers of all that they found; the sums are not sent again.

If two differ, further workers compute the micro-batch until two agree. Two faults do not give the same wrong bits, so
whoever has others is wrong. If there is no further worker, the server computes it, and is believed: it makes the
updates.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np

from lockstep.common.aggregation.tree import Node
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Diverged, Quantity, Result
from lockstep.ps.coordinator.membership import Member, process_of
from lockstep.ps.run.plan import Round

#: What the server is called next to workers.
SERVER = "the server"


def chosen_for_audit(share: float, seed: int, step: int, micro_batches: int) -> frozenset[int]:
    """Return which micro-batches of a step are audited, each with the probability `share`."""
    if not share:
        return frozenset()
    drawn = generator(seed, Purpose.AUDIT, at=step).random(micro_batches)
    return frozenset(np.flatnonzero(drawn < share).tolist())


def steps_to_find(share: float, wrong: float, results: float, probability: float) -> int:
    """Return after how many steps an audit of a `share` of the micro-batches has found a worker.

    The worker computes `results` micro-batches a step, a share `wrong` of them wrongly, each by chance; it is found in
    that many steps with at least this probability. Each of its results is audited and wrong with the probability
    share · wrong, and so none of n steps' with (1 - share · wrong)^(n · results). Its own audits of others, which may
    be wrong too, are not counted: with them it is found sooner.
    """
    found = share * wrong
    return 1 if found >= 1.0 else math.ceil(math.log1p(-probability) / (results * math.log1p(-found)))


def share_to_find(steps: int, wrong: float, results: float, probability: float) -> float:
    """Return which share of the micro-batches an audit must choose: the inverse of `steps_to_find`.

    Above 1 there is none: then the worker is wrong too seldom to be found in so few steps.
    """
    return -math.expm1(math.log1p(-probability) / (steps * results)) / wrong


class AuditFinding(msgspec.Struct, frozen=True):
    """What a worker, which may be gone by now, found for a micro-batch."""

    rank: int
    #: What it was before it ever left: it may have another rank by now; and by what it is known when it comes back.
    process: str
    identity: str
    named: str
    #: The digest of its result, or where the first value is that is not finite.
    found: str

    @classmethod
    def of(cls, member: Member, found: Result | Diverged) -> "AuditFinding":
        """Return the finding of a member."""
        return cls(member.rank, process_of(member.join), member.identity, member.named(), found_in(found))

    def text(self) -> str:
        """Return who found what."""
        return f"{self.named} found {self.found[:12]}…" if _is_digest(self.found) else f"{self.named} {self.found}"


def found_in(found: Result | Diverged) -> str:
    """Return what workers with the same bits find alike."""
    return found.digest if isinstance(found, Result) else not_finite_in(found.quantity, found.layer)


def not_finite_in(quantity: Quantity, layer: str) -> str:
    """Return what is found if a value is not finite; `layer` as of `Diverged`."""
    where = f"from layer {layer} on" if quantity == "loss" else f"first of {layer!r}"
    return f"found a {quantity} that is not finite, {where}"


def _is_digest(found: str) -> bool:
    return " " not in found


class Conviction(msgspec.Struct, frozen=True):
    """Who computed a micro-batch wrongly, as two others agree, or the server."""

    step: int
    micro_batch: int
    #: Not empty.
    wrong: tuple[AuditFinding, ...]
    #: What is right, and who found that.
    right: str
    judges: tuple[str, ...]

    def text(self) -> str:
        """Return how the audit found them."""
        others = " and ".join(self.judges)
        right = f"{self.right[:12]}…" if _is_digest(self.right) else self.right.removeprefix("found ")
        found = ", ".join(finding.text() for finding in self.wrong)
        these = " and ".join(finding.named for finding in self.wrong)
        verb = "computes wrongly, and is evicted" if len(self.wrong) == 1 else "compute wrongly, and are evicted"
        return (
            f"the audit found a difference in micro-batch {self.micro_batch} of step {self.step}: {found}, and "
            f"{others} {right}: {these} {verb}"
        )


@dataclass
class Audit:
    """The micro-batches of one step that are computed twice."""

    #: The training round.
    round: Round
    chosen: frozenset[int] = frozenset()
    #: By micro-batch, what the worker found that computed it first, and then those that computed it again and differ.
    findings: dict[int, list[AuditFinding]] = field(default_factory=dict)
    #: Micro-batches that the server was asked to compute.
    asked: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, at: Round, share: float, seed: int) -> "Audit":
        """Return the audit of a round: an empty one unless it is a training step."""
        is_training = at.work == "train"
        return cls(at, chosen_for_audit(share, seed, at.step, at.micro_batches) if is_training else frozenset())

    def record(self, member: Member, result: Result) -> None:
        """Record a result that counts, if it is to be computed again."""
        if result.lo in self.chosen:
            self.findings[result.lo] = [AuditFinding.of(member, result)]

    def is_due(self) -> bool:
        """Tell whether any micro-batch is still to be computed again."""
        return bool(self.findings)

    def excluded(self, members: Iterable[Member]) -> dict[int, frozenset[int]]:
        """Return by micro-batch which ranks may not compute it again: of those that have, whatever they are called now.

        A worker that has left and come back has another rank.
        """
        members = list(members)
        return {
            micro_batch: frozenset(
                {finding.rank for finding in found}
                | {member.rank for member in members if process_of(member.join) in {one.process for one in found}}
            )
            for micro_batch, found in self.findings.items()
        }

    def has_heard(self, micro_batch: int, member: Member) -> bool:
        """Tell whether a member has computed a micro-batch already: its second answer would be no other opinion."""
        return any(process_of(member.join) == finding.process for finding in self.findings.get(micro_batch, ()))

    def is_disputed(self, micro_batch: int) -> bool:
        """Tell whether two workers differ about a micro-batch."""
        return len(self.findings.get(micro_batch, ())) > 1

    def add(self, micro_batch: int, finding: AuditFinding) -> Conviction | None:
        """Record what another worker found; return who is wrong if that is known by now.

        If nobody is, either the two agree, or it is disputed.
        """
        found = self.findings[micro_batch]
        agreeing = [one for one in found if one.found == finding.found]
        wrong = [one for one in found if one.found != finding.found]
        if not agreeing:
            found.append(finding)
            return None
        return self._convict(micro_batch, wrong, finding.found, [one.named for one in (*agreeing, finding)])

    def decide(self, micro_batch: int, right: str) -> Conviction | None:
        """Return who is wrong about a micro-batch of which the server has found what is right."""
        found = self.findings.get(micro_batch, [])
        agreeing = [one.named for one in found if one.found == right]
        return self._convict(micro_batch, [one for one in found if one.found != right], right, [*agreeing, SERVER])

    def _convict(self, micro_batch: int, wrong: list[AuditFinding], right: str, judges: list[str]) -> Conviction | None:
        if not wrong:
            return None
        return Conviction(self.round.step, micro_batch, tuple(wrong), right, tuple(judges))

    def dispute(self, micro_batch: int) -> str:
        """Describe how the findings of a micro-batch differ."""
        of = self.round.named([Node(micro_batch, micro_batch + 1)])
        return f"the audit found a difference in {of}: {', '.join(one.text() for one in self.findings[micro_batch])}"

"""The audit: a second worker computes some micro-batches again; if it finds other bits, one of both is wrong. Pure.

The choice follows from the seed, the step and the micro-batch (rule R2), so that an audit can be repeated with other
workers. It falls between a step's last sums and its update: a gradient in doubt is never applied. Digests are compared,
made by the workers of all that they found; the sums are not sent again.

If two differ, further workers compute the micro-batch until two agree. Two faults do not give the same wrong bits, so
a worker that has others is wrong. If there is no further worker, the server computes it, and is believed: it makes the
updates.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.messages import Diverged, Eviction, Result
from lockstep.ps.coordinator.admission import convicted_text, refused
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect, Report, Send
from lockstep.ps.coordinator.findings import AuditFinding, Conviction, MicroBatchOutcome
from lockstep.ps.coordinator.membership import Member, process_of
from lockstep.ps.coordinator.scheduling.lease_table import LeaseTable
from lockstep.ps.coordinator.transitions import RunPhase
from lockstep.ps.records.ledger import UnusedCause
from lockstep.ps.run.plan import Round

#: The name of the server next to workers.
SERVER = "the server"

#: Returns what the server itself finds for a micro-batch of a step, None if it cannot compute it.
Recompute = Callable[[int, int], MicroBatchOutcome | None]


def chosen_for_audit(share: float, seed: int, step: int, micro_batches: int) -> frozenset[int]:
    """Return which micro-batches of a step are audited, each with the probability `share`."""
    if not share:
        return frozenset()
    drawn = generator(seed, Purpose.AUDIT, at=step).random(micro_batches)
    return frozenset(np.flatnonzero(drawn < share).tolist())


def finding_of(member: Member, answer: Result | Diverged) -> AuditFinding:
    """Return the finding of a member."""
    return AuditFinding(
        member.rank, process_of(member.join), member.identity, member.named(), MicroBatchOutcome.of(answer)
    )


@dataclass
class AuditOfStep:
    """The micro-batches of one step that are computed twice."""

    #: The training round.
    round: Round
    chosen: frozenset[int] = frozenset()
    #: By micro-batch, what the worker found that computed it first, and then those that computed it again and differ.
    findings: dict[int, list[AuditFinding]] = field(default_factory=dict)

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
        """Record the finding of another worker; return the conviction of those that are wrong if that is known by now.

        None if the two agree, or if the outcome is disputed.
        """
        found = self.findings[micro_batch]
        if all(one.found != finding.found for one in found):
            found.append(finding)
            return None
        return self.convict(micro_batch, finding.found, finding.named)

    def convict(self, micro_batch: int, right: MicroBatchOutcome, judge: str) -> Conviction | None:
        """Return the conviction of the workers that found anything but the right outcome, which `judge` has found too.

        None if no worker did.
        """
        found = self.findings[micro_batch]
        wrong = tuple(one for one in found if one.found != right)
        judges = (*(one.named for one in found if one.found == right), judge)
        return Conviction(self.round.step, micro_batch, wrong, right, judges) if wrong else None

    def dispute(self, micro_batch: int) -> str:
        """Describe how the findings of a micro-batch differ."""
        of = self.round.named([Node(micro_batch, micro_batch + 1)])
        return f"the audit found a difference in {of}: {', '.join(one.text() for one in self.findings[micro_batch])}"


class Audit:
    """Adds to a training round that some of its micro-batches are computed again before the update."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        self._recompute: Recompute = lambda step, micro_batch: None
        self.step = AuditOfStep(core.info.plan.first())
        hooks = core.hooks
        hooks.rounds.append(self)
        hooks.answers["audit"] = self._judge
        hooks.after.append(self._end_if_done)

    def serve(self, recompute: Recompute) -> None:
        """Let the server compute what workers differ about."""
        self._recompute = recompute

    def opened(self, at: Round) -> frozenset[int]:
        info = self._core.info
        share = info.options.audit if at.work == "train" else 0.0
        self.step = AuditOfStep(at, chosen_for_audit(share, info.job.seed, at.step, at.micro_batches))
        return self.step.chosen

    def accepted(self, member: Member, result: Result) -> None:
        if result.lo in self.step.chosen:
            self.step.findings[result.lo] = [finding_of(member, result)]

    def completed(self) -> bool:
        """Let the micro-batches that are audited be all that is left of the round, for other workers than before."""
        core, audit = self._core, self.step
        if core.round.work != "train" or not audit.findings:
            return False
        micro_batches, excluded = core.round.micro_batches, audit.excluded(core.membership.members.values())
        leases = LeaseTable.for_audit(micro_batches, excluded, core.scheduler.numbers)
        core.state.continue_with(replace(core.round, work="audit"), leases)
        core.phase = RunPhase.AUDITING
        return True

    def _judge(self, member: Member, answer: Result | Diverged, now: float) -> list[Effect]:
        """Compare what another worker has found; it is an error of ours to ask one twice."""
        audit, core = self.step, self._core
        micro_batch = answer.lo if isinstance(answer, Result) else answer.micro_batch
        if audit.has_heard(micro_batch, member):
            return []
        conviction = audit.add(micro_batch, finding_of(member, answer))
        if conviction is not None:
            return self._convict(conviction)
        if audit.is_disputed(micro_batch):
            core.leases.hand_back(member.rank, micro_batch)
            self._exclude()
            text = f"{audit.dispute(micro_batch)}; another worker, or the server, computes it too"
            return [Report(text=text), *core.assign_leases(now)]
        assert isinstance(answer, Result)  # the first one's was
        return self._accept(member, answer, now)

    def _exclude(self) -> None:
        """Lease no micro-batch to a worker that has computed it, also if that has another rank by now."""
        self._core.leases.excluded = self.step.excluded(self._core.membership.members.values())

    def _accept(self, member: Member, result: Result, now: float) -> list[Effect]:
        """Record a micro-batch for which a worker found the same bits."""
        core, node = self._core, result.node()
        ended = core.leases.accept(node) or []
        core.state.account.record_recomputed("audit", result.step, [node], member.rank, UnusedCause.AUDITED)
        others = [lease for lease in ended if lease.rank != member.rank]
        withdrawn = core.scheduler.withdraw(core.state, others, now)
        core.progress.audited += 1
        core.membership.credit_audit(member, result.compute_s)
        return [*withdrawn, *core.assign_leases(now)]

    def _judge_alone(self, micro_batch: int) -> list[Effect]:
        """Believe the server; without its opinion, the run cannot go on: one of them changes the weights."""
        audit = self.step
        found = self._recompute(audit.round.step, micro_batch)
        conviction = None if found is None else audit.convict(micro_batch, found, SERVER)
        if conviction is not None:
            return self._convict(conviction)
        text = (
            f"{audit.dispute(micro_batch)}; no worker is left that could decide which of them computes wrongly, "
            "and the step was not applied: find out with `lockstep verify`, or by leaving out one at a time, and "
            "resume from the last checkpoint"
        )
        return self._core.fail(text, FailureKind.AUDIT)

    def _convict(self, conviction: Conviction) -> list[Effect]:
        """Evict the workers that are wrong for good; end, so that the run is resumed from before their results."""
        core, failure = self._core, conviction.text()
        wrong = {finding.identity for finding in conviction.wrong}
        refusal = refused(RefusalKind.CONVICTED, convicted_text(failure))
        # The others join again in a moment, when the run is resumed.
        back = Eviction(reason="the run goes back to a checkpoint, since a worker has computed wrongly")
        ends, sent = core.info.options.audit_ends, list[Effect]()
        for peer, one in list(core.membership.members.items()):
            if one.identity in wrong or not ends:
                core.membership.remove(peer)
                sent.append(Send(peer=peer, message=refusal if one.identity in wrong else back))
        return [*sent, *core.fail(failure, FailureKind.AUDIT if ends else FailureKind.ROLLBACK, conviction)]

    def _end_if_done(self, now: float) -> list[Effect]:
        """Complete the step once everything is audited for which there is a worker: the audit waits for none."""
        core, audit = self._core, self.step
        if core.phase is not RunPhase.AUDITING:
            return []
        self._exclude()  # a worker that has come back meanwhile has another rank
        ready = [member.rank for member in core.membership.ready()]
        alone = core.leases.unassignable(ready)
        effects = self._skip([one for one in alone if not audit.is_disputed(one)])
        disputed = next(filter(audit.is_disputed, alone), None)
        if disputed is not None:
            return [*effects, *self._judge_alone(disputed)]
        if not core.leases.is_complete():
            return effects
        core.state.continue_with(audit.round, core.leases)
        audit.findings.clear()
        return [*effects, *core.complete_round(now)]

    def _skip(self, micro_batches: Iterable[int]) -> list[Effect]:
        """Give up the audit of micro-batches that no worker may compute; report the first of the run."""
        core, skipped = self._core, [Node(one, one + 1) for one in micro_batches]
        for node in skipped:
            core.leases.skip(node.lo)
        is_first = skipped and not core.progress.unaudited
        core.progress.unaudited += len(skipped)
        text = f"cannot audit {core.round.named(skipped)} or others now: no other worker is ready; the run continues"
        return [Report(text=text)] if is_first else []

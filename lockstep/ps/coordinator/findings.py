"""The outcomes of a micro-batch that is computed again, and the conviction of workers that were wrong. Pure."""

from msgspec import Struct

from lockstep.common.protocol.messages import Diverged, Quantity, Result


class MicroBatchOutcome(Struct, frozen=True, kw_only=True):
    """The outcome of a micro-batch: two workers with the same bits have equal ones."""

    #: Of the sums and figures.
    digest: str = ""
    #: The value that is not finite, None if all are; and its layer or parameter, as of `Diverged`.
    quantity: Quantity | None = None
    layer: str = ""

    @classmethod
    def of(cls, answer: Result | Diverged) -> "MicroBatchOutcome":
        """Return the outcome that a worker reports."""
        if isinstance(answer, Result):
            return cls(digest=answer.digest)
        return cls(quantity=answer.quantity, layer=answer.layer)

    def recorded(self) -> str:
        """Return the outcome as the ledger has it: the whole digest, or the value that is not finite."""
        return self.digest if self.quantity is None else f"found {self.text()}"

    def text(self) -> str:
        """Return the outcome in a few words."""
        if self.quantity is None:
            return f"{self.digest[:12]}…"
        where = f"from layer {self.layer} on" if self.quantity == "loss" else f"first of {self.layer!r}"
        return f"a {self.quantity} that is not finite, {where}"


class AuditFinding(Struct, frozen=True):
    """A micro-batch's outcome at a worker, which may be gone by now."""

    rank: int
    #: The process before it ever left, which may have another rank by now; and its identity when it comes back.
    process: str
    identity: str
    named: str
    found: MicroBatchOutcome

    def text(self) -> str:
        """Return which worker found what."""
        return f"{self.named} found {self.found.text()}"


class Conviction(Struct, frozen=True):
    """The workers that computed a micro-batch wrongly, as two others agree, or the server."""

    step: int
    micro_batch: int
    #: Not empty.
    wrong: tuple[AuditFinding, ...]
    #: The right outcome, and the processes that found it.
    right: MicroBatchOutcome
    judges: tuple[str, ...]

    def text(self) -> str:
        """Return how the audit found them."""
        others = " and ".join(self.judges)
        found = ", ".join(finding.text() for finding in self.wrong)
        these = " and ".join(finding.named for finding in self.wrong)
        verb = "computes wrongly, and is evicted" if len(self.wrong) == 1 else "compute wrongly, and are evicted"
        return (
            f"the audit found a difference in micro-batch {self.micro_batch} of step {self.step}: {found}, and "
            f"{others} {self.right.text()}: {these} {verb}"
        )

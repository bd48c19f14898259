"""Check what workers have signed of a recorded run: that all results are signed, for this run, by the keys it names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lockstep.checking.verification.recorded_run import RecordedRun
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.statement import signed_run
from lockstep.ps.records.ledger import LedgerShare, RunBegun, SignedResult, StepDone, WorkerIn


def has_signatures(run: RecordedRun) -> bool:
    """Tell whether any result of a run is signed, or was to be."""
    return any(
        line.signer if isinstance(line, WorkerIn) else isinstance(line, StepDone) and line.signed for line in run.lines
    )


@dataclass
class SignatureReport:
    """The signatures of a run."""

    #: Signatures that are right, and by whom: the name of a key, or of a worker.
    valid: int = 0
    by: dict[str, int] = field(default_factory=dict)
    #: What is wrong, in the order of steps.
    faults: list[str] = field(default_factory=list)


def check_signatures(run: RecordedRun, known: Mapping[str, str] | None = None) -> SignatureReport:
    """Check the signature of each result of a run.

    `known` are the keys that are believed, by the names of their owners: by default those that the ledger names, which
    whoever wrote the ledger may have chosen.
    """
    # The library for it is not part of the core, and most runs have no signatures.
    from lockstep.common.transport.auth.signing import is_signed

    report, job = SignatureReport(), run.receipt.job_sha256
    name = signed_run(run.receipt.run, run.receipt.chain[0].link)
    owners = None if known is None else {public: owner for owner, public in known.items()}
    workers: dict[int, WorkerIn] = {}
    for line in run.lines:
        match line:
            case RunBegun():
                workers = {}
            case WorkerIn():
                workers[line.rank] = line
            case StepDone():
                for share, signed in _pairs(line):
                    worker = workers.get(share.rank)
                    fault = _missing(share, signed, worker, owners)
                    if not fault and signed is not None and worker is not None:
                        is_valid = is_signed(worker.signer, signed.statement(job), signed.signature)
                        forged = f"the signature is forged: it is not one of the key {worker.signer[:12]}…"
                        fault = _replayed(line.step, share, signed, name) if is_valid else forged
                    if fault:
                        who = f"worker {share.rank}" if worker is None else worker.named()
                        nodes = Node(share.lo, share.hi)
                        report.faults.append(f"step {line.step}, micro-batches {nodes}, {who}: {fault}")
                    elif worker is not None:
                        owner = worker.named() if owners is None else f"key {owners[worker.signer]!r}"
                        report.valid += 1
                        report.by[owner] = report.by.get(owner, 0) + 1
            case _:
                pass
    return report


def _pairs(line: StepDone) -> Iterator[tuple[LedgerShare, SignedResult | None]]:
    for number, share in enumerate(line.shares):
        yield share, line.signed[number] if number < len(line.signed) else None


def _missing(
    share: LedgerShare, signed: SignedResult | None, worker: WorkerIn | None, owners: Mapping[str, str] | None
) -> str:
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

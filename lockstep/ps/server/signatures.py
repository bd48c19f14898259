"""Checks signatures of workers as they come: so a recorded result can be shown to be of its worker."""

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import OF_A_STEP, Result
from lockstep.common.transport.auth.signing import is_signed
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.records.ledger import SignedResult


def check_signature(run: str, job: str, member: Member, result: Result) -> None:
    """Raise RemoteProtocolError if a result of a step is not signed with its worker's key.

    `run` is the name of the run in signatures, `job` the digest of its job.
    """
    signer = member.join.signer
    if result.work not in OF_A_STEP:
        return
    signed = SignedResult.of(run, result)
    if not (result.digest and is_signed(signer, signed.statement(job), result.signature)):
        raise RemoteProtocolError(
            f"a result of micro-batches {result.node()} of step {result.step} without a signature of its worker's "
            f"key, {signer[:12]}…"
        )

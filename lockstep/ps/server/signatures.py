"""Checks signatures of workers as they come: so a recorded result can be shown to be of its worker."""

import msgspec

from lockstep.common.errors import RemoteProtocolError
from lockstep.common.protocol.messages import OF_A_STEP, Result
from lockstep.common.transport.auth.signing import is_signed
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.records.ledger import SignedResult


class SignatureCheck(msgspec.Struct, frozen=True):
    """The signatures of one run."""

    #: The name of the run in signatures, and the digest of its job.
    run: str
    job: str

    def check(self, member: Member, result: Result) -> None:
        """Raise RemoteProtocolError if a result of a step is not signed with its worker's key."""
        signer = member.join.signer
        if result.work not in OF_A_STEP:
            return
        signed = SignedResult.of(self.run, result)
        if not (result.digest and is_signed(signer, signed.statement(self.job), result.signature)):
            raise RemoteProtocolError(
                f"a result of micro-batches {result.node()} of step {result.step} without a signature of its worker's "
                f"key, {signer[:12]}…"
            )

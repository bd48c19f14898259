"""Results of a run that demands signatures: who may join, and what is recorded of whom."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from lockstep.common.aggregation.tree import Node
from lockstep.common.errors import RefusalKind, RemoteProtocolError
from lockstep.common.protocol.messages import Lease, Refused, Result, Welcome
from lockstep.common.protocol.statement import statement_of
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.effects import UpdateWeights
from lockstep.ps.coordinator.membership import Member
from lockstep.ps.coordinator.parts.multi_step import may_lease_steps
from lockstep.ps.records.ledger import SignedResult, WorkerIn
from lockstep.ps.server.workers import check_signature
from tests.lockstep.ps.runs import Drive, facts_of, join_of, messages, peer_of, result_of, with_options

signing = pytest.importorskip("lockstep.common.transport.auth.signing")

RUN, JOB, DIGEST = "a" * 64, "b" * 64, "c" * 64

SIGNER = signing.Signer.of("1" * 64)


def signed_drive() -> Drive:
    return Drive(replace(with_options(facts_of(), signed=True), signed_run=RUN))


def join(drive: Drive, signer: str, known: str) -> None:
    asked = msgspec.structs.replace(join_of(1), signer=signer)
    drive.happen(events.Received(peer=peer_of(1), message=asked, key="ada", signer=known))


@pytest.mark.parametrize(
    ("signer", "known", "reason"),
    [
        ("", SIGNER.key.public, "expected a worker with --key FILE, whose file has a seed"),
        (SIGNER.key.public, "", "and knows none as the key of this worker's signatures"),
        (SIGNER.key.public, "d" * 64, "and knows dddddddddddd… as the key of this worker's signatures"),
    ],
)
def test_a_worker_whose_results_could_not_be_checked_is_refused(signer: str, known: str, reason: str) -> None:
    drive = signed_drive()
    join(drive, signer, known)
    (refused,) = messages(drive.effects, 1)
    assert isinstance(refused, Refused)
    assert refused.kind is RefusalKind.UNSIGNED
    assert reason in refused.reason


def test_each_result_of_a_step_is_to_be_signed_and_what_is_signed_is_recorded() -> None:
    drive = signed_drive()
    join(drive, SIGNER.key.public, SIGNER.key.public)
    (welcome,) = messages(drive.effects, 1)
    assert isinstance(welcome, Welcome)
    assert welcome.signed_run == RUN
    drive.prepare(1)
    while not any(isinstance(effect, UpdateWeights) for effect in drive.effects):
        lease = drive.leases[1].pop(0)
        assert lease.is_digested
        drive.send(1, msgspec.structs.replace(result_of(lease), digest=DIGEST, signature=b"s" * 64))
    (update,) = [effect for effect in drive.effects if isinstance(effect, UpdateWeights)]
    line = update.account.step_done(0, 0)
    assert line.signed == [SignedResult(RUN, 0, share.lo, share.hi, DIGEST, b"s" * 64) for share in line.shares]
    (worker,) = [entry for entry in update.account.entries if isinstance(entry, WorkerIn)]
    assert (worker.signer, worker.identity) == (SIGNER.key.public, "key ada")


def test_no_team_makes_steps_by_itself_whose_results_are_to_be_signed() -> None:
    assert may_lease_steps(facts_of())
    assert not may_lease_steps(signed_drive().info)


def member_of(signer: Any) -> Member:
    return Member(peer_of(1), 1, msgspec.structs.replace(join_of(1), signer=signer.key.public))


def signed_result(**values: object) -> Result:
    result = msgspec.structs.replace(result_of(Lease(work="train", step=3, lo=0, hi=2)), digest=DIGEST)
    signature = SIGNER.sign(statement_of(RUN, JOB, 3, Node(0, 2), DIGEST))
    return msgspec.structs.replace(result, **{"signature": signature, **values})


def test_a_result_that_its_worker_has_signed_is_accepted() -> None:
    check_signature(RUN, JOB, member_of(SIGNER), signed_result())
    # Figures of an evaluation decide no bit of a step.
    check_signature(RUN, JOB, member_of(SIGNER), signed_result(work="evaluate", signature=b""))


@pytest.mark.parametrize(
    "values",
    [{"signature": b""}, {"digest": ""}, {"digest": "d" * 64}, {"step": 4}, {"lo": 1}, {"signature": b"s" * 64}],
)
def test_a_signature_of_anything_else_breaks_the_protocol(values: dict[str, object]) -> None:
    with pytest.raises(RemoteProtocolError, match="without a signature of its worker's key"):
        check_signature(RUN, JOB, member_of(SIGNER), signed_result(**values))


def test_a_signature_for_another_run_or_by_another_key_breaks_the_protocol() -> None:
    for run, job, signer in (("e" * 64, JOB, SIGNER), (RUN, "e" * 64, SIGNER), (RUN, JOB, signing.Signer.new())):
        with pytest.raises(RemoteProtocolError, match="of micro-batches 0-1 of step 3"):
            check_signature(run, job, member_of(signer), signed_result())

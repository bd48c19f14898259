"""What workers have signed is checked: a signature that is forged, missing, or of something else is named."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lockstep.checking.recorded_run import RecordedRun, open_again, read_run
from lockstep.checking.verify import Verifier, check_signatures, has_signatures
from lockstep.common.aggregation.tree import Node
from lockstep.common.protocol.statement import result_digest, signed_run
from lockstep.ps.records.ledger import Line, SignedResult, StepDone, WorkerIn
from lockstep.runs.single_process import SingleProcessTrainer
from tests.lockstep.recorded import job_in, record_with_workers

signing = pytest.importorskip("lockstep.common.transport.auth.signing")

#: Of each worker, by rank.
SIGNERS = [signing.Signer.of(f"{rank:064x}") for rank in range(4)]

#: The keys of all workers, by name.
KNOWN = {f"worker-{rank}": signer.key.public for rank, signer in enumerate(SIGNERS)}


def sign(run: RecordedRun, rank: int, result: SignedResult) -> SignedResult:
    return msgspec.structs.replace(result, signature=SIGNERS[rank].sign(result.statement(run.receipt.job_sha256)))


def signed(tmp_path: Path) -> RecordedRun:
    """Return a run whose workers have signed their results."""
    run = read_run(record_with_workers(tmp_path, job_in(tmp_path), 3))
    name = signed_run(run.receipt.run, run.receipt.chain[0].link)
    trainer = SingleProcessTrainer(open_again(run, allows_mixed_numerics=False))
    lines: list[Line] = []
    for line in run.lines:
        if isinstance(line, WorkerIn):
            lines.append(msgspec.structs.replace(line, signer=SIGNERS[line.rank].key.public))
        elif isinstance(line, StepDone):
            results = []
            for share in line.shares:
                sums, tally = trainer.node_sums(line.step, Node(share.lo, share.hi))
                digest = result_digest(sums, trainer.compute.losses, tally)
                results.append(sign(run, share.rank, SignedResult(name, line.step, share.lo, share.hi, digest, b"")))
            lines.append(msgspec.structs.replace(line, signed=results))
            trainer.step(line.step)
        else:
            lines.append(line)
    return RecordedRun(run.folder, run.job, run.receipt, lines)


def changed(run: RecordedRun, step: int, change: Callable[[StepDone], StepDone]) -> RecordedRun:
    lines = [change(line) if isinstance(line, StepDone) and line.step == step else line for line in run.lines]
    return RecordedRun(run.folder, run.job, run.receipt, lines)


def first_signed(past: RecordedRun, at: int, **values: object) -> RecordedRun:
    """Return a run in which the first share of a step has other signed values, which its worker has signed."""

    def change(line: StepDone) -> StepDone:
        first = sign(past, line.shares[0].rank, msgspec.structs.replace(line.signed[0], **values))
        return msgspec.structs.replace(line, signed=[first, *line.signed[1:]])

    return changed(past, at, change)


def test_an_honest_run_has_all_signatures_and_the_same_bits(tmp_path: Path) -> None:
    run = signed(tmp_path)
    valid, faults = check_signatures(run, KNOWN)
    assert faults == []
    assert valid.total() == sum(len(line.shares) for line in run.lines if isinstance(line, StepDone))
    assert set(valid) <= {f"key 'worker-{rank}'" for rank in range(3)}
    assert check_signatures(run)[1] == []
    verifier = Verifier(run, open_again(run, allows_mixed_numerics=False))
    assert verifier.verify(7, lambda step: None) is None


def test_a_run_without_signatures_has_none(tmp_path: Path) -> None:
    run = read_run(record_with_workers(tmp_path, job_in(tmp_path), 2))
    assert not has_signatures(run)
    assert check_signatures(run, KNOWN)[1][0].endswith("is not signed: expected a signature of its worker's key")


def test_a_signed_run_has_some(tmp_path: Path) -> None:
    assert has_signatures(signed(tmp_path))


def test_a_missing_signature_is_named(tmp_path: Path) -> None:
    run = changed(signed(tmp_path), 3, lambda line: msgspec.structs.replace(line, signed=line.signed[:-1]))
    (fault,) = check_signatures(run)[1]
    assert fault.startswith("step 3, micro-batches ")
    assert fault.endswith("the result is not signed: expected a signature of its worker's key")


@pytest.mark.parametrize("values", [{"digest": "0" * 64}, {"signature": b"\0" * 64}, {"signature": b""}, {"step": 4}])
def test_a_forged_signature_is_named(tmp_path: Path, values: dict[str, object]) -> None:
    def forge(line: StepDone) -> StepDone:
        return msgspec.structs.replace(
            line, signed=[msgspec.structs.replace(line.signed[0], **values), *line.signed[1:]]
        )

    (fault,) = check_signatures(changed(signed(tmp_path), 3, forge))[1]
    assert fault.startswith("step 3, micro-batches ")
    assert ": the signature is forged: it is not one of the key " in fault


def test_a_signature_of_another_worker_is_forged(tmp_path: Path) -> None:
    run = signed(tmp_path)

    def swap(line: StepDone) -> StepDone:
        other = sign(run, (line.shares[0].rank + 1) % 3, line.signed[0])
        return msgspec.structs.replace(line, signed=[other, *line.signed[1:]])

    (fault,) = check_signatures(changed(run, 3, swap))[1]
    assert "the signature is forged" in fault


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"run": "a" * 64}, "the signature is of another run, aaaaaaaaaaaa…: expected "),
        ({"step": 1}, "the signature is of another step, 1"),
        ({"lo": 7, "hi": 8}, "the signature is of other micro-batches, 7"),
    ],
)
def test_a_replayed_signature_is_named_with_what_it_is_of(
    tmp_path: Path, values: dict[str, object], named: str
) -> None:
    (fault,) = check_signatures(first_signed(signed(tmp_path), 3, **values))[1]
    assert fault.startswith("step 3, micro-batches ")
    assert f": {named}" in fault


def test_a_key_that_is_not_known_proves_nothing(tmp_path: Path) -> None:
    run = signed(tmp_path)
    strangers = {name: public for name, public in KNOWN.items() if name != "worker-1"}
    faults = check_signatures(run, strangers)[1]
    assert faults
    assert all("which is not one of those that are known" in fault for fault in faults)


def test_a_wrong_result_is_attributed_to_the_worker_that_has_signed_it(tmp_path: Path) -> None:
    run = first_signed(signed(tmp_path), 3, digest="0" * 64)
    assert check_signatures(run)[1] == []
    found = Verifier(run, open_again(run, allows_mixed_numerics=False)).verify(7, lambda step: None)
    assert found is not None
    assert found.step == 3
    assert "by worker " in found.text
    assert "which has signed a result with SHA-256 000000000000…; computed again it is " in found.text

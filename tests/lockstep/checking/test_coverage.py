"""The ledger's proof: each sample once, and every way in which that may fail."""

from pathlib import Path

import msgspec
import pytest

from lockstep.checking.recorded_run import read_run
from lockstep.checking.verify import check_coverage
from lockstep.cli.main import run
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.sampler import Sampler
from lockstep.common.job.tally import pack_losses
from lockstep.ps.records.ledger import Account, Line, OmittedEntries, RunBegun, StepDone, UnusedWork
from lockstep.ps.run.plan import Plan
from tests.lockstep.recorded import job_in, record_with_workers

PLAN = Plan(total_steps=5, steps_per_epoch=3, micro_batches=4, evaluation_chunks=1)
SAMPLER = Sampler(40, 16, 4, seed=7)


def step(number: int, *nodes: tuple[int, int]) -> StepDone:
    account = Account(4)
    for rank, (lo, hi) in enumerate(nodes or ((2, 4), (0, 2))):
        account.record_accepted(Node(lo, hi), rank, pack_losses([1.0] * (hi - lo)))
    return account.step_done(number, 0)


WHOLE: list[Line] = [step(number) for number in range(5)]


def test_each_sample_once() -> None:
    proof = check_coverage(WHOLE, PLAN, SAMPLER)
    assert proof.faults() == []
    assert [(epoch.used, epoch.steps, epoch.micro_batches) for epoch in proof.epochs] == [(40, 3, 12), (32, 2, 8)]
    assert [epoch.is_whole() for epoch in proof.epochs] == [True, False]


def used_twice(step: int, micro_batches: list[int]) -> list[str]:
    """Return how the first three samples of these micro-batches are named if they were used twice."""
    samples = sorted(sample for m in micro_batches for sample in SAMPLER.indices(step, m))
    return [f"epoch 1: sample {sample} was used 2 times: expected once" for sample in samples[:3]]


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        ([step(0, (1, 4))], ["step 0: micro-batch 0 was added 0 times: expected once"]),
        ([step(0, (3, 4))], [f"step 0: micro-batch {m} was added 0 times: expected once" for m in range(3)]),
        ([step(0, (0, 1)), step(1)], [f"step 0: micro-batch {m} was added 0 times: expected once" for m in (1, 2, 3)]),
        (
            [step(0, (0, 4), (1, 2))],
            ["step 0: micro-batch 1 was added 2 times: expected once", *used_twice(0, [1])],
        ),
        ([step(0, (0, 4), (4, 5))], ["step 0: micro-batch 4 is not one of the 4"]),
        ([step(0, (0, 4), (5, 9))], [f"step 0: micro-batch {m} is not one of the 4" for m in (5, 6, 7)]),
        ([step(0), step(0)], [*used_twice(0, [0, 1, 2, 3]), "step 0 is in the place of step 1"]),
        ([step(0), step(2), step(4)], ["step 2 is in the place of step 1"]),
        ([step(1)], ["step 1 is in the place of step 0"]),
        ([*WHOLE[:3], step(4)], ["step 4 is in the place of step 3"]),
    ],
)
def test_what_fails_is_named(lines: list[Line], faults: list[str]) -> None:
    assert check_coverage(lines, PLAN, SAMPLER).faults() == faults


def test_a_beginning_after_another_is_a_resumption_and_the_first_one_if_steps_were_lost() -> None:
    begun, again = RunBegun(step=0, weights_sha256=""), RunBegun(step=3, lost_steps=1, weights_sha256="")
    assert check_coverage([begun, again, begun], PLAN, SAMPLER).resumed == [again, begun]
    assert check_coverage([again, begun], PLAN, SAMPLER).resumed == [again, begun]


def test_work_done_again_stands_with_its_epoch() -> None:
    evaluation = UnusedWork(work="evaluate", step=3, lo=0, hi=1, rank=1, why="it left: killed")
    training = UnusedWork(work="train", step=3, lo=0, hi=2, rank=2, why="it was silent for over 60 s")
    omitted = [
        OmittedEntries(work="evaluate", step=3, count=2),
        *(OmittedEntries(work="train", step=s, count=3) for s in (3, 4)),
    ]
    lines = [*WHOLE, evaluation, training, *omitted, RunBegun(step=2, weights_sha256="")]
    proof = check_coverage([RunBegun(step=0, weights_sha256=""), *lines], PLAN, SAMPLER)
    assert [epoch.again for epoch in proof.epochs] == [[evaluation], [training]]
    assert [epoch.omitted for epoch in proof.epochs] == [2, 6]
    assert [begun.step for begun in proof.resumed] == [2]


def test_the_command_prints_the_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record_with_workers(tmp_path, job_in(tmp_path), 2)
    assert len(read_run(folder).steps()) == 7
    assert run(["ledger", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1: 4 steps, 16 micro-batches: each of 160 samples was used once",
        "epoch 2: 3 steps, 12 micro-batches: 144 of 160 samples were used, none twice",
    ]
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"kind":"step","step":2' not in line))
    assert run(["ledger", str(folder)]) == 1
    assert "the ledger does not prove the run: step 3 is in the place of step 2" in capsys.readouterr().err


@pytest.mark.parametrize(("copies", "arguments", "expected"), [(3, [], 3), (4, [], 1), (4, ["--all"], 4)])
def test_many_copies_are_counted_unless_all_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], copies: int, arguments: list[str], expected: int
) -> None:
    folder = record_with_workers(tmp_path, job_in(tmp_path), 2)
    left = UnusedWork(work="train", step=1, lo=0, hi=2, rank=1, why="it left: killed")
    again = [left, *(UnusedWork(work="train", step=2, lo=m, hi=m + 1, rank=1, why="came twice") for m in range(copies))]
    with (folder / "ledger.jsonl").open("ab") as file:
        for entry in again:
            file.write(msgspec.json.encode(entry) + b"\n")
    assert run(["ledger", str(folder), *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("came twice") == expected
    assert (f"  {copies} leases, listed by `lockstep ledger --all`: came twice\n" in out) == (expected == 1)
    assert out.count("it left: killed") == 1

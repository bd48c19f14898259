"""A recorded run is computed again: an honest one is found the same, a planted lie is named; coverage of the ledger."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from lockstep.checking.recorded_run import RecordedRun, load_checkpoint_before, open_again, read_run
from lockstep.checking.verify import Difference, Verifier, check_coverage
from lockstep.cli.main import run
from lockstep.common.aggregation.checksum import window_of
from lockstep.common.aggregation.tree import Node
from lockstep.common.data.sampler import Sampler
from lockstep.common.errors import UsageError
from lockstep.common.job.tally import pack_losses
from lockstep.ps.coordinator.failures import diverged_text
from lockstep.ps.records.ledger import (
    Account,
    EpochDone,
    LedgerShare,
    Line,
    OmittedEntries,
    RunBegun,
    StepDone,
    UnusedWork,
    WeightsAt,
    WorkerIn,
)
from lockstep.ps.records.run_folder import CHECKPOINTS, LEDGER, RECEIPT, WEIGHTS
from lockstep.ps.run.plan import Plan
from tests.lockstep.recorded import job_in, lying, record_alone, record_with_workers
from tests.simulation.small import noisy_net


def found_in(folder: Path, first: int = 0) -> Difference | None:
    """Return what a recomputation from the last checkpoint up to `first` finds."""
    past = read_run(folder)
    opening = open_again(past, allows_mixed_numerics=False)
    if first:
        load_checkpoint_before(opening, folder, first, lambda text: None)
    return Verifier(past, opening).verify(7, lambda step: None)


#: Sums and weights that are rounded.
ROUNDED = {"wire": "int8", "wire_weights": "bfloat16"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        ROUNDED,
        {"model": noisy_net(), "micro_batches": 3, "optimizer": "adam", "max_shift": 1},
        {"model": noisy_net(), "micro_batches": 3, "local_steps": 4, "nesterov": True, "max_shift": 1, **ROUNDED},
    ],
)
def test_an_honest_run_is_the_same_from_anywhere(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path, **values))
    assert [found_in(folder, first) for first in range(7)] == [None] * 7


@pytest.mark.parametrize("values", [{}, ROUNDED])
def test_a_run_with_workers_is_the_same(tmp_path: Path, values: dict[str, Any]) -> None:
    assert found_in(record_with_workers(tmp_path, job_in(tmp_path, **values), 3)) is None


def test_a_run_that_is_computed_again_with_another_type_is_refused(tmp_path: Path) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path, **ROUNDED))
    job = (folder / "job.toml").read_text()
    (folder / "job.toml").write_text(job.replace('wire = "int8"', 'wire = "float16"'))
    with pytest.raises(UsageError, match="the job is not the run's"):
        found_in(folder)


@pytest.mark.parametrize("bit", [0, 12, 22, 31])
def test_a_flipped_bit_of_a_weight_is_named_with_its_step(tmp_path: Path, bit: int) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path), lying(bit))
    found = found_in(folder)
    assert found is not None
    assert (found.step, found.micro_batch) == (4, None)
    assert "step 4: the losses of all its micro-batches are the same, and the weights after it are not" in found.text
    # From the checkpoint after it, all follows from the weights that it holds.
    assert found_in(folder, 6) is None


@pytest.mark.parametrize(("step", "micro_batch"), [(0, 0), (2, 3), (5, 1)])
def test_a_lie_of_a_worker_is_named_with_step_micro_batch_and_worker(
    tmp_path: Path, step: int, micro_batch: int
) -> None:
    folder = record_with_workers(tmp_path, job_in(tmp_path), 4, (step, micro_batch))
    found = found_in(folder)
    assert found is not None
    assert (found.step, found.micro_batch) == (step, micro_batch)
    assert f"step {step}, micro-batch {micro_batch}: the sum of its losses was " in found.text
    assert "by worker " in found.text
    assert "(host host, pid " in found.text


@pytest.mark.parametrize("local_step", [0, 2, 3])
def test_a_lie_within_a_local_step_is_named_with_its_micro_batch(tmp_path: Path, local_step: int) -> None:
    job = job_in(tmp_path, local_steps=4, nesterov=True)
    folder = record_with_workers(tmp_path, job, 3, (2, 4 * 3 + local_step))
    found = found_in(folder)
    assert found is not None
    assert (found.step, found.micro_batch) == (2, 3)
    assert "by worker " in found.text


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    """An honest run, in which a test changes what the ledger says."""
    folder = tmp_path_factory.mktemp("honest")
    return read_run(record_alone(folder, job_in(folder)))


def found_by(run: RecordedRun, until: int, *, watch: Callable[[int], None] = lambda step: None) -> Difference | None:
    setup = open_again(run, allows_mixed_numerics=False)
    return Verifier(run, setup).verify(until, watch)


def with_lines(run: RecordedRun, change: Callable[[Line], Line]) -> RecordedRun:
    return replace(run, lines=[change(line) for line in run.lines])


def weights_after(run: RecordedRun, steps: int) -> str:
    """Return the SHA-256 that an honest run records."""
    kinds = RunBegun | WeightsAt | EpochDone
    return next(line.weights_sha256 for line in run.lines if isinstance(line, kinds) and line.step == steps)


@pytest.mark.parametrize(
    ("line", "source"),
    [
        (WeightsAt(step=3, weights_sha256="f" * 64), "the checkpoint"),
        (RunBegun(step=3, weights_sha256="f" * 64), "the weights that it was resumed from"),
        (EpochDone(epoch=9, step=3, weights_sha256="f" * 64, link=""), "epoch 9"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_each_digest_of_the_ledger_is_compared(honest: RecordedRun, line: Line, source: str, is_first: bool) -> None:
    """Also if another one, of the same step, is right."""
    lines = [line, *honest.lines] if is_first else [*honest.lines, line]
    seen: list[int] = []
    assert found_by(replace(honest, lines=lines), 7, watch=seen.append) == Difference(
        step=2,
        micro_batch=None,
        text="step 2: the losses of all its micro-batches are the same, and the weights after it are not "
        f"({source} has SHA-256 ffffffffffff…, here {weights_after(honest, 3)[:12]}…): a gradient differs, or the "
        "update; computed 0-3 by the single training process",
    )
    assert seen == [0, 1, 2]


def test_the_weights_from_which_it_starts_are_compared(honest: RecordedRun) -> None:
    def other(line: Line) -> Line:
        return msgspec.structs.replace(line, weights_sha256="f" * 64) if isinstance(line, RunBegun) else line

    assert found_by(with_lines(honest, other), 7) == Difference(
        step=0,
        micro_batch=None,
        text="the weights after 0 steps, from which this starts, are not those of the run: the weights that it was "
        f"resumed from has SHA-256 ffffffffffff…, here {weights_after(honest, 0)[:12]}…",
    )


def test_a_checksum_that_differs_is_named_where_no_digest_is(honest: RecordedRun) -> None:
    def other(line: Line) -> Line:
        is_it = isinstance(line, StepDone) and line.step == 1
        return msgspec.structs.replace(line, checksum=0) if is_it else line

    assert found_by(with_lines(honest, other), 7) == Difference(
        step=1,
        micro_batch=None,
        text="step 1: the losses of all its micro-batches are the same, and the weights after it are not (the checksum "
        "in the ledger): a gradient differs, or the update; computed 0-3 by the single training process",
    )


#: Weights of two windows of the checksum, of which each step adds up the other one.
TWO_WINDOWS = {
    "class": "Sequential",
    "args": [
        {"class": "Flatten"},
        {"class": "Linear", "args": [784, 200]},
        {"class": "Linear", "args": [200, 10]},
    ],
}


def test_a_stray_bit_outside_the_window_of_the_checksum_is_found_at_the_end_of_the_epoch(tmp_path: Path) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path, model=TWO_WINDOWS), lying(0, step=3))
    weights = open_again(read_run(folder), allows_mixed_numerics=False).shard.weights
    assert window_of(3, weights.size).start > 100
    found = found_in(folder)
    assert found is not None
    assert (found.step, found.micro_batch) == (3, None)
    assert "the weights after it are not (epoch 1 has SHA-256 " in found.text


def test_a_digest_that_differs_in_its_last_digit_differs(honest: RecordedRun) -> None:
    right = weights_after(honest, 3)
    line = WeightsAt(step=3, weights_sha256=right[:-1] + ("0" if right[-1] != "0" else "1"))
    found = found_by(replace(honest, lines=[*honest.lines, line]), 7)
    assert found is not None
    assert found.step == 2


def found_from(run: RecordedRun, weight: float) -> Difference | None:
    """Return what is found if all weights, which the ledger is silent about, are that number at first."""
    run = replace(run, lines=[line for line in run.lines if not isinstance(line, RunBegun)])
    setup = open_again(run, allows_mixed_numerics=False)
    setup.shard.weights[:] = weight
    return Verifier(run, setup).verify(7, lambda step: None)


def test_a_loss_that_is_not_finite_here_and_was_in_the_run_is_a_difference(honest: RecordedRun) -> None:
    text = diverged_text("train", 0, 0, "1 (Linear)")
    expected = Difference(step=0, micro_batch=0, text=f"{text}; in the run it was finite")
    assert found_from(honest, np.nan) == expected


ROOTED = """
import numpy as np
from lockstep import nn


class Rooted(nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = nn.Linear(784, 10)
        self.scale = nn.Parameter(np.ones(10, np.float32))

    def forward(self, x):
        return self.scores(x.flatten(1)) + self.scale.sqrt()


def build():
    return Rooted()
"""


def test_so_is_a_gradient(tmp_path: Path) -> None:
    (tmp_path / "rooted.py").write_text(ROOTED)
    run = read_run(record_alone(tmp_path, job_in(tmp_path, model=f"{tmp_path / 'rooted.py'}:build", lr=0.001)))
    text = diverged_text("train", 0, 0, "scale", "gradient")
    assert found_from(run, 0.0) == Difference(step=0, micro_batch=0, text=f"{text}; in the run it was finite")


def test_a_step_that_is_not_in_the_ledger_is_named(honest: RecordedRun) -> None:
    run = replace(honest, lines=[line for line in honest.lines if not (isinstance(line, StepDone) and line.step == 2)])
    assert found_by(run, 7) == Difference(
        step=2, micro_batch=None, text="step 2 is not in the ledger: expected its entry"
    )


def test_what_is_behind_the_range_is_not_looked_at(honest: RecordedRun) -> None:
    lines = [line for line in honest.lines if not (isinstance(line, StepDone) and line.step >= 2)]
    seen: list[int] = []
    verifier = Verifier(replace(honest, lines=lines), open_again(honest, allows_mixed_numerics=False))
    assert verifier.verify(2, seen.append) is None
    assert (seen, verifier.steps, verifier.micro_batches) == ([0, 1], 2, 8)


#: Four micro-batches of step 1 as three workers computed them; ranks have gaps where somebody left.
SHARES = [LedgerShare(0, 1, 5), LedgerShare(1, 3, 0), LedgerShare(3, 4, 2)]
WORKERS: list[Line] = [WorkerIn(rank=rank, host=f"h{rank}", pid=10 + rank) for rank in (0, 2, 5)]
RANK_OF = [5, 0, 0, 2]


def blaming(run: RecordedRun, shares: list[LedgerShare], losses: bytes | None, workers: list[Line]) -> RecordedRun:
    """Return a run whose step 1 was computed in these shares, with these losses if they are other ones."""

    def change(line: Line) -> Line:
        if not (isinstance(line, StepDone) and line.step == 1):
            return line
        return msgspec.structs.replace(line, shares=shares, losses=line.losses if losses is None else losses)

    begun, *others = with_lines(run, change).lines
    return replace(run, lines=[begun, *workers, *others])


def losses_with_a_lie(run: RecordedRun, micro_batch: int) -> tuple[bytes, str]:
    """Return the losses of step 1 with another one in one place, and how both values are told."""
    losses = run.steps()[1].loss_sums().copy()
    here = losses[micro_batch]
    losses[micro_batch] = 1.5
    return losses.tobytes(), f"{here!s} ({here.tobytes()[::-1].hex()})"


@pytest.mark.parametrize("micro_batch", range(4))
def test_exactly_the_worker_that_computed_a_micro_batch_is_blamed_for_it(honest: RecordedRun, micro_batch: int) -> None:
    losses, here = losses_with_a_lie(honest, micro_batch)
    rank = RANK_OF[micro_batch]
    assert found_by(blaming(honest, SHARES, losses, WORKERS), 7) == Difference(
        step=1,
        micro_batch=micro_batch,
        text=f"step 1, micro-batch {micro_batch}: the sum of its losses was 1.5 (3fc00000), by worker {rank} "
        f"(host h{rank}, pid {10 + rank}); computed again it is {here}",
    )


@pytest.mark.parametrize(
    ("shares", "blamed"),
    [
        ([], "by no worker"),
        ([LedgerShare(0, 2, 5), LedgerShare(3, 4, 2)], "by no worker"),
        ([LedgerShare(0, 4, 7)], "by the single training process"),
        (
            [LedgerShare(2, 3, 5), LedgerShare(0, 4, 2), LedgerShare(3, 4, 0), LedgerShare(0, 2, 0)],
            "by worker 5 (host h5, pid 15) and by worker 2 (host h2, pid 12)",
        ),
    ],
    ids=["none", "gap", "unknown", "twice"],
)
def test_whoever_the_ledger_names_is_blamed(honest: RecordedRun, shares: list[LedgerShare], blamed: str) -> None:
    losses, here = losses_with_a_lie(honest, 2)
    found = found_by(blaming(honest, shares, losses, WORKERS), 7)
    assert found is not None
    assert found.text == (
        f"step 1, micro-batch 2: the sum of its losses was 1.5 (3fc00000), {blamed}; computed again it is {here}"
    )


def test_the_process_of_a_team_is_blamed_if_it_is_known(honest: RecordedRun) -> None:
    losses, _ = losses_with_a_lie(honest, 2)
    team: list[Line] = [WorkerIn(rank=0, host="h", pid=10, processes=2)]
    run = blaming(honest, [LedgerShare(0, 2, 0), LedgerShare(2, 4, 0)], losses, team)
    lines = [msgspec.structs.replace(it, processes=[0, 1]) if isinstance(it, StepDone) else it for it in run.lines]
    found = found_by(replace(run, lines=lines), 7)
    assert found is not None
    assert "by team 0 (host h, pid 10, 2 workers), process 1; computed again" in found.text


def test_the_first_of_several_losses_that_differ_is_named(honest: RecordedRun) -> None:
    found = found_by(blaming(honest, SHARES, bytes(16), WORKERS), 7)
    assert found is not None
    assert (found.step, found.micro_batch) == (1, 0)


def test_a_loss_that_differs_in_its_last_bit_is_named(honest: RecordedRun) -> None:
    losses = honest.steps()[1].loss_sums().copy()
    losses[3] = np.nextafter(losses[3], np.float32(np.inf))
    found = found_by(blaming(honest, SHARES, losses.tobytes(), WORKERS), 7)
    assert found is not None
    assert (found.step, found.micro_batch) == (1, 3)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_losses_is_named(honest: RecordedRun, count: int) -> None:
    assert found_by(blaming(honest, SHARES, bytes(4 * count), WORKERS), 7) == Difference(
        step=1, micro_batch=None, text=f"step 1 has {count} losses in the ledger: expected 4"
    )


def test_all_workers_of_a_step_are_named_if_its_weights_differ(honest: RecordedRun) -> None:
    run = blaming(honest, SHARES, None, WORKERS)
    found = found_by(replace(run, lines=[*run.lines, WeightsAt(step=2, weights_sha256="f" * 64)]), 7)
    assert found is not None
    assert found.step == 1
    assert found.text.endswith(
        "; computed 0-0 by worker 5 (host h5, pid 15); 1-2 by worker 0 (host h0, pid 10); "
        "3-3 by worker 2 (host h2, pid 12)"
    )


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    return code, *capsys.readouterr()


def test_the_command_says_what_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(record_alone(tmp_path, job_in(tmp_path)))
    code, out, _ = said(capsys, "verify", folder)
    assert code == 0
    assert "epoch 1: 4 steps, 16 micro-batches: each of 160 samples was used once\n" in out
    assert "epoch 2: 3 steps, 12 micro-batches: 144 of 160 samples were used, none twice\n" in out
    assert "the same bits: steps 0 to 6, the losses of 28 micro-batches and the weights after each step\n" in out
    code, out, _ = said(capsys, "verify", folder, "--steps", "4..5", "--json")
    assert (code, json.loads(out)) == (
        0,
        {"run": "run", "steps": [4, 6], "micro_batches": 8, "is_same": True, "difference": None},
    )


def test_the_command_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(record_alone(tmp_path, job_in(tmp_path), lying(3)))
    code, _, error = said(capsys, "verify", folder)
    assert code == 1
    assert error.startswith("error: step 4: the losses of all its micro-batches are the same")
    code, out, _ = said(capsys, "verify", folder, "--json")
    assert (code, json.loads(out)["difference"]["step"]) == (1, 4)


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_files_that_were_changed_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    original = (folder / LEDGER).read_text()
    changed(folder / LEDGER, '"shares":[[0,4,0,', '"shares":[[0,3,0,')
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, "step 0: micro-batch 3 was added 0 times: expected once" in error) == (1, True)
    (folder / LEDGER).write_text(
        original.replace('"epoch":1,"step":4,"weights_sha256":"', '"epoch":1,"step":4,"weights_sha256":"0', 1)
    )
    assert said(capsys, "verify", str(folder))[0] == 2
    (folder / LEDGER).write_text(original)
    receipt = json.loads((folder / RECEIPT).read_text())
    receipt["predicate"]["chain"][1]["link"] = "0" * 64
    (folder / RECEIPT).write_text(json.dumps(receipt))
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, "the receipt and the ledger disagree on epoch 1" in error) == (1, True)


def test_final_weights_that_were_exchanged_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    code, _, error = said(capsys, "verify", str(folder))
    assert code == 1
    assert f"{folder / WEIGHTS} holds weights" in error


@pytest.mark.parametrize("change", ["other", "gone", "link"])
def test_a_file_that_only_the_receipt_covers_is_found(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    assert said(capsys, "verify", str(folder))[0] == 0
    path = folder / "metrics.jsonl"
    if change == "other":
        changed(path, '"lr":0.05', '"lr":0.06')
    else:
        path.unlink()
    if change == "link":
        path.symlink_to(tmp_path)
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, error) == (
        1,
        f"error: {path} has another SHA-256 than in receipt.json: it was changed or removed\n",
    )


def test_a_checkpoint_of_other_weights_is_found(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, seed in ((one, 3), (two, 4)):
        folder.mkdir()
        record_alone(folder, job_in(tmp_path, seed=seed))
    name = "step-00000006.safetensors"
    (one / "run" / CHECKPOINTS / name).write_bytes((two / "run" / CHECKPOINTS / name).read_bytes())
    found = found_in(one / "run", 6)
    assert found is not None
    assert "from which this starts, are not those of the run: the checkpoint has" in found.text


def test_another_machine_or_job_is_refused_with_both_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    receipt = json.loads((folder / RECEIPT).read_text())
    receipt["predicate"]["numerics"]["kernels"] = "Z80"
    (folder / RECEIPT).write_text(json.dumps(receipt))
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, "kernels 'Z80' in the run, " in error) == (2, True)
    assert said(capsys, "verify", str(folder), "--allow-mixed-numerics")[0] == 0
    changed(folder / "job.toml", "lr = 0.05", "lr = 0.06")
    code, _, error = said(capsys, "verify", str(folder), "--allow-mixed-numerics")
    assert (code, "the job is not the run's" in error) == (2, True)


@pytest.mark.parametrize("text", ["5..2", "3:3", "0:8", "0..7", "-1..3", "7", "x", "1..2..3"])
def test_what_is_no_range_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    code, _, error = said(capsys, "verify", str(folder), f"--steps={text}")
    assert (code, error) == (2, f"error: --steps {text!r}: expected A..B with 0 <= A <= B <= 6, the run's steps\n")


def test_a_folder_of_no_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "verify", str(tmp_path))
    assert (code, f"{str(tmp_path)!r} holds no run" in error) == (2, True)


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


def test_epochs_alike_have_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = record_with_workers(tmp_path, job_in(tmp_path, steps=19), 2)
    assert run(["ledger", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "epochs 1 to 4, each: 4 steps, 16 micro-batches: each of 160 samples was used once",
        "epoch 5: 3 steps, 12 micro-batches: 144 of 160 samples were used, none twice",
    ]
    with (folder / "ledger.jsonl").open("ab") as file:
        again = UnusedWork(work="train", step=9, lo=0, hi=2, rank=1, why="it left: killed")
        file.write(msgspec.json.encode(again) + b"\n")
    assert run(["ledger", str(folder)]) == 0
    beginnings = [line.partition(",")[0].partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert beginnings[:5] == ["epochs 1 to 2", "epoch 3", "  step 9", "epoch 4", "epoch 5"]


def test_no_number_of_lost_steps_is_said_where_the_ledger_cannot_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record_with_workers(tmp_path, job_in(tmp_path), 2)
    with (folder / "ledger.jsonl").open("ab") as file:
        for begun in (RunBegun(step=7, weights_sha256="07"), RunBegun(step=7, lost_steps=3, weights_sha256="07")):
            file.write(msgspec.json.encode(begun) + b"\n")
    assert run(["ledger", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["resumed after step 7", "resumed after step 7: 3 steps were recomputed"]


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

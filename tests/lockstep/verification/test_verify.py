"""A recorded run is computed again: what is honest is found the same, and a planted lie is named with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UsageError
from common.runtime.clock import ManualClock
from lockstep.cli.main import run
from lockstep.runs.recorded_run import load_checkpoint_before, open_again, read_run
from lockstep.verification.verify import Difference, Verifier, steps_between
from ps.records.run_folder import CHECKPOINTS, LEDGER, RECEIPT, WEIGHTS
from tests.lockstep.recorded import job_in, lying, record_alone, record_with_workers
from tests.simulation.small import noisy_net


def found_in(folder: Path, first: int = 0) -> Difference | None:
    """Return what a recomputation from the last checkpoint up to `first` finds."""
    past = read_run(folder)
    opening = open_again(past, allows_mixed_numerics=False)
    if first:
        load_checkpoint_before(opening, folder, first, lambda text: None)
    return Verifier(past, opening, ManualClock()).verify(7, lambda step: None)


#: Sums and weights that are rounded.
ROUNDED = {"wire": "int8", "wire_weights": "bfloat16"}


@pytest.mark.parametrize(
    "values", [{}, ROUNDED, {"model": noisy_net(), "micro_batches": 3, "optimizer": "adam", "max_shift": 1}]
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
    code, out, _ = said(capsys, "verify", folder, "--steps", "4:6", "--json")
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
    changed(folder / LEDGER, '"shares":[[0,4,0]]', '"shares":[[0,3,0]]')
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, "step 0: micro-batch 3 was added 0 times: expected once" in error) == (1, True)
    (folder / LEDGER).write_text(
        original.replace('"epoch":1,"step":4,"weights_sha256":"', '"epoch":1,"step":4,"weights_sha256":"0', 1)
    )
    assert said(capsys, "verify", str(folder))[0] == 2
    (folder / LEDGER).write_text(original)
    receipt = json.loads((folder / RECEIPT).read_text())
    receipt["chain"][1]["link"] = "0" * 64
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
    receipt["numerics"]["kernel"] = "Z80"
    (folder / RECEIPT).write_text(json.dumps(receipt))
    code, _, error = said(capsys, "verify", str(folder))
    assert (code, "kernel 'Z80' in the run, " in error) == (2, True)
    assert said(capsys, "verify", str(folder), "--allow-mixed-numerics")[0] == 0
    changed(folder / "job.toml", "lr = 0.05", "lr = 0.06")
    code, _, error = said(capsys, "verify", str(folder), "--allow-mixed-numerics")
    assert (code, "the job is not the run's" in error) == (2, True)


@pytest.mark.parametrize(
    ("text", "bounds"), [("2:5", (2, 5)), (":5", (0, 5)), ("2:", (2, 7)), (":", (0, 7)), ("3", (3, 4))]
)
def test_steps_are_reported_as_a_range(text: str, bounds: tuple[int, int]) -> None:
    assert steps_between(text, 7) == bounds


@pytest.mark.parametrize("text", ["5:2", "3:3", "0:8", "-1:3", "7", "x", "1:2:3"])
def test_what_is_no_range_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    code, _, error = said(capsys, "verify", str(folder), f"--steps={text}")
    assert (code, error) == (2, f"error: --steps {text!r}: expected A:B with 0 <= A < B <= 7, the run's steps\n")


def test_a_folder_of_no_run_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = said(capsys, "verify", str(tmp_path))
    assert (code, f"{str(tmp_path)!r} holds no run" in error) == (2, True)

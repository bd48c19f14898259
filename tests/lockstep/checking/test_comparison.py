"""Two runs are compared by their records: each value that differs is named, and results are next to one another."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lockstep.checking.comparison import ComparedRun, comparison, differences, figures, read_compared
from lockstep.cli.main import run
from lockstep.common import nn
from lockstep.common.errors import FileFormatError
from lockstep.common.nn.description import describe
from lockstep.common.protocol.fingerprint import fingerprint
from lockstep.ps.records.receipt import Receipt, ReceiptLink
from lockstep.ps.records.run_folder import LEDGER, RECEIPT, RESULT
from tests.lockstep.recorded import job_in, record_alone

HERE = fingerprint()


def link(epoch: int, weights: str) -> ReceiptLink:
    return ReceiptLink(epoch=epoch, step=4 * epoch, weights_sha256=weights * 32, link="ab" * 32)


def receipt(weights: str = "abc", **numerics: str) -> Receipt:
    """Return a receipt of a run whose weights after each epoch have these digests."""
    return Receipt(
        run="mine",
        job_sha256="1" * 64,
        dataset_sha256="2" * 64,
        layout_sha256="3" * 64,
        model_source_sha256="",
        code=HERE.code,
        numerics=msgspec.to_builtins(msgspec.structs.replace(HERE, **numerics)),
        total_steps=8,
        chain=[link(epoch, digit) for epoch, digit in enumerate(weights)],
    )


def compared(ours: Receipt, theirs: Receipt) -> str:
    here, there = (ComparedRun(path=Path(each.run), receipt=each) for each in (ours, theirs))
    return comparison(here, there)


def test_equal_weights_are_equal_whatever_computed_them() -> None:
    assert compared(receipt(), receipt(kernel="Other", canary="other")) == ""


@pytest.mark.parametrize(
    ("weights", "when"), [("xyz", "before the first step"), ("ayz", "epoch 1"), ("abz", "epoch 2")]
)
def test_the_first_epoch_that_differs_is_named(weights: str, when: str) -> None:
    assert when in compared(receipt(), receipt(weights))


def test_the_mode_comes_first_then_the_versions() -> None:
    text = compared(receipt(), receipt("axy", mode="portable", kernel="Other", numpy="9.9"))
    causes = text.partition("what differs: ")[2].split("; ")
    assert [cause.split()[0] for cause in causes] == ["mode:", "numpy:", "kernel:"]
    assert causes[0] == "mode: native here, portable there"


@pytest.mark.parametrize(
    ("field", "what"),
    [("job_sha256", "job"), ("dataset_sha256", "dataset"), ("layout_sha256", "model"), ("code", "code:")],
)
def test_what_else_differs_is_named(field: str, what: str) -> None:
    numerics = {"code": "other"} if field == "code" else {}
    theirs = receipt("axy", **numerics)
    if not numerics:
        theirs = msgspec.structs.replace(theirs, **{field: "9" * 64})
    assert f"{what}" in compared(receipt(), theirs)


def test_where_all_else_is_equal_the_c_library_is_named() -> None:
    assert compared(receipt(), receipt("axy", libc="musl 1")).endswith(f"libc: {HERE.libc} here, musl 1 there")
    assert "nothing that a receipt records" in compared(receipt(), receipt("axy"))


def test_a_shorter_run_is_the_same_as_far_as_it_goes() -> None:
    assert compared(receipt(), receipt("ab")) == (
        "2 epochs here and 1 there, the same as far as both go: the shorter run ended before its last epoch, and "
        "`lockstep train --resume` continues it"
    )


def test_a_killed_run_has_the_epochs_of_its_ledger_and_of_no_other_one(tmp_path: Path) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    whole = read_compared(folder)
    (folder / RESULT).unlink()
    early = msgspec.structs.replace(whole.receipt, chain=whole.receipt.chain[:1])
    (folder / RECEIPT).write_bytes(msgspec.json.encode(early))
    killed = read_compared(folder)
    assert killed.receipt == whole.receipt
    assert figures(killed) == {"epochs": 2, "steps": 7, "weights sha256": whole.receipt.chain[-1].weights_sha256}
    (tmp_path / "other").mkdir()
    other = record_alone(tmp_path / "other", job_in(tmp_path / "other", seed=4))
    (other / LEDGER).replace(folder / LEDGER)
    assert read_compared(folder).receipt == early


def test_the_ledger_of_a_finished_run_is_not_needed(tmp_path: Path) -> None:
    folder = record_alone(tmp_path, job_in(tmp_path))
    whole = read_compared(folder)
    (folder / LEDGER).write_bytes(b'{"kind":"of another version"}\n')
    assert read_compared(folder) == whole


def test_the_command_compares_and_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "receipt.json").write_bytes(msgspec.json.encode(receipt()))
    other = tmp_path / "hers.json"
    other.write_bytes(msgspec.json.encode(receipt()))
    assert run(["verify", str(tmp_path / "mine"), "--against", str(other)]) == 0
    assert capsys.readouterr().out == f"the same weights after each of 2 epochs: {'c' * 32}\n"
    other.write_bytes(msgspec.json.encode(receipt("abd", kernel="Other")))
    assert run(["verify", str(tmp_path / "mine"), "--against", str(other)]) == 1
    assert "kernel" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "{}", "[1]"])
def test_a_file_that_is_no_receipt_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = tmp_path / "receipt.json"
    if text is not None:
        path.write_text(text)
    assert run(["verify", str(path), "--against", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "receipt" in line


def test_numerics_of_another_version_are_one_line() -> None:
    old = msgspec.structs.replace(receipt("axy"), numerics={"numpy": 2})
    with pytest.raises(FileFormatError, match="mine: has no numerics of this version"):
        compared(receipt(), old)


def record(folder: Path, **values: Any) -> Path:
    folder.mkdir()
    return record_alone(folder, job_in(folder.parent, **{"lr": 0.1, **values}))


def test_the_values_of_the_job_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = record(tmp_path / "a"), record(tmp_path / "b", lr=0.02, clip_norm=1.0)
    assert run(["verify", str(first), "--against", str(second)]) == 1
    told = capsys.readouterr().err.partition("what differs: ")[2]
    assert told == "lr: 0.1 here, 0.02 there; clip_norm: none here, 1.0 there\n"
    # A receipt that was sent alone has only the digest.
    alone = tmp_path / "hers.json"
    alone.write_bytes((second / "receipt.json").read_bytes())
    assert run(["verify", str(first), "--against", str(alone)]) == 1
    assert "what differs: job SHA-256: " in capsys.readouterr().err


def test_a_value_within_a_model_is_named_by_its_place(tmp_path: Path) -> None:
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(784, size), nn.ReLU(), nn.Linear(size, 10)) for size in (8, 16)]
    runs = [record(tmp_path / str(place), model=describe(net)) for place, net in enumerate(nets)]
    found = {value.name: value.values for value in differences([read_compared(path) for path in runs])}
    places = [name for name in found if name.startswith("model.")]
    assert places
    assert all(found[name] == ["8", "16"] for name in places)
    assert "model" not in found


def test_a_model_by_name_and_one_of_layers_differ_in_one_line(tmp_path: Path) -> None:
    net = describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    runs = [record(tmp_path / "a"), record(tmp_path / "b", model=net)]
    found = {value.name: value.values for value in differences([read_compared(path) for path in runs])}
    assert {name: values for name, values in found.items() if name.startswith("model") and "SHA" not in name} == {
        "model": ["linear", "Sequential"]
    }


def test_the_options_of_packing_that_differ_are_named_as_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "homes.csv"
    rows = [f"{row % 7},{('oslo', 'rome', 'bonn')[row % 3]},{row % 5 / 4}" for row in range(300)]
    table.write_text("\n".join(['"size, m2",city,price', *rows, ""]))
    runs = []
    flags_each = {"a": ["--missing", "mean"], "b": ["--drop", '"size, m2"', "--one-hot", "city", "--no-standardize"]}
    for name, options in flags_each.items():
        folder, inputs = tmp_path / f"data-{name}", 3 + (name == "a")
        assert run(["pack", str(table), str(folder), "--target", "price", *options]) == 0
        net = describe(nn.Sequential(nn.Linear(inputs, 1)))
        runs.append(record(tmp_path / name, data=str(folder), model=net, loss="mse"))
    found = {value.name: value.values for value in differences([read_compared(path) for path in runs])}
    flags = {name: values for name, values in found.items() if name.startswith("--")}
    assert flags == {"--missing": ["mean", "none"], "--drop": ["none", '"size, m2"'], "--standardize": ["yes", "no"]}
    # Both are of one table, whatever folders it was packed into.
    assert "data" not in found
    capsys.readouterr()
    assert run(["verify", str(runs[0]), "--against", str(runs[1])]) == 1
    assert '; --drop: none here, "size, m2" there; ' in capsys.readouterr().err


def test_runs_are_next_to_one_another_in_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [record(tmp_path / str(place), lr=0.1 / (place + 1), seed=place % 2) for place in range(5)]
    (runs[4] / "result.json").unlink()
    assert run(["compare", *map(str, runs)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("5 ")]
    assert next(line for line in lines if line[:1] == ["1"] and "and" in line)[:4] == ["1", "and", "2:", "weights"]
    assert [line[1:] for line in lines if line[:1] == ["seed"]] == [["0", "1", "0", "1"], ["0"]]
    (scores, last) = [line[2:] for line in lines if line[:2] == ["test", "accuracy"]]
    assert [score[-1] for score in scores] == 4 * ["%"]
    # That one has not finished.
    assert last == ["none"]
    table = [line for line in lines if line[:2] == ["weights", "sha256"]]
    assert [len(line) for line in table] == [6, 3]


def test_options_that_cannot_change_results_are_left_out(tmp_path: Path) -> None:
    first, second = record(tmp_path / "a"), record(tmp_path / "b")
    text = (second / "job.toml").read_text()
    changed = re.sub(r"(?m)^max_restarts = \d+$", "max_restarts = 77\nmin_workers = 2", text)
    assert "77" in changed
    (second / "job.toml").write_text(changed)
    runs = [read_compared(first), read_compared(second)]
    assert differences(runs) == []
    assert [figures(run)["workers"] for run in runs] == [0, 0]


def test_the_same_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = record(tmp_path / "a"), record(tmp_path / "b", clip_norm=1.5)
    assert run(["compare", str(first), str(second), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == [{"name": "clip_norm", "values": ["none", "1.5"], "decides_bits": True}]
    assert [each["run"] for each in found["results"]] == [str(first), str(second)]
    assert found["results"][0]["weights sha256"] == json.loads((first / "result.json").read_text())["weights_sha256"]


def test_one_run_alone_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", str(tmp_path)]) == 2
    assert "expected at least two" in capsys.readouterr().err

"""Runs with rounded sums and weights are verified, replayed and evaluated as others are: rounding is done again too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.cli.main import run
from tests.lockstep.tiny_data import write_tiny
from tests.system.jobs import BRIEF

#: The types of sums and of weights.
WIRES = [
    ("float16", "float32"),
    ("bfloat16", "float32"),
    ("int8", "float32"),
    ("float32", "bfloat16"),
    ("int8", "bfloat16"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path)
    monkeypatch.chdir(tmp_path)


def trained(name: str, wire: str, wire_weights: str) -> dict[str, Any]:
    """Train into the folder of that name; return the result."""
    flags = ["--set", f"wire={wire}", "--set", f"wire_weights={wire_weights}", "--set", "checkpoint_every_steps=3"]
    assert run(["train", *BRIEF, "--lr", "0.01", "--workers", "0", "--run-dir", name, *flags]) == 0
    return _json_of((Path(name) / "result.json").read_text())


def _json_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize(("wire", "wire_weights"), WIRES)
def test_a_rounded_run_is_another_one_and_is_verified_replayed_and_evaluated(
    capsys: pytest.CaptureFixture[str], wire: str, wire_weights: str
) -> None:
    result = trained("rounded", wire, wire_weights)
    assert result["weights_sha256"] != trained("exact", "float32", "float32")["weights_sha256"]
    for steps in ("0..7", "5..7"):
        assert run(["verify", "rounded", "--steps", steps]) == 0
    capsys.readouterr()
    for step, piece in ((0, 1), (5, 2)):
        assert run(["replay", "rounded", "--step", str(step), "--micro-batch", str(piece), "--json"]) == 0
        found = _json_of(capsys.readouterr().out)
        assert np.float32(found["loss_sum"]) == np.float32(found["recorded_loss_sum"])
    assert run(["evaluate", "rounded", "--json"]) == 0
    found = _json_of(capsys.readouterr().out)
    # Rounded weights are those of the workers; what is written at the end, and evaluated here, is not rounded.
    assert (found["test_loss"] == result["test_loss"]) == (wire_weights == "float32")

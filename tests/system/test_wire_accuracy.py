"""What rounding costs in accuracy: LeNet, eight epochs and ten seeds, against the same in float32. Takes minutes.

A single run says nothing: seeds alone differ by a tenth of a point and more.
"""

import json
from pathlib import Path

import pytest

from lockstep.cli.main import run
from lockstep.common.runtime.environment import cores

SEEDS = range(10)

#: Points of a hundred by which the means may differ.
POINTS = 0.1


def accuracy_of(folder: Path, seed: int, wire: str, wire_weights: str) -> float:
    """Return the test accuracy of a run, in per cent."""
    run_dir = folder / f"{wire}-{wire_weights}-{seed}"
    flags = [
        "--epochs",
        "8",
        "--seed",
        str(seed),
        "--set",
        f"wire={wire}",
        "--set",
        f"wire_weights={wire_weights}",
        "--workers",
        str(cores()),
    ]
    assert run(["train", "--model", "lenet", "--set", "checkpoint_keep=0", "--run-dir", str(run_dir), *flags]) == 0
    return 100 * float(json.loads((run_dir / "result.json").read_text())["test_accuracy"])


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return the mean in float32."""
    folder = tmp_path_factory.mktemp("exact")
    return sum(accuracy_of(folder, seed, "float32", "float32") for seed in SEEDS) / len(SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wire", "wire_weights"),
    [("int8", "float32"), ("bfloat16", "float32"), ("float16", "float32"), ("int8", "bfloat16")],
)
def test_lenet_is_as_accurate_in_the_mean(exact: float, tmp_path: Path, wire: str, wire_weights: str) -> None:
    mean = sum(accuracy_of(tmp_path, seed, wire, wire_weights) for seed in SEEDS) / len(SEEDS)
    print(f"{wire}, weights in {wire_weights}: {mean:.3f} % in the mean, {exact:.3f} % in float32")
    assert abs(mean - exact) <= POINTS, f"{mean:.3f} % in the mean, {exact:.3f} % in float32"

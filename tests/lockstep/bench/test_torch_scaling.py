"""A module of PyTorch is measured beside DistributedDataParallel over the very same module and data."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from lockstep.bench.scaling import ScalingRow
from lockstep.bench.step import StepFigures
from lockstep.cli.main import run
from lockstep.common.runtime.environment import cores
from tests.lockstep.common.model.pytorch.jobs import NETS

pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")


@pytest.mark.slow
def test_the_baseline_of_a_module_is_that_module_over_gloo(tmp_path: Path) -> None:
    rows = np.random.default_rng(1)
    x, y = rows.random((600, 1, 28, 28), dtype=np.float32), rows.integers(0, 10, 600)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:32], y_test=y[:32])
    flags = ["--model", f"{NETS}:mlp", "--data", str(tmp_path / "own.npz"), "--batches", "16", "--workers", "2"]
    json_file = tmp_path / "rows.json"
    assert (
        run(["bench", "scaling", *flags, "--steps", "8", "--rounds", "1", "--no-compile", "--to", f"{json_file}"]) == 0
    )
    (row,) = msgspec.json.decode(json_file.read_bytes(), type=list[ScalingRow])
    assert (row.workers, row.global_batch, row.micro_batches) == (2, 32, 2)
    assert row.peer is not None
    assert row.peer.ratio == pytest.approx(row.images_per_s / row.peer.images_per_s)
    assert row.all_threads is not None
    assert (row.all_threads.threads, row.compiled) == (cores(), None)


@pytest.mark.slow
def test_a_step_of_a_module_is_timed_next_to_the_same_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = tmp_path / "rows.json"
    flags = ["--model", f"{NETS}:mlp", "--batch", "16", "--steps", "30", "--rounds", "1", "--no-compile"]
    assert run(["bench", "step", *flags, "--to", str(json_file)]) == 0
    (row,) = msgspec.json.decode(json_file.read_bytes(), type=list[StepFigures])
    assert row.peer is not None
    assert row.all_threads is not None
    # We do not know its products.
    assert row.gemm_gflops_share is None
    assert "products      - of it" in capsys.readouterr().out

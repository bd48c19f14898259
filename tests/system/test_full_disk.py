"""A full disk: the run waits with nothing torn, says where and what for, and goes on when there is room."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.ps.records.metrics import METRICS
from lockstep.ps.records.run_folder import CHECKPOINTS, LEDGER, read_ledger, read_result
from tests.system.processes import Place

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root of Linux can make a small disk"
)

#: KiB of the disk, and of what fills all but a few of them.
SIZE, FILLED = 512, 448


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, nearly full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        (folder / "other").write_bytes(b"\0" * (FILLED << 10))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_waits_for_room_on_a_full_disk(place: Place, disk: Path, workers: int) -> None:
    job = ("--model", "linear", "--data", "tiny.npz", "--epochs", "20", "--global-batch", "8", "--lr", "0.001")
    run = place.start("train", *job, "--workers", str(workers), "--run-dir", str(disk / "run"))
    text = run.line_with("is full")
    assert f"warning: the run pauses: the disk of '{disk}/run' is full: it needs " in text
    assert not (disk / "run" / "result.json").exists()
    # Whole files, and whole lines but for the last one.
    assert not list((disk / "run" / CHECKPOINTS).glob(".*"))
    read_ledger(disk / "run")
    (disk / "other").unlink()
    run.line_with("notice: there is room again: the run continues")
    assert run.popen.wait(60) == 0
    calm = place.start("train", *job, "--workers", "0", "--run-dir", str(place.folder / "calm"))
    assert calm.popen.wait(60) == 0
    assert read_result(disk / "run").weights_sha256 == read_result(place.folder / "calm").weights_sha256
    for name in (METRICS, LEDGER):
        assert (disk / "run" / name).read_bytes().endswith(b"\n")

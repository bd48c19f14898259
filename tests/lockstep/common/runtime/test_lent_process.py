"""A program that imports Lockstep keeps its threads and its environment: what computing needs is given back."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lockstep.common.runtime.blas import blas_name, blas_threads, can_limit_blas_threads, set_blas_threads
from lockstep.common.runtime.environment import ONE_BLAS_THREAD, child_environment, has_one_blas_thread
from lockstep.common.runtime.lent_process import _limit, computing, lend

needs_switch = pytest.mark.skipif(not can_limit_blas_threads(), reason="this BLAS has no switch for its threads")

#: A program of a user's, which shows its settings before, within and after each call.
PROGRAM = """
import os, sys
environment = dict(os.environ)
import lockstep
assert "numpy" not in sys.modules
import numpy as np
from lockstep import nn
from lockstep.common.runtime.blas import blas_threads, set_blas_threads
set_blas_threads(3)

def settings():
    assert dict(os.environ) == environment
    if "torch" not in sys.modules:
        return blas_threads(),
    import torch
    return blas_threads(), torch.get_num_threads(), torch.get_deterministic_debug_mode(), \\
        torch.utils.deterministic.fill_uninitialized_memory

class Look(lockstep.Callback):
    def on_epoch_end(self, training, epoch):
        print(epoch.epoch, *settings())

x = np.random.default_rng(0).normal(size=(32, 3)).astype("f4")
data = (x, (x[:, 0] > 0).astype(int)), (x, (x[:, 0] > 0).astype(int))
"""

NUMPY = """
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
"""

TORCH = """
import torch
torch.set_num_threads(2)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x)
model = Net
"""

CALLS = """
values = dict(epochs=2, global_batch=16, micro_batches=2, lr=0.1)
run = lockstep.fit(model, data, workers=0, verbose=False, run_dir="run", callbacks=[Look()], **values)
print("fit", *settings())
run.predict(x)
print("predict", *settings())
lockstep.find_lr(model, data, steps=30, **{name: values[name] for name in ("global_batch", "micro_batches")})
print("find_lr", *settings())
"""


def printed_by(program: str, folder: Path) -> list[str]:
    ours = {name: value for name, value in child_environment().items() if name not in ONE_BLAS_THREAD}
    path = folder / "program.py"
    path.write_text(program)
    done = subprocess.run(
        [sys.executable, str(path)], env=ours, cwd=folder, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


@needs_switch
def test_a_program_gets_its_blas_threads_back(tmp_path: Path) -> None:
    lines = printed_by(PROGRAM + NUMPY + CALLS, tmp_path)
    assert lines == ["1 1", "2 3", "fit 3", "predict 3", "find_lr 3"]


@needs_switch
def test_a_program_gets_its_settings_of_pytorch_back(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    lines = printed_by(PROGRAM + TORCH + CALLS, tmp_path)
    assert lines == ["1 1 1 2 False", *(f"{call} 3 2 0 True" for call in ("2", "fit", "predict", "find_lr"))]


@needs_switch
def test_the_last_of_several_calls_gives_back() -> None:
    inner, undone = threading.Event(), list[str]()
    outer = threading.Event()

    def second() -> None:
        with computing():
            inner.set()
            outer.wait()
            assert blas_threads() == 1
            lend("second", lambda: lambda: undone.append("second"))

    # More than most machines of tests have cores, so that it is no default.
    set_blas_threads(3)
    try:
        thread = threading.Thread(target=second)
        with computing():
            lend("first", lambda: lambda: undone.append("first"))
            lend("first", lambda: lambda: undone.append("again"))
            thread.start()
            inner.wait()
        assert blas_threads() == 1
        assert undone == []
        outer.set()
        thread.join()
        assert blas_threads() == 3
        assert undone == ["second", "first"]
    finally:
        set_blas_threads(1)


def test_nothing_is_kept_for_later_in_a_process_of_ours() -> None:
    undone = list[str]()
    lend("never", lambda: lambda: undone.append("never"))
    with computing():
        pass
    assert undone == []


def test_a_failure_gives_back_too() -> None:
    undone = list[str]()

    @computing()
    def fail() -> None:
        lend("back", lambda: lambda: undone.append("given back"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert undone == ["given back"]


def test_a_blas_that_cannot_be_limited_is_a_warning_unless_it_is_limited_from_outside() -> None:
    with pytest.warns(RuntimeWarning) as caught:
        _limit(has_switch=False, is_limited=False)
    (warning,) = caught
    assert str(warning.message) == (
        f"the BLAS of this NumPy, {blas_name()!r}, may compute with several threads here, and so to other bits than a "
        "worker: set OMP_NUM_THREADS=1 before Python starts, or train with workers=1"
    )
    _limit(has_switch=False, is_limited=True)


def test_the_tests_have_one_blas_thread() -> None:
    assert has_one_blas_thread()


def test_a_command_has_one_blas_thread_before_numpy_is_loaded() -> None:
    program = "import sys, lockstep.cli, os; print('numpy' in sys.modules, os.environ['OPENBLAS_NUM_THREADS'])"
    ours = {name: value for name, value in child_environment().items() if name not in ONE_BLAS_THREAD}
    done = subprocess.run([sys.executable, "-c", program], env=ours, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "1"]

"""The step bench makes real steps, takes the baseline in its faster layout, and shows where the time goes."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np
import pytest

from lockstep.bench.peers import ADVICE, FIRST, BaselineRow, BaselineSubject, in_turns, start_baselines
from lockstep.bench.step import LocalSteps, Profile, StepBench, StepFigures, peak_rss_bytes, step_flops
from lockstep.cli.main import run
from lockstep.common.autograd.graph import observe
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.data.source import load
from lockstep.common.errors import UsageError
from lockstep.common.job.job import Job
from lockstep.common.nn.models import MODELS
from lockstep.common.runtime.clock import ManualClock, SystemClock
from lockstep.common.runtime.numerics import kept_numerics
from tests.lockstep.bench.baselines import write_peer
from tests.lockstep.common.model.pytorch.jobs import NETS, model_file
from tests.lockstep.tiny_data import write_tiny


def test_the_bench_trains(tmp_path: Path) -> None:
    data = str(write_tiny(tmp_path))
    bench = LocalSteps(Job(model="linear", data=data, global_batch=32, micro_batches=2), load(data), SystemClock())
    before = bench.trainer.setup.shard.digest()
    assert len(bench.times(3)) == 3
    assert bench.trainer.setup.shard.updates == 3
    assert bench.trainer.setup.shard.digest() != before


def test_a_step_of_a_module_makes_few_calls(tmp_path: Path) -> None:
    # Each costs about a microsecond, since the products of a step leave nothing else in the caches.
    pytest.importorskip("torch", reason="needs PyTorch")
    data = str(write_tiny(tmp_path))
    text = "def build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.ReLU(), nn.Linear(4, 10))\n"
    model = model_file(tmp_path, text)
    job = Job(model=model, data=data, global_batch=8, micro_batches=1, momentum=0.9, numerics="native")
    ours = list[str]()

    def record(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("lockstep."):
            ours.append(frame.f_code.co_name)

    with kept_numerics():
        bench = LocalSteps(job, load(data), SystemClock())
        bench.times(2)
        sys.setprofile(record)
        try:
            bench.trainer.step(2)
        finally:
            sys.setprofile(None)
    assert 30 < len(ours) <= 121, ours


def test_figures_are_written_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    flags = ["--model", "linear", "--batch", "32", "--steps", "30", "--to", str(path), "--json"]
    assert run(["bench", "step", *flags]) == 0
    (figures,) = json.loads(path.read_text())
    assert (figures["model"], figures["batch"], figures["steps"]) == ("linear", 32, 30)
    assert figures["images_per_s"] == pytest.approx(32 / figures["ms_per_step"] * 1e3)
    assert figures["peak_rss_mb"] > 10
    assert 0 < figures["gemm_gflops_share"] < 1
    # That is all that is printed, but for what a person reads.
    out, error = capsys.readouterr()
    assert json.loads(out) == [figures]
    assert "images/s" in error


def test_several_are_measured_each_in_its_own_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "steps.json", tmp_path / "steps.png"
    flags = ["--batch", "8,16", "--steps", "30", "--to", str(path), "--plot", str(picture)]
    assert run(["bench", "step", "--model", "linear", *flags]) == 0
    rows = json.loads(path.read_text())
    assert [(row["model"], row["batch"]) for row in rows] == [("linear", 8), ("linear", 16)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert shown.count("peak memory") == 2
    assert ADVICE in shown.splitlines()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "linear,mlp", "--profile"], "--profile: expected one model"),
        (["--micro-batches", "1,2", "--profile"], "--profile: expected one model"),
        (["--model", "linear,nosuch", "--steps", "30"], "model = 'nosuch' is not known"),
        (["--profile", "--plot", "figures.png"], "--plot with --profile, which has no plot"),
        (["--plot", "figures.pdf"], "expected a name that ends in .png"),
    ],
)
def test_what_cannot_be_measured_is_reported(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "step", "--batch", "8", *flags]) != 0
    assert message in capsys.readouterr().err


def test_a_profile_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "step", "--model", "linear", "--batch", "32", "--steps", "30", "--profile"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("cross_entropy", "linear", "backward", "everything else"))
    assert "as many in one pass as stay in cache" in " ".join(shown.split())


def test_a_profile_tells_what_keeps_micro_batches_from_being_computed_in_one_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", "examples/my_model.py:build", "--batch", "2", "--steps", "30", "--profile"]
    assert run(["bench", "step", *flags]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "always one micro-batch at a time: the model (ConvNet) may compute something else with each batch" in shown


def test_the_profile_books_calls_and_bytes_and_changes_nothing() -> None:
    clock = ManualClock()
    profile = Profile(clock)
    x = Tensor(np.ones(4, dtype=np.float32), requires_grad=True)
    with observe(profile):
        (x * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0] * 4
    assert profile.calls == {
        ("multiply", "forward"): 1,
        ("multiply", "backward"): 2,
        ("sum", "forward"): 1,
        ("sum", "backward"): 1,
    }
    assert profile.bytes["multiply", "forward"] == 3 * 16
    (x * x).sum()
    assert profile.calls["multiply", "forward"] == 1


def test_the_first_steps_of_a_turn_do_not_count(tmp_path: Path) -> None:
    python, _ = write_peer(tmp_path)
    with ExitStack() as stack:
        (peer,) = start_baselines(python, [], stack)
        in_turns(2, 4, [[peer]])
        assert (FIRST, peer.seconds()) == (3, [[0.005] * 4] * 2)


def test_layouts() -> None:
    assert BaselineSubject(model="mlp").layouts() == ("contiguous",)
    assert BaselineSubject(model="cnn").layouts() == ("contiguous", "channels-last")


def test_a_baseline_that_is_not_there_is_reported() -> None:
    with pytest.raises(UsageError, match="cannot run --peer-python 'nowhere'"):
        start_baselines(Path("nowhere"), ["step", "linear", "32"], ExitStack())


def test_a_baseline_without_torch_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without installed packages
    python.chmod(0o755)
    with ExitStack() as stack, pytest.raises(UsageError, match=r"numpy.*: expected the Python of an"):
        start_baselines(python, ["step", "linear", "32"], stack)
    assert capfd.readouterr().err == ""


def test_pytorch_with_one_thread_with_all_and_compiled_take_turns_with_us(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python, calls = write_peer(tmp_path)
    path = tmp_path / "step.json"
    flags = ["--batch", "8", "--micro-batches", "1,2", "--steps", "30", "--rounds", "2", "--to", str(path)]
    assert run(["bench", "step", "--model", "linear", *flags, "--peer-python", str(python)]) == 0
    one, two = json.loads(path.read_text())
    # One sitting for both numbers of micro-batches.
    assert len(calls.read_text().splitlines()) == 3
    assert (one["micro_batches"], two["micro_batches"]) == (1, 2)
    assert one["ms_spread"][0] <= one["ms_per_step"] <= one["ms_spread"][1]
    for name in ("peer", "all_threads", "compiled"):
        assert one[name]["ms_spread"] == [5.0, 5.0]
        low, high = one[name]["ratio_spread"]
        assert low <= one[name]["ratio"] <= high
    shown = capsys.readouterr().out
    assert all(f"\n{name} / ours" in shown for name in ("torch", "all threads", "compiled"))
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    # What micro-batches cost is shown by several numbers of them.
    assert [line.split(",")[1].strip() for line in lines if "one thread" in line and "torch" not in line] == [
        "batch 8",
        "batch 8 in 2 micro-batches",
    ]
    at = next(number for number, line in enumerate(lines) if line.split()[:1] == ["micro-batches"])
    head, ratios = (line.split() for line in lines[at : at + 2])
    assert head == ["micro-batches", "1", "2"]
    assert ratios[:3] == ["linear", "8", "1.00"]
    assert 0 < float(ratios[3]) < 2


@pytest.mark.parametrize(("model", "prices"), [("mlp", []), ("my.py:build", ["+25.0%", "+2.0%"])])
def test_the_price_is_that_of_the_same_module_in_both_memory_layouts(model: str, prices: list[str]) -> None:
    peer = BaselineRow(version="9.9", layout="channels-last", ms_per_step=4.0, images_per_s=8e3, ratio=0.8)
    contiguous = msgspec.structs.replace(peer, layout="contiguous", ms_per_step=4.9, ratio=1 / 1.02)
    figures = StepFigures(
        model=model,
        batch=32,
        micro_batches=1,
        ms_per_step=5.0,
        steps=120,
        images_per_s=6400.0,
        peak_rss_mb=300.0,
        gemm_gflops_share=None,
        gemm_peak_gflops=50.0,
        peer=peer,
        contiguous=contiguous,
    )
    lines = StepBench().lines(figures)
    assert [line.split()[1] for line in lines if line.startswith("price")] == prices
    assert [line.split()[-1] for line in lines if line.startswith("price")] == ["channels-last", "contiguous"][
        : len(prices)
    ]
    assert max(map(len, lines)) <= 80
    alone = msgspec.structs.replace(figures, peer=None, contiguous=None)
    assert not any(line.startswith("price") for line in StepBench().lines(alone))


def test_a_module_has_no_profile(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
    assert run(["bench", "step", "--model", f"{NETS}:lenet", "--batch", "2", "--steps", "30", "--profile"]) == 2
    assert "use torch.profiler" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_peak_memory_is_not_that_of_the_process_that_started_it() -> None:
    held = np.ones(100_000_000, np.float32)
    source = "from lockstep.bench.step import peak_rss_bytes; print(peak_rss_bytes())"
    shown = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout
    assert 10e6 < int(shown) < held.nbytes < peak_rss_bytes()


#: Multiplications of one image forward, layer by layer.
LAYERS = {
    "linear": [784 * 10],
    "mlp": [784 * 512, 512 * 256, 256 * 10],
    "lenet": [28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25, 400 * 120, 120 * 84, 84 * 10],
    "cnn": [28 * 28 * 32 * 9, 14 * 14 * 64 * 32 * 9, 3136 * 128, 128 * 10],
}


@pytest.mark.parametrize("name", LAYERS)
def test_flops_are_those_of_forward_weights_and_inputs_but_the_first(name: str) -> None:
    images = np.zeros((5, 1, 28, 28), dtype=np.float32)
    first, *others = LAYERS[name]
    assert step_flops(MODELS[name](), images) == 2 * 5 * (2 * first + 3 * sum(others))

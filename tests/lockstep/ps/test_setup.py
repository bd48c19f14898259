"""A run begins only where job, model and data go together; otherwise one line says what does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.aggregation.layout import gather, layout_of
from lockstep.common.data.dataset import Dataset, TrainTest
from lockstep.common.errors import DataError, FileFormatError, JobError, LockstepError, ModelError, NumericsError
from lockstep.common.files.safetensors import write
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.nn.description import describe
from lockstep.common.protocol.run_options import RunOptions
from lockstep.ps.setup import RunSetup, dry_run, native_notices, open_run
from tests.lockstep.common.model.built import build_model
from tests.simulation.small import digits, job_of, noisy_net


def opened(**values: Any) -> RunSetup:
    return open_run("test", job_of(**values), digits(), RunOptions(min_workers=2, lease_timeout=7.0))


def test_the_facts_are_those_of_job_data_and_model() -> None:
    opening = opened(model="mlp")
    info, layout = opening.info, layout_of(build_model("mlp"))
    assert (info.dataset, info.layout, info.source) == (digits().digest, layout.digest(), "")
    assert (info.options.least_workers(), info.options.lease_timeout, info.training_samples) == (2, 7.0, 40)
    assert opening.shard.weights.size == layout.size


def test_the_first_weights_are_drawn_from_the_seed() -> None:
    one, same, other = opened(seed=1), opened(seed=1), opened(seed=2)
    assert one.shard.digest() == same.shard.digest() != other.shard.digest()
    model = build_model("linear").initialize(1)
    assert one.shard.weights.tobytes() == gather(model, layout_of(model)).tobytes()


def test_the_first_weights_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    model = build_model(noisy_net()).initialize(9)
    write(path, model.state_dict(), {})
    opening = opened(model=noisy_net(), initial=str(path))
    assert opening.shard.weights.tobytes() == gather(model, layout_of(model)).tobytes()


def test_initial_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path, model = tmp_path / "w.safetensors", build_model("linear").initialize(9)
    state = model.state_dict()
    first = next(iter(state))
    state[first][0] = np.nan
    write(path, state, {})
    with pytest.raises(ModelError, match=f"the initial weights of {first!r} are not finite"):
        opened(initial=str(path))


def test_a_process_without_the_jobs_numerics_opens_nothing() -> None:
    with pytest.raises(NumericsError, match="numerics = 'native' in a process that computes with portable ones"):
        opened(numerics="native")


def test_mixed_numerics_may_be_allowed() -> None:
    options = RunOptions(allow_mixed_numerics=True)
    assert open_run("test", job_of(numerics="native"), digits(), options).info.fingerprint.mode == "portable"


@pytest.mark.parametrize(
    ("engine", "obstacle", "why"),
    [
        ("", "no compiler", "no compiler"),
        ("torch 3", "", "torch 3 computes the model"),
        ("torch 3", "no compiler", "torch 3 computes the model"),
    ],
)
def test_native_numerics_are_told_with_the_reason(engine: str, obstacle: str, why: str) -> None:
    assert native_notices("native", engine, obstacle) == [
        f"numerics = 'native', the same bits only on machines of one kind: {why}"
    ]
    assert native_notices("portable", engine, obstacle) == []


def test_native_numerics_that_were_chosen_are_not_told() -> None:
    assert native_notices("native", "", "") == []


def test_the_look_at_the_output_leaves_statistics_alone() -> None:
    opening = opened(model=noisy_net())
    statistics = opening.shard.weights[opening.layout.parameter_size :]
    assert sorted(set(statistics.tolist())) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"global_batch": 41}, JobError, "global_batch = 41 is more than the 40 training samples of 'digits'"),
        (
            {"global_batch": 64, "local_steps": 2},
            JobError,
            "global_batch = 64 is more than the 40 .* at most as many; lower global_batch or local_steps = 2",
        ),
        ({"model": dict(describe(nn.Linear(784, 10)))}, ModelError, r"cannot take samples of shape \(1, 28, 28\)"),
        (
            {"model": dict(describe(nn.Sequential(nn.Flatten(), nn.Linear(784, 7))))},
            ModelError,
            r"\(2, 7\): expected \(2, 10\)",
        ),
        ({"model": dict(describe(nn.Flatten()))}, ModelError, "has no parameters"),
        ({"initial": "nowhere.safetensors"}, FileFormatError, "nowhere.safetensors"),
        ({"warmup_steps": 4}, JobError, "warmup_steps = 4 is not below the run's 4 steps"),
    ],
)
def test_what_does_not_go_together_is_refused_on_one_line(
    values: dict[str, Any], error: type[LockstepError], text: str
) -> None:
    with pytest.raises(error, match=text) as raised:
        opened(**values)
    assert "\n" not in str(raised.value)


class Signals(nn.Module):
    """Takes signals of 28 channels, and no images."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv1d(28, 2, 28)

    def forward(self, x: Any) -> Any:
        return self.filters(x).flatten(1)


def test_a_model_of_signals_is_told_of_the_axis_that_images_get() -> None:
    images = np.zeros((2, 1, 28, 28), np.float32)
    with pytest.raises(
        ModelError, match=r"it takes samples of shape \(28, 28\), .* x = x.squeeze\(1\), or pass a dict"
    ):
        dry_run(AutogradModel(Signals()), images)
    with pytest.raises(ModelError, match=r"expects 9: expected a model for this shape, or model = 'conv'"):
        dry_run(AutogradModel(nn.Linear(9, 2)), images)


class OfNumPy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.head(np.tanh(x))


def test_a_function_of_numpy_in_a_model_is_told() -> None:
    with pytest.raises(ModelError, match=r"raised TypeError: .*: NumPy's functions take no tensors; use those of lock"):
        dry_run(AutogradModel(OfNumPy()), np.ones((2, 3), np.float32))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write(path, build_model("mlp").state_dict(), {})
    with pytest.raises(ModelError, match=r"do not fit the model: unexpected: '3\.weight', .* and 1 more; of another"):
        opened(initial=str(path))


def test_what_has_no_rows_and_columns_cannot_be_shifted() -> None:
    flat = Dataset(np.zeros((20, 784), np.float32), np.zeros(20, np.int64), 10)
    with pytest.raises(DataError, match="shifts of 2 pixels"):
        open_run("test", job_of(max_shift=2), TrainTest("flat", flat, flat), RunOptions())

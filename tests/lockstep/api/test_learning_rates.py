"""The range test of learning rates: the same numbers each time, and rates that train."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import find_lr, fit, nn
from lockstep.api.learning_rates import RateTest, averaged
from lockstep.common.errors import JobError, RunError
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.optim.schedules import Exponential
from lockstep.common.runtime.numerics import own_numerics
from tests.lockstep.api import zoo
from tests.lockstep.tiny_data import tiny_arrays

Part = tuple[NDArray[np.float32], NDArray[np.float32]]

BRIEF: dict[str, Any] = {"global_batch": 32, "micro_batches": 2}


def test_the_same_call_gives_the_same_numbers() -> None:
    tests = [find_lr("linear", tiny_arrays(), steps=30, **BRIEF) for _ in range(2)]
    np.testing.assert_array_equal(tests[0].losses, tests[1].losses)
    assert repr(tests[0]) == repr(tests[1])


def test_a_rate_is_found_with_the_numerics_of_the_job() -> None:
    native = find_lr("linear", tiny_arrays(), steps=30, numerics="native", **BRIEF)
    portable = find_lr("linear", tiny_arrays(), steps=30, **BRIEF)
    np.testing.assert_allclose(native.losses, portable.losses, rtol=1e-3, atol=1e-5)
    assert own_numerics() == "portable"


def test_rates_rise_by_one_factor_from_the_lowest() -> None:
    test = find_lr("linear", tiny_arrays(), lowest=1e-4, highest=1e-2, steps=41, **BRIEF)
    assert len(test.rates) == 41
    np.testing.assert_allclose(test.rates[[0, 20, 40]], [1e-4, 1e-3, 1e-2])


def test_it_ends_where_the_loss_is_too_much() -> None:
    test = find_lr("linear", tiny_arrays(), highest=1e4, steps=80, **BRIEF)
    assert 8 < len(test.losses) < 80
    assert np.isfinite(test.losses).all()


def test_the_first_loss_is_that_of_the_first_weights() -> None:
    run_loss = find_lr("linear", tiny_arrays(), steps=30, seed=3, **BRIEF).losses[0]
    assert run_loss == find_lr("linear", tiny_arrays(), steps=30, lowest=1e-3, seed=3, **BRIEF).losses[0]


def made(losses: list[float]) -> RateTest:
    return RateTest(np.geomspace(1e-5, 1.0, len(losses)), np.array(losses))


def test_what_follows_from_a_valley() -> None:
    rates = np.geomspace(1e-5, 1.0, 200)
    # Flat, then a fall that is steepest at 1e-3, then up again from 1e-2 on.
    place = np.log10(rates)
    test = RateTest(rates, 2.0 - np.tanh(2 * (place + 3)) + np.where(place > -2, (place + 2) ** 2 * 4, 0.0))
    assert 0.0008 < test.steepest < 0.00125
    assert 0.004 < test.at_minimum < 0.015
    fallen = (test.losses[0] - test.smoothed) / (test.losses[0] - test.smoothed.min())
    at = int(np.flatnonzero(test.rates == test.suggestion)[0])
    assert fallen[at - 1] < 0.95 <= fallen[at]
    assert test.steepest < test.suggestion < test.at_minimum


def test_the_smoothed_loss_of_a_constant_is_that_constant() -> None:
    np.testing.assert_allclose(made([3.0] * 40).smoothed, 3.0)


def below_zero(outputs: Any, targets: Any) -> Any:
    """Return the squared error, shifted below zero, and its divisor."""
    return ((outputs.reshape(-1) - targets) ** 2 - 5.0).sum(), targets.size


def table(rows: int, columns: int, noise: float) -> tuple[Part, Part]:
    """Return a small table whose target follows from some of its columns, and from chance."""
    rng = generator(7, Purpose.CANARY)
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    y = 2 * x[:, 0] + x[:, 1] * x[:, 2] + np.abs(x[:, 3]) + noise * rng.standard_normal(rows, dtype=np.float32)
    y = (y - y.mean()) / y.std()
    return (x[:-40], y[:-40]), (x[-40:], y[-40:])


def test_seeds_agree_on_a_rate_for_small_noisy_tables() -> None:
    data = table(240, 8, 1.0)
    rates = [find_lr("dense", data, loss="mse", seed=seed).suggestion for seed in range(4)]
    assert max(rates) < 4 * min(rates)
    assert min(rates) > 3e-4


def small_net() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def torch_net() -> Any:
    """Return the same by PyTorch."""
    from torch import nn as layers

    return layers.Sequential(
        layers.Linear(20, 64), layers.ReLU(), layers.Linear(64, 64), layers.ReLU(), layers.Linear(64, 1)
    )


def of_all_scales() -> tuple[Part, Part]:
    """Return a table whose columns have deviations from a tenth to 316."""
    scales = np.geomspace(0.1, 316.0, 20, dtype=np.float32)
    (x, y), (test_x, test_y) = table(1000, 20, 0.3)
    return (x * scales, y), (test_x * scales, test_y)


def with_heavy_tails() -> tuple[Part, Part]:
    """Return a table in which few of the targets make most of the loss."""
    (x, y), (test_x, test_y) = table(1000, 20, 0.3)
    large, deviation = np.exp(2 * y), np.exp(2 * y).std()
    return (x, (large - large.mean()) / deviation), (test_x, (np.exp(2 * test_y) - large.mean()) / deviation)


@pytest.mark.parametrize(("data", "optimizer"), [(of_all_scales, "sgd"), (with_heavy_tails, "adam")])
def test_seeds_agree_where_batches_differ_more_than_rates(
    data: Callable[[], tuple[Part, Part]], optimizer: str
) -> None:
    tests = [find_lr(small_net(), data(), loss="mse", optimizer=optimizer, seed=seed) for seed in range(2)]
    rates = [test.suggestion for test in tests]
    assert max(rates) < 4 * min(rates)
    assert min(rates) > 1e-3


@pytest.mark.parametrize(
    ("model", "optimizer", "lowest", "highest"),
    [(small_net, "sgd", 0.03, 0.25), (torch_net, "adam", 0.004, 0.06)],
)
def test_a_small_net_gets_a_rate_that_trains_it_well(
    model: Callable[[], Any], optimizer: str, lowest: float, highest: float
) -> None:
    if model is torch_net:
        pytest.importorskip("torch")
    # With rates between these, 300 steps ended with at most three times the lowest loss that any of 17 rates gave.
    test = find_lr(model, table(1000, 20, 0.1), loss="mse", optimizer=optimizer)
    assert lowest < test.suggestion < highest


def test_a_model_that_learns_its_samples_by_heart_needs_no_larger_rate_for_that() -> None:
    rates = np.geomspace(1e-5, 1.0, 200)
    # The loss is nearly 0 from 1e-3 on, and falls a little until the end.
    place = np.log10(rates)
    test = RateTest(rates, 1.0 - np.tanh(4 * (place + 3.5)) - 1e-3 * place)
    assert test.at_minimum > 0.5
    assert 3e-4 < test.suggestion < 3e-3


def tried(fall: float, lowest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a test whose losses of batches differ, and fall by `fall` at a rate near `lowest`."""
    places = np.log10(np.geomspace(1e-6, 10.0, 100))
    return 2.0 + np.cos(5 * np.arange(100)), -fall * np.exp(-((places - np.log10(lowest)) ** 2)) + fall * 1e-9


def test_tests_that_disagree_are_refused() -> None:
    schedule = Exponential(1e-6, every=99, gamma=1e7)
    near = averaged([tried(0.5, rate) for rate in (1e-5, 0.01, 0.02, 0.05)], schedule)
    assert 0.005 < near.at_minimum < 0.05
    assert near.losses[0] == pytest.approx(2.0, abs=0.05)
    with pytest.raises(RunError, match=r"lowest at the rate 9\.5e-05 or 0\.011, depending on the seed: expected"):
        averaged([tried(0.5, rate) for rate in (1e-5, 1e-4, 0.01, 0.01)], schedule)
    with pytest.raises(RunError, match="the loss fell at none of the rates from 1e-06 to 10: expected a model that"):
        averaged([tried(-0.5, rate) for rate in (0.01, 0.01, 0.01, 0.01)], schedule)


def test_a_loss_may_be_negative() -> None:
    losses = find_lr(nn.Linear(8, 1), table(240, 8, 1.0), loss=below_zero, steps=60, highest=0.1).losses
    assert losses[0] < 0.0
    assert losses.min() < losses[0] - 0.1


def test_the_suggestion_trains(tmp_path: Path) -> None:
    rate = find_lr("linear", tiny_arrays(), **BRIEF).suggestion
    values: dict[str, Any] = {"workers": 0, "epochs": 5, "verbose": False, "schedule": "constant", **BRIEF}
    assert fit("linear", tiny_arrays(), run_dir=tmp_path, lr=rate, **values).test_accuracy == 1.0


@pytest.mark.parametrize("model", [zoo.Net(), nn.Sequential(nn.Flatten(), nn.Linear(784, 10))])
def test_models_of_all_kinds_are_tried_and_stay_as_they_are(model: nn.Module) -> None:
    before = model.state_dict()
    assert len(find_lr(model, tiny_arrays(), steps=30, highest=1e-3, **BRIEF).losses) == 30
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"lowest": 1.0, "highest": 0.1}, JobError, r"rates from 1.0 to 0.1 in 100 steps: expected 0 < lowest < high"),
        ({"lowest": 0.0}, JobError, "rates from 0.0"),
        ({"steps": 29}, JobError, "in 29 steps: expected .* at least 30 steps"),
        ({"lowest": 1e8, "highest": 1e9}, RunError, "try a lower `lowest` than 100000000.0"),
        ({"epoch": 3}, JobError, "no key 'epoch'"),
    ],
)
def test_what_cannot_be_done_is_told(values: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        find_lr("mlp", tiny_arrays(), **BRIEF, **values)


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    test = made([2.0] * 15 + [1.0] * 15 + [4.0] * 5)
    figure = test.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"
    assert len(figure.axes[0].lines) == 5
    # Text is drawn as it is, so that no number may come as a formula: `$\mathdefault{10^{-4}}$`.
    assert {"0.0001", "0.001", "0.01"} <= {label.get_text() for label in figure.axes[0].get_xticklabels()}

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.nn.examples import rng


def batch(*shape: int) -> Tensor:
    return Tensor(rng().normal(3.0, 2.0, shape).astype(np.float32))


@pytest.mark.parametrize(
    ("layer", "x"),
    [(nn.BatchNorm1d(4), batch(9, 4)), (nn.BatchNorm1d(4), batch(9, 4, 5)), (nn.BatchNorm2d(4), batch(9, 4, 5, 3))],
)
def test_training_normalises_and_moves_the_running_statistics(layer: nn.BatchNorm2d, x: Tensor) -> None:
    y = layer(x).data
    others = tuple(axis for axis in range(x.ndim) if axis != 1)
    np.testing.assert_allclose(y.mean(others), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(others), 1, rtol=1e-4)
    np.testing.assert_allclose(layer.running_mean.value, 0.1 * x.data.mean(others), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.value, 0.9 + 0.1 * x.data.var(others, ddof=1), rtol=1e-5)


def test_evaluation_uses_the_running_statistics_and_leaves_them() -> None:
    layer, x = nn.BatchNorm1d(4), batch(9, 4)
    layer.running_mean.value[...] = 3
    layer.running_var.value[...] = 4
    y = layer.eval()(x).data
    np.testing.assert_allclose(y, (x.data - 3) / np.sqrt(4 + 1e-5), rtol=1e-5, atol=1e-6)
    assert (layer.running_mean.value == 3).all()


def test_observed_statistics_go_to_the_view_and_only_there() -> None:
    layer, x = nn.BatchNorm2d(4), batch(9, 4, 5, 3)
    flat = np.zeros(8, np.float32)
    layer.running_mean.observed, layer.running_var.observed = flat[:4], flat[4:]
    layer(x)
    np.testing.assert_allclose(flat[:4], 9 * x.data.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(flat[4:], 9 * x.data.var((0, 2, 3), ddof=1), rtol=1e-5)
    assert not layer.running_mean.value.any()
    assert (layer.running_var.value == 1).all()


def test_momentum_is_the_weight_of_the_new_batch() -> None:
    layer, x = nn.BatchNorm1d(4, momentum=1.0), batch(9, 4)
    layer(x)
    np.testing.assert_allclose(layer.running_mean.value, x.data.mean(0), rtol=1e-5)


def test_reset_parameters_starts_anew() -> None:
    layer = nn.BatchNorm1d(4)
    fresh = layer.state_dict()
    layer(batch(9, 4))
    layer.initialize(0)
    assert all((array == fresh[name]).all() for name, array in layer.state_dict().items())


def test_without_affine_there_are_no_parameters() -> None:
    assert list(nn.BatchNorm1d(4, affine=False).state_dict()) == ["running_mean", "running_var"]
    assert list(nn.LayerNorm(4, elementwise_affine=False).state_dict()) == []


@pytest.mark.parametrize(
    ("layer", "x", "text"),
    [
        (nn.BatchNorm1d(4), batch(9, 3), r"BatchNorm1d got shape \(9, 3\): expected \(n, 4\) or \(n, 4, l\)"),
        (nn.BatchNorm1d(4), batch(9, 4, 5, 3), "BatchNorm1d got shape"),
        (nn.BatchNorm2d(4), batch(9, 4), r"BatchNorm2d got shape \(9, 4\): expected \(n, 4, h, w\)"),
    ],
)
def test_other_shapes_are_refused(layer: nn.BatchNorm2d, x: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        layer(x)


def test_one_value_a_channel_gets_the_shift_alone() -> None:
    layer = nn.BatchNorm1d(4)
    assert not layer(batch(1, 4)).data.any()
    assert (layer.running_var.value == np.float32(0.9)).all()


@pytest.mark.parametrize("momentum", [-0.1, 1.1])
def test_momentum_out_of_range_is_told(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        nn.BatchNorm1d(4, momentum=momentum)


def test_layer_norm_normalises_each_sample() -> None:
    x = batch(5, 3, 4)
    y = nn.LayerNorm((3, 4))(x).data
    np.testing.assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((1, 2)), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="normalized_shape is empty"):
        nn.LayerNorm(())


def test_a_momentum_of_none_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="momentum is None, an average over all batches"):
        nn.BatchNorm1d(4, momentum=None)  # type: ignore[arg-type]

"""The functions that do more than hand their arguments on."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor

X = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)


def test_every_public_name_is_a_function_with_a_tensor_as_its_result() -> None:
    public = (value for name, value in vars(F).items() if inspect.isfunction(value) and not name.startswith("_"))
    results = [inspect.get_annotations(each, eval_str=True)["return"] for each in public]
    assert len(results) > 50
    # A pool returns indices too if it is asked for them.
    assert set(results) == {Tensor, tuple[Tensor, ...], Any}


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "power", "matmul", "maximum", "minimum"])
def test_functions_of_two_take_arrays_and_numbers(name: str) -> None:
    x, y = np.full((2, 2), 2.0), np.full((2, 2), 3.0)
    np.testing.assert_array_equal(getattr(F, name)(x, y).data, getattr(np, name)(x, y))


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sum", "mean", "max", "min", "abs"])
def test_functions_of_one_take_arrays(name: str) -> None:
    x = np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(getattr(F, name)(x).data, getattr(np, name)(x))


def test_negate_where_and_variance() -> None:
    x = np.array([1.0, 2.0, 4.0])
    np.testing.assert_array_equal(F.negate(x).data, -x)
    np.testing.assert_array_equal(F.where(Tensor(x) > 1, x, 0.0).data, [0.0, 2.0, 4.0])
    np.testing.assert_allclose(F.var(x, dim=0, keepdim=True).data, [x.var(ddof=1)])


class TestShaping:
    def test_shapes(self) -> None:
        x = Tensor(X)
        assert F.reshape(x, [12, -1]).shape == F.flatten(F.reshape(x, [12, 5, 5]), 1).shape == (12, 25)
        assert F.transpose(x, 0, 1).shape == F.permute(x, [1, 0, 2, 3]).shape == (3, 4, 5, 5)
        assert F.squeeze(F.unsqueeze(x, 0), 0).shape == x.shape
        assert F.broadcast_to(1.0, [2, 3]).shape == (2, 3)

    def test_pad_begins_with_the_last_axis(self) -> None:
        padded = F.pad(Tensor([[1.0, 2.0]]), (1, 0, 0, 2), value=7.0)
        assert padded.tolist() == [[7.0, 1.0, 2.0], [7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]

    @pytest.mark.parametrize("pad", [(1,), (-2, -1), (1, 1, 1, 1, 1, 1)])
    def test_pads_that_do_not_fit(self, pad: Sequence[int]) -> None:
        with pytest.raises(ValueError, match=r"expected (a|to)"):
            F.pad(Tensor([[1.0, 2.0]]), pad)

    def test_joining(self) -> None:
        x = Tensor([[1.0, 2.0]])
        assert F.concatenate([x, x], dim=1).shape == F.cat([x, x], dim=-1).shape == (1, 4)
        assert F.stack([x, x, x], dim=1).shape == (1, 3, 2)

    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [(2, [2, 2, 1]), (5, [5]), (9, [5]), ([1, 0, 4], [1, 0, 4])],
    )
    def test_split(self, sizes: Any, expected: list[int]) -> None:
        x = Tensor(np.arange(10.0).reshape(2, 5), requires_grad=True)
        parts = F.split(x, sizes, dim=-1)
        assert [part.shape[1] for part in parts] == expected
        np.testing.assert_array_equal(F.cat(parts, dim=1).data, x.data)
        (parts[-1] * 2).sum().backward()
        assert x.grad is not None
        assert x.grad.sum() == 2 * 2 * expected[-1]

    @pytest.mark.parametrize("sizes", [0, [1, 2]])
    def test_splits_that_do_not_fit(self, sizes: Any) -> None:
        with pytest.raises(ValueError, match="must"):
            F.split(Tensor(np.zeros(5)), sizes)


class TestBatchNorm:
    def test_training_normalises_and_moves_the_running_statistics(self) -> None:
        mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
        y = F.batch_norm(Tensor(X), mean, var, training=True, momentum=0.1).data
        np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-6)
        np.testing.assert_allclose(y.var((0, 2, 3)), 1, rtol=1e-4)
        np.testing.assert_allclose(mean, 0.1 * X.mean((0, 2, 3)), rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(var, 0.9 + 0.1 * X.var((0, 2, 3), ddof=1), rtol=1e-5)

    def test_evaluation_uses_them_and_leaves_them(self) -> None:
        mean, var = np.full(3, 2.0, np.float32), np.full(3, 4.0, np.float32)
        weight, bias = Tensor([1.0, 2.0, 3.0]), Tensor([0.0, 1.0, 2.0])
        y = F.batch_norm(Tensor(X), mean, var, weight, bias, eps=0.0)
        expected = (X - 2) / 2 * weight.data[:, None, None] + bias.data[:, None, None]
        np.testing.assert_allclose(y.data, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(mean, [2.0, 2.0, 2.0])

    def test_one_sample_has_variance_zero(self) -> None:
        var = np.ones(3, np.float32)
        F.batch_norm(Tensor(X[:1, :, 0, 0]), None, var, training=True, momentum=1.0)
        np.testing.assert_array_equal(var, [0.0, 0.0, 0.0])

    def test_evaluation_needs_statistics(self) -> None:
        with pytest.raises(ValueError, match="needs running_mean and running_var"):
            F.batch_norm(Tensor(X), None, None)


def test_layer_norm() -> None:
    y = F.layer_norm(Tensor(X), (5, 5)).data
    np.testing.assert_allclose(y.mean((2, 3)), 0, atol=1e-6)
    with pytest.raises(ValueError, match="must be the last sizes"):
        F.layer_norm(Tensor(X), (3, 5))


def test_dropout() -> None:
    x = Tensor(np.ones(10_000, np.float32))
    y = F.dropout(x, 0.25, True, np.random.default_rng(0)).data
    assert set(np.unique(y).tolist()) == {0.0, float(np.float32(4 / 3))}
    assert abs(y.mean() - 1) < 0.02
    assert F.dropout(x, 0.25, False, np.random.default_rng(0)) is x
    assert F.dropout(x, 0.0, True, np.random.default_rng(0)) is x


def test_embedding_takes_lists_and_tensors() -> None:
    weight = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    for indices in ([2, 0, 2], np.array([2, 0, 2]), Tensor(np.array([2, 0, 2]))):
        weight.zero_grad()
        F.embedding(indices, weight).sum().backward()
        np.testing.assert_array_equal(weight.grad, [[1, 1], [0, 0], [2, 2]])


class TestLosses:
    def test_reductions(self) -> None:
        x, y = Tensor([1.0, 2.0]), Tensor([0.0, 0.0])
        assert F.mse_loss(x, y).item() == 2.5
        assert F.mse_loss(x, y, reduction="sum").item() == 5.0
        assert F.mse_loss(x, y, reduction="none").tolist() == [1.0, 4.0]


class TestImages:
    def test_conv2d(self) -> None:
        weight = Tensor(np.ones((2, 3, 3, 3), np.float32), requires_grad=True)
        y = F.conv2d(Tensor(X), weight, Tensor([0.0, 1.0]), padding=1, stride=2)
        assert y.shape == (4, 2, 3, 3)
        np.testing.assert_allclose(y.data[:, 0, 1, 1], X[:, :, 1:4, 1:4].sum((1, 2, 3)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(y.data[:, 1], y.data[:, 0] + 1, rtol=1e-5, atol=1e-5)

    def test_conv1d(self) -> None:
        y = F.conv1d(Tensor(X[:, :, 0]), Tensor(np.ones((2, 1, 2), np.float32)[:, :1].repeat(3, 1)))
        np.testing.assert_allclose(y.data[:, 0, 0], X[:, :, 0, :2].sum((1, 2)), rtol=1e-4, atol=1e-5)

    def test_pooling(self) -> None:
        x, line = Tensor(X), Tensor(X[:, :, 0])
        np.testing.assert_array_equal(F.max_pool2d(x, 2).data[..., 0, 0], X[..., :2, :2].max((-1, -2)))
        np.testing.assert_allclose(F.avg_pool2d(x, 2).data[..., 0, 0], X[..., :2, :2].mean((-1, -2)), rtol=1e-4)
        np.testing.assert_array_equal(F.max_pool1d(line, 2).data[..., 0], X[:, :, 0, :2].max(-1))
        np.testing.assert_allclose(F.avg_pool1d(line, 2).data[..., 0], X[:, :, 0, :2].mean(-1), rtol=1e-4)
        np.testing.assert_allclose(F.adaptive_avg_pool2d(x, 1).data[..., 0, 0], X.mean((-1, -2)), rtol=1e-4, atol=1e-6)
        assert F.adaptive_avg_pool1d(line, 2).shape == (4, 3, 2)


def test_attention_takes_arrays_and_masks_as_pytorch_does() -> None:
    x, longer = np.eye(2, 4), np.ones((3, 4))
    found = F.scaled_dot_product_attention(x, longer, np.arange(3.0)[:, np.newaxis], is_causal=True).data
    # The first of two queries sees the first of three keys alone.
    np.testing.assert_allclose(found, [[0.0], [0.5]])
    seen = np.array([[False, True, False]] * 2)
    masked = F.scaled_dot_product_attention(x, longer, np.arange(3.0)[:, np.newaxis], seen).data
    np.testing.assert_allclose(masked, [[1.0], [1.0]])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda: F.softmax(3.0), 1.0),
        (lambda: F.log_softmax(3.0), 0.0),
        (lambda: F.softmax(np.zeros((0, 3))), np.zeros((0, 3))),
        (lambda: F.log_softmax(np.zeros((3, 0))), np.zeros((3, 0))),
        (lambda: F.mean(Tensor(2.0), dim=0), 2.0),
        (lambda: F.mean(np.zeros((2, 0)), dim=1), [np.nan, np.nan]),
        (lambda: F.var(Tensor(2.0)), np.nan),
        (lambda: F.var(np.zeros(0)), np.nan),
        (lambda: F.transpose(Tensor(2.0), 0, -1), 2.0),
        (lambda: F.transpose(np.zeros((2, 0)), 0, 1), np.zeros((0, 2))),
        (lambda: F.squeeze(Tensor(2.0), 0), 2.0),
        (lambda: F.squeeze(np.ones((1, 2)), 0), [1.0, 1.0]),
        (lambda: F.cat([np.zeros(0), np.ones((1, 2))]), [[1.0, 1.0]]),
    ],
)
def test_numbers_and_empty_arrays_have_the_results_of_pytorch(compute: Callable[[], Tensor], expected: Any) -> None:
    np.testing.assert_array_equal(compute().data, expected)


def test_a_variance_of_one_number_has_no_gradient_that_is_a_number() -> None:
    x = Tensor(2.0, requires_grad=True)
    F.var(x).backward()
    assert np.isnan(x.grad)  # type: ignore[arg-type]


def test_if_all_targets_are_ignored_the_gradient_is_0() -> None:
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    loss = F.cross_entropy(x, [1, 1], ignore_index=1)
    loss.backward()
    assert np.isnan(loss.item())
    np.testing.assert_array_equal(x.grad, np.zeros((2, 3)))


def test_bounds_may_be_lists_and_tensors_that_get_a_gradient() -> None:
    assert F.clamp(np.arange(3, dtype=np.float32), [2, 2, 2]).dtype == np.float32
    x, low = Tensor([1.0, 2.0, 3.0], requires_grad=True), Tensor([2.0, 2.0, 2.0], requires_grad=True)
    F.clamp(x, low, 2.5).sum().backward()
    assert x.grad is not None
    assert low.grad is not None
    assert (x.grad.tolist(), low.grad.tolist()) == ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("reflect", [2, 1, 0, 1, 2, 1]), ("replicate", [0, 0, 0, 1, 2, 2]), ("circular", [1, 2, 0, 1, 2, 0])],
)
def test_a_frame_may_be_of_the_elements_themselves(mode: str, expected: list[float]) -> None:
    x = Tensor([0.0, 1.0, 2.0], requires_grad=True)
    padded = F.pad(x, (2, 1), mode)
    assert padded.tolist() == expected
    padded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [expected.count(each) for each in range(3)]


def test_what_a_frame_must_be_is_said() -> None:
    with pytest.raises(ValueError, match="does not fit mode 'reflect'"):
        F.pad(Tensor([0.0, 1.0]), (2, 0), "reflect")
    with pytest.raises(ValueError, match="mode is 'mirror'"):
        F.pad(Tensor([0.0, 1.0]), (1, 0), "mirror")
    assert F.pad(Tensor([0.0, 1.0, 2.0]), (-1, 1)).tolist() == [1.0, 2.0, 0.0]


def test_pools_take_the_options_of_pytorch() -> None:
    image = np.arange(25.0).reshape(1, 5, 5)
    assert F.max_pool2d(image, 2, ceil_mode=True).tolist() == [[[6, 8, 9], [16, 18, 19], [21, 23, 24]]]
    assert F.max_pool2d(image, 2, stride=2, dilation=2).tolist() == [[[12, 14], [22, 24]]]
    assert F.avg_pool2d(image, 2, ceil_mode=True)[0, 2].tolist() == [20.5, 22.5, 24.0]
    assert F.avg_pool2d(image, 2, divisor_override=1)[0, 0].tolist() == [12.0, 20.0]
    values, places = F.max_pool1d(image[0], 3, stride=2, return_indices=True)
    assert (values[0].tolist(), places[0].tolist()) == ([2.0, 4.0], [2, 4])


def test_probabilities_may_be_targets() -> None:
    logits, classes = X[:, :, 0, 0], np.array([0, 2, 1, 1])
    certain = np.eye(3, dtype=np.float32)[classes]
    for reduction in ("mean", "sum", "none"):
        found = F.cross_entropy(logits, certain, 0.2, reduction).data
        np.testing.assert_allclose(found, F.cross_entropy(logits, classes, 0.2, reduction).data, rtol=1e-5)
    with pytest.raises(ValueError, match="expected the same shape"):
        F.cross_entropy(logits, certain[:, :2])


def test_windows_take_one_sample_and_named_padding() -> None:
    image = np.arange(48.0).reshape(3, 4, 4)
    kernel = np.ones((2, 3, 2, 3))
    same = F.conv2d(image[np.newaxis], kernel, padding="same").data
    assert same.shape == (1, 2, 4, 4)
    np.testing.assert_array_equal(F.conv2d(image, kernel, padding="same").data, same[0])
    np.testing.assert_array_equal(F.conv2d(image, kernel, padding="valid").data, same[0, :, :3, 1:3])
    with pytest.raises(ValueError, match="padding is 'same' with stride 2"):
        F.conv2d(image, kernel, stride=2, padding="same")
    assert F.max_pool2d(image, 2).shape == (3, 2, 2)
    assert F.adaptive_avg_pool1d(image[0], 2).shape == (4, 2)
    assert F.adaptive_avg_pool2d(image, (None, 2)).shape == (3, 4, 2)

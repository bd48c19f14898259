"""Attention and the Transformer's layer: PyTorch's numbers, and what a place may see."""

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.nn.examples import rng


def waves(shape: tuple[int, ...]) -> Array:
    """Return numbers that are easy to make anywhere."""
    return np.asarray(np.sin(np.arange(1, np.prod(shape) + 1) * 0.7).reshape(shape), np.float32)


def test_attention_of_worked_numbers() -> None:
    x = np.array([[[1.0, 2.0], [0.0, 1.0], [1.0, -1.0]]], np.float32)
    found = F.scaled_dot_product_attention(Tensor(x), Tensor(x * 0.5), Tensor(x + 1), is_causal=True)
    # As torch.nn.functional has it.
    expected = [[2.0, 3.0], [1.587479, 2.587479], [1.795429, 1.022855]]
    np.testing.assert_allclose(found.data[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "outputs", "slopes", "of_key", "of_bias"),
    [
        (
            {"norm_first": True, "activation": "relu", "is_causal": True},
            [
                [8.05446, -1.0659, 2.69188, 1.88674],
                [7.15851, -3.02382, 1.05551, 0.82743],
                [7.75346, -1.60056, 2.84877, 2.67932],
            ],
            [
                [0.05966, 0.63536, 0.98076, 0.84079],
                [-0.272, -0.73984, -1.03211, -0.79213],
                [0.65682, 0.90078, 0.83567, 0.4346],
            ],
            [0.00107, -0.00087, -0.00114, 0.00018],
            [-0.02877, 0.0, 0.0877],
        ),
        (
            {"norm_first": False, "activation": "gelu", "is_causal": False},
            [
                [1.45619, 0.02365, 0.01352, 0.56946],
                [1.41474, 0.2844, -0.19743, 0.58424],
                [1.44641, -0.04315, 0.0698, 0.57541],
            ],
            [
                [0.01105, -0.01409, -0.01706, -0.02468],
                [-0.0476, -0.01374, 0.12231, 0.08857],
                [0.02471, 0.01619, -0.01068, -0.01442],
            ],
            [0.03283, 0.06185, 0.06178, 0.03265],
            [-0.03945, 0.00155, 0.02301],
        ),
    ],
    ids=["before and causal", "after"],
)
def test_the_layer_has_pytorchs_numbers(
    options: dict[str, object],
    outputs: list[list[float]],
    slopes: list[list[float]],
    of_key: list[float],
    of_bias: list[float],
) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.0, **options)  # type: ignore[arg-type]  # a table of cases
    # PyTorch 2.13's layer with these weights, under PyTorch's names.
    layer.load_state_dict({name: waves(array.shape) for name, array in layer.state_dict().items()})
    x = Tensor(waves((1, 3, 4)), requires_grad=True)
    found = layer(x)
    np.testing.assert_allclose(found.data[0], outputs, atol=2e-5)
    found.backward(waves((1, 3, 4))[:, ::-1].copy())
    assert x.grad is not None
    np.testing.assert_allclose(x.grad[0], slopes, atol=2e-5)
    key = layer.self_attn.in_proj_weight.grad
    bias = layer.linear1.bias.grad if layer.linear1.bias is not None else None
    assert key is not None
    assert bias is not None
    np.testing.assert_allclose(key[5], of_key, atol=2e-5)
    np.testing.assert_allclose(bias, of_bias, atol=2e-5)


def test_the_names_are_pytorchs() -> None:
    assert list(nn.TransformerEncoderLayer(4, 2, 3).state_dict()) == [
        *("self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight", "self_attn.out_proj.bias"),
        *("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"),
        *("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"),
    ]


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_place_sees_what_is_before_it_and_later_ones_only_where_it_may(is_causal: bool) -> None:
    layer = nn.MultiheadAttention(6, 2, is_causal=is_causal, rng=rng())
    x = rng(1).standard_normal((2, 5, 6)).astype(np.float32)
    changed = x.copy()
    changed[:, 3] += 1
    before, after = layer(Tensor(x)).data, layer(Tensor(changed)).data
    is_same = (before == after).all(axis=(0, 2))
    assert is_same.tolist() == ([True, True, True, False, False] if is_causal else [False] * 5)


def test_later_places_weigh_nothing() -> None:
    scores = Tensor(rng().standard_normal((2, 3, 5)))
    weights = F.causal_softmax(scores).data
    np.testing.assert_allclose(weights.sum(axis=-1), 1)
    assert [np.count_nonzero(row) for row in weights[0]] == [1, 2, 3]
    assert np.isfinite(F.causal_softmax(Tensor([[1e30, 3e38], [-3e38, -3e38]])).data).all()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: nn.MultiheadAttention(6, 4), "num_heads is 4: expected a divisor of embed_dim = 6"),
        (lambda: nn.MultiheadAttention(6, 2)(Tensor(np.ones((2, 6)))), r"got shape \(2, 6\): expected \(n, t, 6\)"),
        (lambda: nn.PositionalEmbedding(3, 6)(Tensor(np.ones((2, 4, 6)))), r"\(2, 4, 6\): .* with at most 3 places"),
        (lambda: nn.TransformerEncoderLayer(4, 2, activation="tanh"), "activation is 'tanh': expected 'relu' or"),  # type: ignore[arg-type]
        (lambda: F.causal_softmax(Tensor(np.ones(3))), r"got shape \(3,\), expected \(\.\.\., t, s\)"),
    ],
)
def test_what_cannot_be_is_told(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=told):
        make()


def test_the_first_places_have_vectors_of_their_own() -> None:
    layer = nn.PositionalEmbedding(4, 3, rng=rng())
    x = np.zeros((2, 2, 3), np.float32)
    np.testing.assert_array_equal(layer(Tensor(x)).data, np.broadcast_to(layer.weight.data[:2], (2, 2, 3)))

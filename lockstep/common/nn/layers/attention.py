"""Attention of sequences to themselves, and the block that Transformers consist of; batches come first."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.initializers import xavier_uniform_, zeros_
from lockstep.common.nn.layers.activations import Dropout, Identity
from lockstep.common.nn.layers.linear import Linear
from lockstep.common.nn.layers.normalization import LayerNorm
from lockstep.common.nn.layers.sizes import positive, volume
from lockstep.common.nn.module import Module, Parameter, layer
from lockstep.common.numerics.random import Purpose, default_generator


@layer(repeatable=True)
class MultiheadAttention(Module):
    """Attention of each position of a sequence to all positions, by several heads: (n, t, embed_dim) to the same shape.

    Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.2.2. With `is_causal` a position sees only
    itself and earlier ones. `in_proj_weight` (3·embed_dim, embed_dim) has the rows of queries, keys and values, in this
    order; names and layouts of the weights are those of PyTorch. Raises ValueError if `num_heads` does not divide
    `embed_dim`, and for an input of another shape.

    Differs from PyTorch: it is `attention(x, x, x)` with `batch_first=True`: queries, keys and values come from one
    sequence. It returns no attention weights, and has no `dropout`, no masks but the causal one, and no `add_bias_kv`,
    `add_zero_attn`, `kdim` or `vdim`.
    """

    in_proj_weight: Parameter
    in_proj_bias: Parameter | None
    out_proj: Linear

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        is_causal: bool = False,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = positive(embed_dim, "embed_dim")
        self.num_heads = positive(num_heads, "num_heads")
        if embed_dim % num_heads:
            raise ValueError(f"num_heads is {num_heads!r}: expected a divisor of embed_dim = {embed_dim!r}")
        self.bias = bias
        self.is_causal = is_causal
        rng = rng or default_generator(Purpose.INITIALISE)
        self.in_proj_weight = Parameter(np.empty((3 * embed_dim, embed_dim), np.float32))
        self.in_proj_bias = Parameter(np.empty(3 * embed_dim, np.float32)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, rng=rng)
        self.reset_parameters(rng)

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return 4 * volume(arguments["embed_dim"]) ** 2

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw as PyTorch does: by Glorot's rule over all three, biases 0. `out_proj` is a layer of its own."""
        xavier_uniform_(self.in_proj_weight, rng)
        if self.in_proj_bias is not None:
            zeros_(self.in_proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.embed_dim:
            raise ValueError(f"MultiheadAttention got shape {x.shape}: expected (n, t, {self.embed_dim})")
        samples, places, features = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (n, t, 3·features)
        apart = projected.reshape(samples, places, 3, self.num_heads, features // self.num_heads)
        query, key, value = apart.permute(2, 0, 3, 1, 4)  # each (n, heads, t, features of a head)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return self.out_proj(seen.permute(0, 2, 1, 3).reshape(samples, places, features))

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, bias={self.bias}, is_causal={self.is_causal}"


@layer(repeatable=True)
class TransformerEncoderLayer(Module):
    """Attention, then two linear layers per position, each with a residual: (n, t, d_model) to the same shape.

    Vaswani et al., 2017, section 3.1; with `norm_first` the normalisation comes before each, which trains deeper nets
    without a warm-up (Xiong et al., "On layer normalization in the Transformer architecture", ICML 2020). `is_causal`
    is that of `MultiheadAttention`. Raises ValueError if `nhead` does not divide `d_model`, for an `activation` other
    than "relu" and "gelu", and for an input of another shape.

    Differs from PyTorch: batches come first, as with `batch_first=True`; dropout, if there is any, leaves the attention
    weights alone; there is no `layer_norm_eps` and no `bias`.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Literal["relu", "gelu"] = "relu",
        norm_first: bool = False,
        is_causal: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ("relu", "gelu"):
            raise ValueError(f"activation is {activation!r}: expected 'relu' or 'gelu'")
        self.d_model = positive(d_model, "d_model")
        self.nhead = positive(nhead, "nhead")
        self.dim_feedforward = positive(dim_feedforward, "dim_feedforward")
        self.dropout = dropout
        self.activation = activation
        self.norm_first = norm_first
        self.is_causal = is_causal
        self.self_attn = MultiheadAttention(d_model, nhead, is_causal=is_causal)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.dropout_inside = _dropout(dropout)
        self.dropout1 = _dropout(dropout)
        self.dropout2 = _dropout(dropout)

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        width, inner = volume(arguments["d_model"]), volume(arguments["dim_feedforward"])
        return 4 * width**2 + 2 * width * inner

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self._attention(self.norm1(x))
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attention(x))
        return self.norm2(x + self._feed_forward(x))

    def _attention(self, x: Tensor) -> Tensor:
        return self.dropout1(self.self_attn(x))

    def _feed_forward(self, x: Tensor) -> Tensor:
        curve = F.relu if self.activation == "relu" else F.gelu
        return self.dropout2(self.linear2(self.dropout_inside(curve(self.linear1(x)))))

    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, {self.nhead}, dim_feedforward={self.dim_feedforward}, dropout={self.dropout}, "
            f"activation={self.activation!r}, norm_first={self.norm_first}, is_causal={self.is_causal}"
        )


def _dropout(p: float) -> Module:
    """Return Dropout only if it is needed: a model without it needs no generators for each micro-batch."""
    return Dropout(p) if p else Identity()

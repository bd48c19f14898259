"""Tables of vectors: looked up by index, or by the place in a sequence."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.initializers import normal_
from lockstep.common.nn.layers.sizes import positive, volume
from lockstep.common.nn.module import Module, Parameter, layer
from lockstep.common.numerics.random import Purpose, default_generator


class _Table(Module):
    """The common part of the layers: a table of vectors, drawn from N(0, 1)."""

    weight: Parameter

    def __init__(self, rows: int, embedding_dim: int, rng: np.random.Generator | None) -> None:
        super().__init__()
        self.embedding_dim = positive(embedding_dim, "embedding_dim")
        self.weight = Parameter(np.empty((rows, embedding_dim), np.float32))
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return math.prod(map(volume, arguments.values()))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        normal_(self.weight, rng)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, {self.embedding_dim}"


@layer(repeatable=True)
class Embedding(_Table):
    """Rows of `weight` (num_embeddings, embedding_dim), drawn from N(0, 1): integer (...) to (..., embedding_dim).

    Raises ValueError for a size below 1, TypeError for an input that is not integers, IndexError for one that has no
    row.

    Differs from PyTorch: there is no `padding_idx`, no `max_norm` (so no `norm_type`), no `scale_grad_by_freq`, and no
    `sparse` gradient.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng: np.random.Generator | None = None) -> None:
        self.num_embeddings = positive(num_embeddings, "num_embeddings")
        super().__init__(self.num_embeddings, embedding_dim, rng)

    def forward(self, indices: Tensor | NDArray[np.int64]) -> Tensor:
        return F.embedding(indices, self.weight)


@layer(repeatable=True)
class PositionalEmbedding(_Table):
    """Adds a learned vector to each position of a sequence: (n, t, embedding_dim) to the same shape.

    `weight` (num_positions, embedding_dim) is drawn from N(0, 1), and its first t rows are used, as in Gehring et al.,
    "Convolutional sequence to sequence learning", ICML 2017, section 3.1. Raises ValueError for a size below 1, and for
    a sequence that is longer than `num_positions`.

    Differs from PyTorch: PyTorch has no such layer.
    """

    def __init__(self, num_positions: int, embedding_dim: int, *, rng: np.random.Generator | None = None) -> None:
        self.num_positions = positive(num_positions, "num_positions")
        super().__init__(self.num_positions, embedding_dim, rng)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] > self.num_positions:
            raise ValueError(
                f"PositionalEmbedding got shape {x.shape}: expected (n, t, {self.embedding_dim}) with at most "
                f"{self.num_positions} places"
            )
        return x + self.weight[: x.shape[1]]

"""Tables of vectors: looked up by index, or by the place in a sequence."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.initializers import normal_
from lockstep.common.nn.layers.sizes import positive, volume
from lockstep.common.nn.module import Module, Parameter, layer
from lockstep.common.random import Purpose, default_generator


@layer(repeatable=True)
class Embedding(Module):
    """Rows of `weight` (num_embeddings, embedding_dim), drawn from N(0, 1): integer (...) to (..., embedding_dim).

    Raises ValueError for a size below 1, TypeError for an input that is not integers, IndexError for one that has no
    row.

    Differs from PyTorch: there is no `padding_idx`, no `max_norm` (so no `norm_type`), no `scale_grad_by_freq`, and no
    `sparse` gradient.
    """

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.num_embeddings = positive(num_embeddings, "num_embeddings")
        self.embedding_dim = positive(embedding_dim, "embedding_dim")
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return volume(arguments["num_embeddings"]) * volume(arguments["embedding_dim"])

    def reset_parameters(self, rng: np.random.Generator) -> None:
        normal_(self.weight, rng)

    def forward(self, indices: Tensor | NDArray[np.int64]) -> Tensor:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


@layer(repeatable=True)
class PositionalEmbedding(Module):
    """Adds a learned vector to each position of a sequence: (n, t, embedding_dim) to the same shape.

    `weight` (num_positions, embedding_dim) is drawn from N(0, 1), and its first t rows are used, as in Gehring et al.,
    "Convolutional sequence to sequence learning", ICML 2017, section 3.1. Raises ValueError for a size below 1, and for
    a sequence that is longer than `num_positions`.

    Differs from PyTorch: PyTorch has no such layer.
    """

    weight: Parameter

    def __init__(self, num_positions: int, embedding_dim: int, *, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.num_positions = positive(num_positions, "num_positions")
        self.embedding_dim = positive(embedding_dim, "embedding_dim")
        self.weight = Parameter(np.empty((num_positions, embedding_dim), np.float32))
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @staticmethod
    def count_values(arguments: Mapping[str, Any]) -> int:
        return volume(arguments["num_positions"]) * volume(arguments["embedding_dim"])

    def reset_parameters(self, rng: np.random.Generator) -> None:
        normal_(self.weight, rng)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] > self.num_positions:
            raise ValueError(
                f"PositionalEmbedding got shape {x.shape}: expected (n, t, {self.embedding_dim}) with at most "
                f"{self.num_positions} places"
            )
        return x + self.weight[: x.shape[1]]

    def extra_repr(self) -> str:
        return f"{self.num_positions}, {self.embedding_dim}"

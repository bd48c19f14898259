"""A table of vectors, looked up by index."""

import numpy as np
from numpy.typing import NDArray

from common.autograd import functional as F
from common.autograd.tensor import Tensor
from common.nn.initializers import normal_
from common.nn.module import Module
from common.nn.parameter import Parameter
from common.nn.seeding import default_generator
from common.nn.sizes import positive
from common.randomness import Purpose


class Embedding(Module):
    """Rows of `weight` (num_embeddings, embedding_dim), drawn from N(0, 1): integer (...) to (..., embedding_dim)."""

    weight: Parameter

    def __init__(self, num_embeddings: int, embedding_dim: int, *, rng: np.random.Generator | None = None) -> None:
        super().__init__()
        self.num_embeddings = positive(num_embeddings, "num_embeddings")
        self.embedding_dim = positive(embedding_dim, "embedding_dim")
        self.weight = Parameter(np.empty((num_embeddings, embedding_dim), np.float32))
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        normal_(self.weight, rng)

    def forward(self, indices: Tensor | NDArray[np.int64]) -> Tensor:
        return F.embedding(indices, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"

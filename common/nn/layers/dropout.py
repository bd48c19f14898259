"""Dropout, whose mask depends on where in the run it is drawn and on nothing else."""

import numpy as np

from common.autograd import functional as F
from common.autograd.tensor import Tensor
from common.nn.module import Stochastic


class Dropout(Stochastic):
    """In training, zero each element with probability `p` and divide the others by 1 - p; any shape.

    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15, 2014. Draws from
    its own generator once reseeded by `Module.reseed`, and until then from `rng` or the default one (`nn.manual_seed`).
    """

    def __init__(self, p: float = 0.5, *, rng: np.random.Generator | None = None) -> None:
        super().__init__(rng)
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout probability is {p!r}: expected a number in [0, 1]")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training, self.rng)

    def extra_repr(self) -> str:
        return f"p={self.p}"

"""Joins axes into one."""

from common.autograd.tensor import Tensor
from common.nn.module import Module


class Flatten(Module):
    """Join the axes from `start_dim` to `end_dim`, both included: by default (n, ...) to (n, product of the rest)."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"

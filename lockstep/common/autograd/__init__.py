"""Automatic differentiation on NumPy arrays, in PyTorch's manner."""

from lockstep.common.autograd.graph import detect_in_place, enable_grad, no_grad
from lockstep.common.autograd.tensor import Tensor, apply

__all__ = ["Tensor", "apply", "detect_in_place", "enable_grad", "no_grad"]

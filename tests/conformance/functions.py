"""The functions of PyTorch's table of operations that Lockstep has, and how a sample of each is called."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lockstep.common.autograd import functional as F

#: A function with PyTorch's arguments.
Function = Callable[..., Any]


def _renamed(function: Function, **names: str) -> Function:
    """Return a function whose arguments have PyTorch's names."""
    return lambda *args, **given: function(*args, **{names.get(name, name): value for name, value in given.items()})


def _batch_norm(x: Any, mean: Any, var: Any, *rest: Any, **given: Any) -> Any:
    """Return the normalised batch, with copies of the running statistics, as they may be changed."""
    first, second = (None if each is None else np.array(each.data) for each in (mean, var))
    return F.batch_norm(x, first, second, *rest, **given)


def _listed(function: Function) -> Function:
    """Return a function that takes sizes one by one, or as one list."""
    return lambda x, *sizes, **given: function(
        x, *([sizes] if all(isinstance(each, int) for each in sizes) else sizes), **given
    )


#: By PyTorch's name, with the name of a variant behind a colon as in the table.
FUNCTIONS: Mapping[str, Function] = {
    "abs": F.abs,
    "add": F.add,
    "amax": F.max,
    "amin": F.min,
    "broadcast_to": F.broadcast_to,
    "cat": F.cat,
    "clamp": F.clamp,
    "div": F.divide,
    "exp": F.exp,
    "flatten": F.flatten,
    "log": F.log,
    "log_softmax": F.log_softmax,
    "matmul": F.matmul,
    "maximum": F.maximum,
    "mean": F.mean,
    "minimum": F.minimum,
    "mul": F.multiply,
    "neg": F.negate,
    "permute": F.permute,
    "pow": F.power,
    "reshape": F.reshape,
    "sigmoid": F.sigmoid,
    "softmax": F.softmax,
    "split": _renamed(F.split, split_size_or_sections="sizes"),
    "sqrt": F.sqrt,
    "squeeze": F.squeeze,
    "stack": F.stack,
    "sub": F.subtract,
    "sum": F.sum,
    "tanh": F.tanh,
    "transpose": F.transpose,
    "unsqueeze": F.unsqueeze,
    "var": _renamed(F.var, unbiased="correction"),
    "view": _listed(F.reshape),
    "where": lambda x, condition, other: F.where(condition, x, other),
    "nn.functional.adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "nn.functional.adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "nn.functional.avg_pool1d": F.avg_pool1d,
    "nn.functional.avg_pool2d": F.avg_pool2d,
    "nn.functional.batch_norm": _batch_norm,
    "nn.functional.binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "nn.functional.conv1d": F.conv1d,
    "nn.functional.conv2d": F.conv2d,
    "nn.functional.cross_entropy": F.cross_entropy,
    "nn.functional.embedding": lambda weight, indices, **given: F.embedding(indices, weight, **given),
    "nn.functional.gelu": F.gelu,
    "nn.functional.l1_loss": F.l1_loss,
    "nn.functional.layer_norm": F.layer_norm,
    "nn.functional.leaky_relu": F.leaky_relu,
    "nn.functional.linear": F.linear,
    "nn.functional.max_pool1d": F.max_pool1d,
    "nn.functional.max_pool2d": F.max_pool2d,
    "nn.functional.mse_loss": F.mse_loss,
    "nn.functional.nll_loss": F.nll_loss,
    "nn.functional.pad": F.pad,
    "nn.functional.relu": F.relu,
    "nn.functional.scaled_dot_product_attention": F.scaled_dot_product_attention,
    "nn.functional.smooth_l1_loss": F.smooth_l1_loss,
    "nn.functional.softplus": F.softplus,
}

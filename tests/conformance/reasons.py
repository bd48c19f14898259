"""The reasons for which calls of PyTorch are refused.

docs/reference/api/differences.md is made from this list. It knows neither PyTorch nor the functions.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

#: The name of a function, its positional arguments and its other arguments, and the error that it raised.
Sample = tuple[str, Sequence[Any], Mapping[str, Any], Exception]


class Reason(msgspec.Struct, frozen=True):
    """A documented difference."""

    #: The refused feature, as PyTorch calls it.
    feature: str
    #: The way to do it instead.
    instead: str
    #: Functions of which it holds; empty for all.
    functions: tuple[str, ...] = ()
    #: Arguments with which it holds, by name.
    arguments: tuple[str, ...] = ()
    #: Words of the error with which it is refused, one of which has to be there.
    words: tuple[str, ...] = ()
    #: Whether the call is not refused, and has another result.
    is_other_result: bool = False

    def explains(self, sample: Sample) -> bool:
        """Tell whether a refused sample is refused for this reason."""
        name, _, given, error = sample
        if self.is_other_result or (self.functions and name not in self.functions):
            return False
        is_named = not self.arguments or any(argument in given for argument in self.arguments)
        text = f"{type(error).__name__}: {error}"
        return is_named and (not self.words or any(word in text for word in self.words))


#: In the order in which they are tried: the first one that explains a sample counts.
REASONS = (
    Reason("`out=`, `dtype=`, `device=`", "assign the result, or use `Tensor.astype`", arguments=("out", "dtype")),
    Reason(
        "`alpha` of `add` and `sub`",
        "`x + alpha * other`",
        ("add", "sub"),
        ("alpha",),
    ),
    Reason("`rounding_mode` of `div`", "round NumPy's result", ("div",), ("rounding_mode",)),
    Reason(
        "complex and integer operands where a gradient flows",
        "float32 or float64",
        words=("cannot hold", "cannot require a gradient", "complex"),
    ),
    Reason(
        "`dilation`, `return_indices`, `count_include_pad` and `divisor_override` of pooling layers",
        "the functions in `lockstep.F`, which have them",
        words=("return_indices", "'dilation'", "divisor_override", "count_include_pad"),
    ),
    Reason(
        "steps first in `nn.TransformerEncoderLayer`",
        "batches come first, as with `batch_first=True`",
        ("nn.TransformerEncoderLayer",),
        is_other_result=True,
    ),
    Reason(
        "`query`, `key` and `value` of `nn.MultiheadAttention`, its masks and its weights",
        "`F.scaled_dot_product_attention`",
        ("nn.MultiheadAttention", "nn.TransformerEncoderLayer"),
    ),
    Reason("`track_running_stats`", "`layer.eval()`", ("nn.BatchNorm1d", "nn.BatchNorm2d"), words=("arguments",)),
    Reason("`momentum=None` of BatchNorm", "a number", words=("momentum is None",)),
    Reason("`padding_mode` and named padding of convolutional layers", "`F.pad`", ("nn.Conv1d", "nn.Conv2d")),
    Reason(
        "`weight` of `mse_loss`, `l1_loss` and of binary cross-entropy; `size_average`, `reduce`",
        'multiply the losses of `reduction="none"`',
        words=("'weight'", "size_average", "'reduce'"),
    ),
    Reason(
        "targets of another shape than the prediction, which PyTorch broadcasts",
        "reshape one of them",
        words=("expected the same shape",),
    ),
    Reason("`beta=0` of `smooth_l1_loss`", "`F.l1_loss`", words=("with 0 it is l1_loss",)),
    Reason(
        "`padding_idx`, `max_norm`, `norm_type`, `scale_grad_by_freq` and `sparse` of embeddings",
        "multiply the rows of the padding by 0",
        words=("padding_idx", "max_norm", "scale_grad_by_freq", "sparse"),
    ),
    Reason("`dropout_p`, `enable_gqa` of attention", "`F.dropout`; repeat the keys", words=("dropout_p", "enable_gqa")),
    Reason("`proj_size` and `PackedSequence` of recurrent layers", "`lengths=`", words=("proj_size", "PackedSequence")),
    Reason(
        "`bias` of normalizations",
        "set the layer's `bias` to None",
        words=("unexpected keyword argument 'bias'",),
    ),
    Reason(
        "None in the size of `nn.AdaptiveAvgPool2d`",
        "`F.adaptive_avg_pool2d`, which takes it",
        words=("output_size is None",),
    ),
    Reason(
        "the input of `nn.Linear` by its name", "its first argument", words=("unexpected keyword argument 'input'",)
    ),
    Reason(
        "normalizations over a batch without samples, or without an axis of channels",
        "skip such a batch",
        words=("got no samples", "expected (batch, channels, ...)"),
    ),
    Reason(
        "`(1,)` and `()` as the sizes of a pool along two axes",
        "one number, or two",
        words=("expected an integer or two of them",),
    ),
    Reason(
        "exported to ONNX: adaptive pools of sizes that do not divide, and dilated pools with `ceil_mode`",
        "sizes that divide; `ceil_mode=False`",
        words=("adaptive average pooling from", "whose last window is cut off"),
    ),
    Reason(
        "exported to ONNX: bounds of `clip` that are tensors, and `beta` of `softplus` below 0",
        "numbers; `F.maximum` and `F.minimum`",
        words=("not only through primitives of this library",),
    ),
    Reason("`unbiased` of `var` by its place", "`correction=`", words=("the correction of a variance has a name",)),
    Reason("modes of `pad` with a width that does not fit the rest", "`F.pad` twice", words=("does not fit mode",)),
    Reason("the largest and the smallest of no elements", "skip them", words=("zero-size array to reduction",)),
)


def reason_for(sample: Sample) -> Reason | None:
    """Return the documented reason for which a sample is refused, or None."""
    return next((each for each in REASONS if each.explains(sample)), None)


def reason_for_result(name: str) -> Reason | None:
    """Return the documented reason for which a function has another result, or None."""
    return next((each for each in REASONS if each.is_other_result and name in each.functions), None)


def rows() -> Iterator[tuple[str, str]]:
    """Yield each missing feature, and the way to do it instead."""
    return ((each.feature, each.instead) for each in REASONS)

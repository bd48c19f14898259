"""The leaves: all functions of arrays whose bits could depend on a processor or a library. Primitives call these alone.

Each has two implementations: NumPy's, and the kernels, whose bits are everywhere those of the contract
(docs/reference/numerics.md). Operations that IEEE 754 fixes need no leaf: + - * /, roots, comparisons, copies. The
contract is about float32; NumPy computes arrays of other types in any case. Knows no primitive and no tape.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

import msgspec
import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from numpy.typing import NDArray

from lockstep.common.numerics.choice import kernels_here, prefer_numerics
from lockstep.common.numerics.kernel_leaves import KERNELS
from lockstep.common.numerics.kernels.calls import Calls
from lockstep.common.numerics.numpy_leaves import NUMPY
from lockstep.common.numerics.operands import Mean
from lockstep.common.runtime.numerics import own_numerics

# Native ones if there are no kernels here: a process may compute before it knows of any job.
prefer_numerics(own_numerics())

#: The version of the contract: a part of the numerics of a run.
CONTRACT_VERSION = 1

Array = NDArray[Any]
Axis = int | tuple[int, ...] | None

#: A call whose arguments are fixed; it can be repeated.
Instruction = Callable[[], Any]


class CallKind(Enum):
    """The treatment of a stack of operands, which have one more axis in front."""

    #: Computes each element of its result from those in the same place: a stack at once, with the same bits.
    ELEMENTWISE = auto()
    #: Multiplies matrices, the last two axes: a stack at once, matrix by matrix, each in its own shape.
    PRODUCT = auto()
    #: Reduces axes, which are an operand behind the arrays: those of a stack at once, each in its own order.
    REDUCTION = auto()
    #: Anything else: one after the other.
    ALONE = auto()


class LeafFunction(msgspec.Struct, frozen=True, eq=False):
    """A leaf: `function(*arrays, out=None, options=())` returns the result, which is `out` if that is given."""

    name: str
    kind: CallKind
    #: Returns new memory for the result of arrays and options.
    make: Callable[..., Array]
    #: The places among the operands of whole numbers, of int64.
    indices: tuple[int, ...] = ()

    def __call__(self, *arrays: Array, out: Array | None = None, options: tuple[Any, ...] = ()) -> Array:
        for each in (*arrays, out):
            # An array that records its own use: see `TapedArray`.
            if isinstance(each, np.ndarray) and type(each).__array_function__ is not np.ndarray.__array_function__:
                recorded: Array = each.__array_function__(self, (type(each),), arrays, {"out": out, "options": options})
                return recorded
        arrays = tuple(each if type(each) is np.ndarray else np.asarray(each) for each in arrays)
        result = self.make(*arrays, *options) if out is None else out
        self.bind(*arrays, result, *options)()
        return result

    def bind(self, *operands: Any) -> Instruction:
        """Return the call with these arrays, the result that it fills, and options; all shapes and types are checked.

        The numerics are those that this process has now. Raises ValueError for shapes that do not fit together.
        """
        is_exact = own_numerics() == "portable" and all(
            each.dtype == (np.int64 if place in self.indices else np.float32)
            for place, each in enumerate(operands)
            if isinstance(each, np.ndarray)
        )
        return (KERNELS if is_exact else NUMPY)[self.name](*operands)


def joined(instructions: Sequence[Instruction]) -> list[Instruction]:
    """Return the same instructions, those of kernels that follow one another as one."""
    found: list[Instruction] = []
    run: list[Calls] = []
    for each in [*instructions, None]:
        if isinstance(each, Calls):
            run.append(each)
            continue
        if run:
            found.append(run[0].joined(run[1:]))
            run = []
        if each is not None:
            found.append(each)
    return found


def _like(*arrays: Array) -> Array:
    x = arrays[-1]
    return np.empty_like(x, dtype=None if x.dtype.kind == "f" else np.float64, subok=False)


def _function(name: str) -> LeafFunction:
    return LeafFunction(name, CallKind.ELEMENTWISE, _like)


exp = _function("exp")
log = _function("log")
log1p = _function("log1p")
tanh = _function("tanh")
sigmoid = _function("sigmoid")
erf = _function("erf")

#: The rectifier, and its gradient by its result: `relu_gradient(gradient, result)`.
relu = _function("relu")
relu_gradient = _function("relu_gradient")


def _power(base: Array, exponent: Array) -> Array:
    shape = np.broadcast_shapes(base.shape, exponent.shape)
    return np.empty(shape, np.result_type(base, exponent))


_power_of = LeafFunction("power", CallKind.ELEMENTWISE, _power)


def power(base: Array | float, exponent: Array | float) -> Array:
    """Return `base ** exponent`, broadcast; a Python number takes the dtype of the other operand.

    Exponents that are the numbers 0.5, 1, 2 and -1 are root, copy, square and reciprocal.
    """
    if isinstance(exponent, int | float) and isinstance(base, np.ndarray) and exponent in _SHORT:
        short: Array = _SHORT[exponent](base)
        return short
    dtype = np.result_type(base, exponent)
    one, other = (np.asanyarray(each, dtype) for each in (base, exponent))
    shape = np.broadcast_shapes(one.shape, other.shape)
    return _power_of(np.broadcast_to(one, shape, subok=True), np.broadcast_to(other, shape, subok=True))


#: Powers that IEEE 754 fixes.
_SHORT: dict[float, Callable[[Array], Array]] = {
    0.5: np.sqrt,
    1: np.positive,
    2: np.square,
    -1: np.reciprocal,
}


def _summed(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if keepdims or axis not in axes]
    return np.empty(shape, x.dtype if x.dtype.kind == "f" else np.add.reduce(np.empty(0, x.dtype)).dtype)


_sum = LeafFunction("sum", CallKind.REDUCTION, _summed)


def total(x: Array, axis: Axis = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """Return the sums over axes, those that are left out with size 1 if `keepdims`; over all for None."""
    every = tuple(range(x.ndim))
    axes = every if axis is None or not every else tuple(sorted(normalize_axis_tuple(axis, x.ndim)))
    return _sum(x, out=out, options=(axes, keepdims))


def mean(x: Array, axis: Axis = None, keepdims: bool = False) -> Array:
    """Return the sums over axes divided by their counts, which are at least 1."""
    sums = total(x, axis, keepdims)
    return np.divide(sums, max(1, x.size // max(1, sums.size)), out=sums)


def _multiplied(left: Array, right: Array, bias: Array | None = None) -> Array:
    stack = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return np.empty((*stack, left.shape[-2], right.shape[-1]), np.result_type(left, right))


#: `matrix_product(left, right, out=None)` of (..., m, k) and (..., k, n); a third array (m,) is added to each row.
matrix_product = LeafFunction("product", CallKind.PRODUCT, _multiplied)


def product(left: Array, right: Array, out: Array | None = None) -> Array:
    """Return the product of (..., m, k) and (..., k, n), or of vectors, as `np.matmul` does.

    Raises ValueError if the shapes do not fit together.
    """
    if not left.ndim or not right.ndim or left.shape[-1] != right.shape[-2 if right.ndim > 1 else 0]:
        raise ValueError(
            f"a product got shapes {left.shape} and {right.shape}: expected (..., m, k) and (..., k, n), where the "
            "last axis of the first is as long as the last but one of the second"
        )
    if left.ndim > 1 and right.ndim > 1:
        return matrix_product(left, right, out=out)
    rows = left if left.ndim > 1 else left[np.newaxis, :]
    columns = right if right.ndim > 1 else right[:, np.newaxis]
    result = matrix_product(rows, columns)
    result = result if left.ndim > 1 else result[..., 0, :]
    return result if right.ndim > 1 else result[..., 0]


def _no_memory(*_: Any) -> Array:
    raise AssertionError("the memory of the result is given")


#: `product_sum(lefts, rights, out=sum, options=(adds,))`: the sum over the tree of products of (count, m, k) and
#: (count, k, n), written to (m, n) or added to its values.
product_sum = LeafFunction("product_sum", CallKind.ALONE, _no_memory)

#: `convolution(x, kernels, out=result, options=(windows, groups))`: images (G·C, height, width, N), with their padding,
#: correlated with kernels (G·O, C, kh, kw) to (G·O, oh, ow, N); a third array (G·O,) is added to each kernel's result.
#: `convolution_to_input(gradient, kernels, …)` is the gradient of the images without their padding, from that of the
#: result, and `convolution_to_kernels(gradient, x, …)` that of the kernels.
convolution = LeafFunction("convolution", CallKind.ALONE, _no_memory)
convolution_to_input = LeafFunction("convolution_to_input", CallKind.ALONE, _no_memory)
convolution_to_kernels = LeafFunction("convolution_to_kernels", CallKind.ALONE, _no_memory)

#: `max_pool(x, out=pooled, options=(windows,))`: the largest element of each window of images (channels, height, width,
#: N), (channels, oh, ow, N). `max_pool_gradient(gradient, x, pooled, …)` is the gradient of the images: that of each
#: window goes to the first of its largest elements in row-major order, summed where they meet.
max_pool = LeafFunction("max_pool", CallKind.ALONE, _no_memory)
max_pool_gradient = LeafFunction("max_pool_gradient", CallKind.ALONE, _no_memory)


#: -log softmax(scores)[target] of each sample, of scores (classes, samples): `cross_entropy(scores, targets,
#: options=(smoothing,))`. With smoothing ε a target is 1 - ε of its class, and ε of all classes evenly. The gradient of
#: the scores is `cross_entropy_gradient(scores, targets, gradient, options=(smoothing,))`.
cross_entropy = LeafFunction(
    "cross_entropy", CallKind.ALONE, lambda scores, *_: np.empty(scores.shape[1], scores.dtype), indices=(1,)
)
cross_entropy_gradient = LeafFunction(
    "cross_entropy_gradient", CallKind.ALONE, lambda scores, *_: np.empty(scores.shape, scores.dtype), indices=(1,)
)

#: `add_rows(gradient, indices, out=rows)`: each row of the gradient (uses, width) is added to that of (rows, width)
#: that its index names, in order. Raises IndexError for an index that is not a row.
add_rows = LeafFunction("add_rows", CallKind.ALONE, _no_memory, indices=(1,))

#: All steps of a recurrent layer, and their gradients. They are bound; each array lies row after row. Both begin with
#: x (steps, batch, features) and its weights (gates · hidden, features), and end with the length of each sequence
#: (batch,) or None, the weights of the state (gates · hidden, hidden), gates (steps, batch, gates · hidden), curves
#: (steps, batch, hidden), which are tanh of an LSTM's cells or products of a GRU's candidate with the state, cells and
#: states (steps + 1, batch, hidden), a kind of `GATES`, and whether the last step is made first. In between are
#: - of `recurrent`: biases of the input and of the state, (gates · hidden,) or None;
#: - of `recurrent_gradient`: the gradient of the result (steps, batch, hidden), that of the last state and cell (2,
#:   batch, hidden), over which those of the first ones are written; and the arrays that it fills: gradients of gates,
#:   of x or None, of both weights, and of both biases (2, gates · hidden).
#: The first state and cell are given, where the order of the steps begins.
recurrent = LeafFunction("recurrent", CallKind.ALONE, _no_memory, indices=(4,))
recurrent_gradient = LeafFunction("recurrent_gradient", CallKind.ALONE, _no_memory, indices=(9,))


def bind_momentum(
    weights: Array,
    velocities: tuple[Array | None, Array | None],
    out: Array,
    *,
    momentum: float,
    weight_decay: float,
    is_nesterov: bool,
) -> Callable[[Mean, float], bool]:
    """Return an update of these vectors, a function of the mean gradient and of the rate that may be repeated.

    It writes `weights - rate * v` to `out`, and v = momentum * old + gradient to the second of `velocities` (old, new),
    and tells whether all of `out` is finite. `weight_decay * weights` is added to the gradient first; the memory of the
    mean may be overwritten. Without velocities v is the gradient; Nesterov's variant follows gradient + momentum * v
    instead of v. All of it, the division included, is one pass of a kernel: with native numerics too, if there are
    kernels here, since each of its operations is rounded as NumPy's.
    """
    old, new = velocities
    is_float32 = all(each is None or each.dtype == np.float32 for each in (weights, old, out, new))
    leaves = KERNELS if is_float32 and not kernels_here().obstacle else NUMPY
    bound: Callable[[Mean, float], bool] = leaves["momentum"](
        weights, old, out, new, momentum, weight_decay, is_nesterov
    )
    return bound

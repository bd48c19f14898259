"""The leaves by the kernels: portable numerics, whose bits are those of the contract on every processor.

A call is a row: the operation, sizes, strides in elements, arrays. Everything is checked here before it is made: types,
shapes, and that each operand lies as its kernel reads it; what does not is copied first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product as cartesian
from typing import Any

import numpy as np

from lockstep.common.numerics.kernels.calls import Argument, Array, Calls, Written, pinned, place_of, scratch, sizes_of
from lockstep.common.numerics.kernels.library import load
from lockstep.common.numerics.numpy_leaves import NUMPY
from lockstep.common.numerics.operands import GATES, Mean, Windows

Instruction = Callable[..., Any]

#: Operations, as in kernels/source/calls.c.
OPERATIONS = (
    "product", "stack", "sum", "convolution", "convolution_to_input", "convolution_to_kernels", "exp", "log", "log1p",
    "tanh", "sigmoid", "erf", "power", "relu", "relu_gradient", "max_pool", "max_pool_gradient",
    "add_rows", "cross_entropy", "cross_entropy_gradient", "recurrent", "recurrent_gradient",
)  # fmt: skip
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}

#: Products that one sum over a tree can add.
MOST_PRODUCTS = 1 << 20

#: Elements that a call reads or puts together in scratch memory, whose size in C does not overflow then.
MOST_ELEMENTS = 1 << 40

#: Classes whose numbers a float32 can have.
MOST_CLASSES = 1 << 24


def _calls(rows: Iterable[Sequence[Argument]]) -> Calls:
    return Calls.of(load().functions.ls_run, rows)


def _in_order(*instructions: Instruction) -> Instruction:
    """Return one instruction for several."""

    def run() -> None:
        for instruction in instructions:
            instruction()

    return instructions[0] if len(instructions) == 1 else run


def _strides(array: Array) -> tuple[int, ...]:
    """Return strides in elements, 1 along an axis of one element."""
    return tuple(stride // 4 if size > 1 else 1 for size, stride in zip(array.shape, array.strides, strict=True))


def _has_rows(array: Array) -> bool:
    """Tell whether the elements of each row of a matrix are neighbours."""
    # An aligned array has all elements at multiples of four bytes.
    return array.flags.aligned and _strides(array)[-1] == 1


def _is_flat(array: Array) -> bool:
    """Tell whether the elements are neighbours in row-major order."""
    return array.flags.c_contiguous and array.flags.aligned


def _flat(arrays: Sequence[Array], written: int) -> tuple[list[Argument], list[Instruction], list[Instruction]]:
    """Return flat arrays in place of these, the written one apart from the others; what fills the copies before a call;
    and what copies the result after it.
    """
    lying = [each if _is_flat(each) else np.empty(each.shape, each.dtype) for each in arrays]
    result, others = arrays[written], [*lying[:written], *lying[written + 1 :]]
    if any(_shares(lying[written], each) for each in others):
        lying[written] = np.empty(result.shape, result.dtype)
    copied = [(copy, each) for copy, each in zip(lying, arrays, strict=True) if copy is not each]
    before: list[Instruction] = [partial(np.copyto, copy, each) for copy, each in copied if each is not result]
    after: list[Instruction] = [partial(np.copyto, result, copy) for copy, each in copied if each is result]
    return [Written(each) if place == written else each for place, each in enumerate(lying)], before, after


def _prepared(array: Array) -> tuple[Array, list[Instruction]]:
    """Return an array that lies as a product reads it, and what fills it."""
    if _has_rows(array) or _has_rows(array.swapaxes(-1, -2)):
        return array, []
    copy = np.empty(array.shape, array.dtype)
    return copy, [partial(np.copyto, copy, array)]


def _product(left: Array, right: Array, *rest: Array) -> Instruction:
    """Multiply (..., m, k) with (..., k, n), stacks are broadcast; and add a bias (m,) to each row, if there is one."""
    *biases, out = rest
    bias = biases[0] if biases else None
    (rows, terms), columns = left.shape[-2:], right.shape[-1]
    stack = out.shape[:-2]
    _check(right.shape[-2] == terms and out.shape[-2:] == (rows, columns), "product", left, right, out)
    _check(bias is None or bias.shape == (rows,), "product", left, right, *rest)
    left, before = _prepared(np.broadcast_to(left, (*stack, rows, terms)))
    right, also_before = _prepared(np.broadcast_to(right, (*stack, terms, columns)))
    target, after = out, list[Instruction]()
    if not _has_rows(out) or any(_shares(out, each) for each in (left, right, *biases)):
        target = np.empty(out.shape, out.dtype)
        after = [partial(np.copyto, out, target)]
    if not out.size:
        return _in_order()
    if bias is not None and not _is_flat(bias):
        bias = np.empty(bias.shape, bias.dtype)
        also_before.append(partial(np.copyto, bias, biases[0]))
    return _in_order(*before, *also_before, _stack(left, right, target, bias), *after)


def _stack(left: Array, right: Array, out: Array, bias: Array | None) -> Calls:
    """Multiply stacks of one shape, which lie as they must."""
    stack = out.shape[:-2]
    steps = [_stack_step(each) for each in (left, right, out)]
    if all(step is not None for step in steps):
        places: Iterable[tuple[int, ...]] = [()]
        count, (a_step, b_step, c_step) = math.prod(stack), (step or 0 for step in steps)
    else:
        places, count, (a_step, b_step, c_step) = cartesian(*map(range, stack)), 1, (0, 0, 0)
    (rows, terms), columns = left.shape[-2:], right.shape[-1]
    a_row, a_column = _row_and_column(left)
    b_row, b_column = _row_and_column(right)
    memory = _product_scratch(count, 0 if a_step else rows, columns, terms, b_column)
    return _calls(
        (_NUMBER["stack"], count, rows, columns, terms, left[place], a_row, a_column, a_step, right[place], b_row,
         b_column, b_step, Written(out[place]), _row_and_column(out)[0], c_step, memory, bias)
        for place in places
    )  # fmt: skip


def _product_scratch(count: int, shared_rows: int, columns: int, terms: int, b_column: int) -> Array:
    """Return scratch memory for products; `shared_rows` are those of a left operand that a stack shares, or 0."""
    # Stacks that are broadcast may be larger than all memory.
    if count * columns * (shared_rows + terms) > MOST_ELEMENTS:
        sizes = f"{count} products of {terms} terms and {columns} columns"
        raise ValueError(f"{sizes} have too many elements: expected at most {MOST_ELEMENTS}")
    return scratch(load().functions.ls_product_scratch(count, shared_rows, columns, terms, b_column))


def _row_and_column(array: Array) -> tuple[int, int]:
    row, column = _strides(array)[-2:]
    # Of a single row or column, the other stride is all that counts.
    if array.shape[-2] == 1 and column == 1:
        row = max(array.shape[-1], 1)
    elif array.shape[-1] == 1 and row == 1:
        column = max(array.shape[-2], 1)
        row, column = (1, column) if array.shape[-2] > 1 else (1, 1)
    return row, column


def _stack_step(array: Array) -> int | None:
    """Return how far apart the matrices of a stack are, None if not evenly."""
    axes = _coalesced(list(zip(array.shape[:-2], array.strides[:-2], strict=True)))
    return None if len(axes) > 1 else sum(stride // 4 for _, stride in axes)


def _product_sum(lefts: Array, rights: Array, out: Array, adds: bool) -> Instruction:
    """Add the products of (count, m, k) and (count, k, n) over the tree, or to the values there."""
    (count, rows, terms), columns = lefts.shape, rights.shape[-1]
    _check(
        rights.shape == (count, terms, columns) and out.shape == (rows, columns) and 0 < count <= MOST_PRODUCTS,
        "product_sum", lefts, rights, out,
    )  # fmt: skip
    lefts, before = _prepared(lefts)
    rights, also_before = _prepared(rights)
    target, after = out, list[Instruction]()
    if not _has_rows(out) or any(_shares(out, each) for each in (lefts, rights)):
        target = np.empty(out.shape, out.dtype)
        after = [partial(np.copyto, out, target)]
        before += [partial(np.copyto, target, out)] * adds
    (a_row, a_column), (b_row, b_column) = _row_and_column(lefts), _row_and_column(rights)
    memory = _product_scratch(count, 0, columns, terms, b_column)
    a_step, b_step = (each.strides[0] // 4 if count > 1 else 0 for each in (lefts, rights))
    row = (_NUMBER["product"], count, rows, columns, terms, lefts, a_row, a_column, a_step, rights, b_row, b_column,
           b_step, Written(target), _row_and_column(target)[0], adds, memory)  # fmt: skip
    return _in_order(*before, *also_before, _calls([row]), *after)


def _sum(x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> Instruction:
    """Add up the axes, in row-major order of what they count."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    _check(out.size == math.prod(x.shape[axis] for axis in kept), "sum", x, out)
    if not out.size:
        return _in_order()
    terms = math.prod(x.shape[axis] for axis in axes)
    target = out if _is_flat(out) and not _shares(out, x) else np.empty(out.shape, out.dtype)
    after = [] if target is out else [partial(np.copyto, out, target)]
    form = _sum_form(x, kept, axes) if x.flags.aligned else None
    if form is not None:
        outer, inner, step, stride = form
        row = (_NUMBER["sum"], outer, terms, inner, step, stride, x, Written(target))
        return _in_order(_calls([row]), *after)
    copy = np.empty((*(x.shape[axis] for axis in kept), *(x.shape[axis] for axis in axes)), x.dtype)
    fill = partial(np.copyto, copy, x.transpose(*kept, *axes))
    row = (_NUMBER["sum"], out.size, terms, 1, terms, 1, copy, Written(target))
    return _in_order(fill, _calls([row]), *after)


def _sum_form(x: Array, kept: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int, int] | None:
    """Return (outer, inner, step, stride) if sums are over evenly spaced terms of what lies in a row; else None."""
    terms = _coalesced([(x.shape[axis], x.strides[axis]) for axis in axes])
    if len(terms) > 1:
        return None
    stride = terms[0][1] // 4 if terms else 1
    rest = _coalesced([(x.shape[axis], x.strides[axis]) for axis in kept])
    if not rest:
        return 1, 1, 0, stride
    if stride == 1 and len(rest) == 1:
        return rest[0][0], 1, rest[0][1] // 4, 1
    if rest[-1][1] == 4 and len(rest) <= 2:
        outer, step = (rest[0][0], rest[0][1] // 4) if len(rest) == 2 else (1, 0)
        return outer, rest[-1][0], step, stride
    return None


def _coalesced(axes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (size, stride) of axes, those put together that count evenly on; without those of one element."""
    found: list[tuple[int, int]] = []
    for size, stride in axes:
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = found[-1][0] * size, stride
        else:
            found.append((size, stride))
    return found


def _elementwise(name: str) -> Callable[..., Instruction]:
    """Return what binds a function of the elements of arrays, all of one shape."""

    def bind(*operands: Array) -> Instruction:
        *arrays, out = operands
        _check(all(each.shape == out.shape for each in arrays), name, *operands)
        if not out.size:
            return _in_order()
        target = out if _is_dense(out) else np.empty(out.shape, out.dtype)
        # A kernel may overwrite an operand, element by element, and no other part of it.
        lying = [each if _lies_as(each, target) else np.empty_like(target) for each in arrays]
        fills = [partial(np.copyto, copy, each) for copy, each in zip(lying, arrays, strict=True) if copy is not each]
        call = _calls([(_NUMBER[name], out.size, *lying, Written(target))])
        return _in_order(*fills, call, *([] if target is out else [partial(np.copyto, out, target)]))

    return bind


def _lies_as(array: Array, other: Array) -> bool:
    """Tell whether two arrays of one shape have their elements in the same order, each without gaps; and whether they
    are the same elements, or share none.
    """
    is_apart = place_of(array) == place_of(other) or not _shares(array, other)
    return is_apart and _strides(array) == _strides(other) and _is_dense(array)


def _is_dense(array: Array) -> bool:
    """Tell whether elements are neighbours, in whatever order of the axes."""
    if not array.flags.aligned:
        return False
    axes = sorted((stride, size) for size, stride in zip(array.shape, array.strides, strict=True) if size > 1)
    expected = array.itemsize
    for stride, size in axes:
        if stride != expected:
            return False
        expected *= size
    return True


def _convolution(x: Array, kernels: Array, *rest: Any) -> Instruction:
    """Bind a convolution, with a bias (G·O,) or without."""
    *biases, out, windows, groups = rest
    return _convolve("convolution", x, kernels, out, windows, groups, *biases)


def _convolution_to_input(gradient: Array, kernels: Array, out: Array, windows: Windows, groups: int) -> Instruction:
    return _convolve("convolution_to_input", out, kernels, gradient, windows, groups)


def _convolution_to_kernels(gradient: Array, x: Array, out: Array, windows: Windows, groups: int) -> Instruction:
    return _convolve("convolution_to_kernels", x, out, gradient, windows, groups)


def _convolve(
    name: str, x: Array, kernels: Array, y: Array, windows: Windows, groups: int, bias: Array | None = None
) -> Instruction:
    """Bind a convolution of images (G·C, height, width, N) with kernels (G·O, C, kh, kw), or one of its gradients."""
    (channels, *size, images), (outputs, depth, *kernel) = x.shape, kernels.shape
    fits = all(min(each.kernel, each.stride, each.dilation) >= 1 and each.padding >= 0 for each in windows)
    fits = fits and groups >= 1 and channels == groups * depth and outputs % groups == 0
    padded = [each.padded for each in windows]
    fits = fits and size == ([each.size for each in windows] if name == "convolution_to_input" else padded)
    fits = fits and kernel == [each.kernel for each in windows] and not any(each.is_ceil for each in windows)
    _check(fits and math.prod((channels, *padded, images)) <= MOST_ELEMENTS, name, x, kernels, y)
    counts = [each.count for each in windows]
    _check(min(counts) >= 1 and y.shape == (outputs, *counts, images), name, x, kernels, y)
    _check(bias is None or bias.shape == (outputs,), name, x, kernels, y)
    # The gradient to the input has margins of zeros in its rows, at most as wide as the padded images.
    _check(math.prod((outputs, counts[0], 2 * padded[1], images)) <= MOST_ELEMENTS, name, x, kernels, y)
    # If there is one window, all strides from the size on are alike, and the columns are sorted by them.
    stride = [min(each.stride, max(each.padded, 1)) for each in windows]
    written = {"convolution": 2, "convolution_to_input": 0, "convolution_to_kernels": 1}[name]
    arrays = [x, kernels, y] if bias is None else [x, kernels, y, bias]
    if not arrays[written].size:
        return _in_order()
    lying, before, after = _flat(arrays, written)
    dilation, padding = ([getattr(each, name) for each in windows] for name in ("dilation", "padding"))
    sizes = (depth, *padded, images, outputs // groups, *kernel, *stride, *dilation)
    memory = scratch(load().functions.ls_convolution_scratch(sizes_of(sizes)))
    row = (_NUMBER[name], *sizes, groups, *lying[:3], memory, *(lying[3:] or [None]), *padding)
    return _in_order(*before, _calls([row]), *after)


def _max_pool(x: Array, out: Array, windows: Windows) -> Instruction:
    """Bind the largest elements of windows over images (channels, height, width, N)."""
    return _pool("max_pool", [x, out], x, out, windows)


def _max_pool_gradient(gradient: Array, x: Array, pooled: Array, out: Array, windows: Windows) -> Instruction:
    _check(gradient.shape == pooled.shape and out.shape == x.shape, "max_pool_gradient", gradient, x, pooled, out)
    return _pool("max_pool_gradient", [gradient, x, pooled, out], x, pooled, windows)


def _pool(name: str, arrays: Sequence[Array], x: Array, pooled: Array, windows: Windows) -> Instruction:
    along, counts = list(zip(x.shape[1:3], windows, strict=True)), tuple(each.count for each in windows)
    # A window has an element of the image: its first lies before the end, and its padding is less than itself.
    fits = all(0 <= each.padding < each.reach and min(each.stride, each.dilation) >= 1 for each in windows)
    fits = fits and all(size == each.size >= 1 <= each.count for size, each in along)
    fits = fits and all((each.count - 1) * each.stride - each.padding < size for size, each in along)
    _check(fits and pooled.shape == (len(x), *counts, x.shape[3]), name, *arrays)
    if any(each.dilation > 1 for each in windows):
        return NUMPY[name](*arrays, windows)
    lying, before, after = _flat(arrays, len(arrays) - 1)
    options = (getattr(each, name) for name in ("kernel", "stride", "padding") for each in windows)
    row = (_NUMBER[name], *x.shape, *counts, *options, *lying)
    return _in_order(*before, _calls([row]), *after)


def _momentum(
    weights: Array, old: Array | None, out: Array, new: Array | None, momentum: float, decay: float, is_nesterov: bool
) -> Callable[[Mean, float], bool]:
    """Bind an update to its vectors."""
    by_numpy: Callable[[Mean, float], bool] = NUMPY["momentum"](weights, old, out, new, momentum, decay, is_nesterov)
    arrays = [each for each in (weights, old, out, new) if each is not None]
    _check(len(arrays) != 3 and all(each.shape == out.shape for each in arrays), "momentum", *arrays)
    if not all(map(_is_flat, arrays)):
        # The same operations, each of which is rounded in the same way.
        return by_numpy
    vectors = (weights, old, Written(out), None if new is None else Written(new))
    run = partial(load().functions.ls_momentum, out.size, *map(pinned, vectors), momentum, decay, is_nesterov)

    def update(mean: Mean, rate: float) -> bool:
        terms, factor = mean.terms, mean.factor
        is_flat = mean.divisor != 0.0
        for each in terms:
            _check(each.shape == out.shape, "momentum", out, *terms)
            is_flat = is_flat and _is_flat(each) and each.dtype == np.float32
        if not is_flat:
            return by_numpy(mean, rate)
        first, second = pinned(terms[0]), pinned(terms[1] if len(terms) > 1 else None)
        divisor, scale = factor or mean.divisor, mean.scale
        return bool(run(first, second, divisor, factor is None, scale or 0.0, scale is not None, rate))

    return update


def _add_rows(gradient: Array, indices: Array, out: Array) -> Instruction:
    """Add each row of (uses, width) to the row of `out` (rows, width) whose index it has, in order."""
    fits = indices.ndim == 1 and out.ndim == 2 and gradient.shape == (len(indices), out.shape[1])
    _check(fits, "add_rows", gradient, indices, out)
    if not _is_flat(gradient) or not _is_flat(out) or not _is_flat(indices):
        # The same additions in the same order.
        return NUMPY["add_rows"](gradient, indices, out)
    call = _calls([(_NUMBER["add_rows"], len(indices), out.shape[1], gradient, indices, Written(out))])

    def add() -> None:
        # Each time, because a program that repeats its calls has other indices in the same array.
        if indices.size and not 0 <= indices.min() <= indices.max() < len(out):
            raise IndexError(
                f"rows {indices.min()} to {indices.max()} of {len(out)}: expected indices from 0 to the last row"
            )
        call()

    return add


def _cross_entropy(scores: Array, targets: Array, out: Array, smoothing: float) -> Instruction:
    """Bind the loss of each of (classes, samples) scores."""
    return _losses("cross_entropy", [scores, targets, out], out, smoothing)


def _cross_entropy_gradient(
    scores: Array, targets: Array, gradient: Array, out: Array, smoothing: float
) -> Instruction:
    """Bind the gradient of scores (classes, samples) from those of the losses (samples,)."""
    _check(out.shape == scores.shape, "cross_entropy_gradient", scores, out)
    if gradient.strides != (0,):
        return _losses("cross_entropy_gradient", [scores, targets, gradient, out], gradient, smoothing, 1)
    # One for all samples.
    return _losses("cross_entropy_gradient", [scores, targets, gradient[:1], out], gradient, smoothing, 0)


def _losses(name: str, arrays: Sequence[Array], losses: Array, smoothing: float, *steps: int) -> Instruction:
    scores, targets = arrays[:2]
    fits = targets.shape == losses.shape == scores.shape[1:] and 1 <= len(scores) <= MOST_CLASSES
    _check(fits and targets.dtype == np.int64, name, *arrays)
    if not losses.size:
        return _in_order()
    shares = np.array([1.0 - smoothing, smoothing / len(scores)], np.float32)
    lying, before, after = _flat(arrays, len(arrays) - 1)
    row = (_NUMBER[name], *scores.shape, shares if smoothing else None, *lying, *steps)
    return _in_order(*before, _calls([row]), *after)


def _recurrent(name: str) -> Callable[..., Instruction]:
    """Return what binds all steps of a recurrent layer, or their gradients: see `leaves.recurrent`."""

    def bind(*operands: Any) -> Instruction:
        *others, lengths, to_state, gates, curves, cells, states, kind, is_reversed = operands
        is_back = name == "recurrent_gradient"
        (steps, batch, features), hidden = others[0].shape, to_state.shape[1]
        x, state, count = (steps, batch, features), (steps, batch, hidden), GATES[kind] * hidden
        shapes = [x, (count, features), (count,), (count,)]
        if is_back:
            shapes = [*shapes[:2], state, (2, *state[1:]), gates.shape, x, (count, features)]
            shapes += [(count, hidden), (2, count)]
        shapes += [(batch,), (count, hidden), (steps, batch, count)]
        shapes += [(steps * (kind in ("lstm", "gru")), *state[1:])]
        shapes += [((steps + 1) * is_cell, *state[1:]) for is_cell in (kind == "lstm", True)]
        given = [(each, shape) for each, shape in zip(operands, shapes, strict=False) if each is not None]
        arrays = [each for each, _ in given]
        # Biases, the gradient of x with the weights that it needs, and lengths may be left out.
        optional = {*((1, 5) if is_back else (2, 3)), len(others)}
        fits = all(each is not None or place in optional for place, each in enumerate(operands))
        fits = fits and not (is_back and others[1] is None and others[5] is not None)
        _check(fits and all(each.shape == shape and _is_flat(each) for each, shape in given), name, *arrays)
        numbers = (list(GATES).index(kind), steps, batch, features, hidden)
        memory = scratch(load().functions.ls_recurrent_scratch(sizes_of(numbers)))
        passed = (gates, curves, cells, states)
        read, written = (others[:3], others[3:]) if is_back else (others, ())
        kept = (
            *(lengths, to_state, *(passed if is_back else map(Written, passed)), memory, *read),
            *(None if each is None else Written(each) for each in written),
        )
        return _calls([(_NUMBER[name], *numbers, is_reversed, *kept)])

    return bind


def _shares(one: Array, other: Array) -> bool:
    return np.may_share_memory(one, other)


def _check(fits: bool, name: str, *arrays: Array) -> None:
    """Raise ValueError unless the shapes of a leaf's arrays fit together."""
    if not fits:
        shapes = ", ".join(str(each.shape) for each in arrays)
        raise ValueError(f"{name} got arrays of shapes {shapes}: expected shapes that fit together")


#: For each leaf, what binds its operands: arrays of float32, the result, options.
KERNELS: Mapping[str, Callable[..., Instruction]] = {
    **{
        name: _elementwise(name)
        for name in ("exp", "log", "log1p", "tanh", "sigmoid", "erf", "power", "relu", "relu_gradient")
    },
    "product": _product,
    "product_sum": _product_sum,
    "sum": _sum,
    "convolution": _convolution,
    "convolution_to_input": _convolution_to_input,
    "convolution_to_kernels": _convolution_to_kernels,
    "max_pool": _max_pool,
    "max_pool_gradient": _max_pool_gradient,
    "momentum": _momentum,
    "add_rows": _add_rows,
    "cross_entropy": _cross_entropy,
    "cross_entropy_gradient": _cross_entropy_gradient,
    **{name: _recurrent(name) for name in ("recurrent", "recurrent_gradient")},
}

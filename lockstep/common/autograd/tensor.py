"""The tensor: an array, its place in the graph of a computation, and the operations on it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lockstep.common.autograd.graph import (
    GraphNode,
    Leaf,
    OnFinal,
    Parent,
    Version,
    backward,
    observing,
    record,
    recording,
    version_of,
)
from lockstep.common.autograd.primitives import elementwise, linear_algebra, reduction, shape
from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.reduction import Axis

#: Types, not their subclasses: `np.float64` is a `float`.
_TYPED_BY_HAND = frozenset({float, int, list, tuple})


def sizes_of(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes that were given one by one, or as one tuple or list."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def either(axis: Axis, dim: Axis) -> Axis:
    """Return the axis under whichever name it was given; PyTorch's users pass lists too."""
    chosen = axis if dim is None else dim
    if isinstance(chosen, bool):
        raise TypeError(
            f"axis is {chosen!r}: expected a whole number or several; the correction of a variance has a name"
        )
    return tuple(chosen) if isinstance(chosen, list) else chosen


def as_array(data: Any, dtype: DTypeLike | None = None) -> Array:
    """Return `data` as an array without copying one; numbers and lists of numbers become float32, of bools bool."""
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(
            f"a tensor cannot be made of these values: expected lists of the same length ({error})"
        ) from None
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a tensor cannot hold {data!r}, dtype {array.dtype}: expected floats, integers or bools")
    if dtype is None and array.dtype.kind != "b" and type(data) in _TYPED_BY_HAND:
        # As PyTorch: numbers typed by hand have single precision, arrays from NumPy keep theirs.
        dtype = np.float32
    return np.asarray(array, dtype)


def as_operand(data: Any) -> Array | float:
    """Return `data` as something to compute with; `np.float64` numbers become Python's, which take the others' dtype.

    Otherwise one `np.sqrt(2)` would turn a float32 graph into a float64 one; PyTorch has the same rule.
    """
    return float(data) if isinstance(data, float) else as_array(data)


def require_floating(array: Array) -> None:
    """Raise RuntimeError for an array of a dtype that no gradient can have."""
    if array.dtype not in (np.float32, np.float64):
        raise RuntimeError(f"a tensor of dtype {array.dtype} cannot require a gradient: only float32 and float64 can")


def matching(gradient: Any, array: Array, name: str) -> Array:
    """Return `gradient` as an array; raise ValueError if its shape or dtype is not that of `array`."""
    found: Array = np.asarray(gradient)
    if found.shape != array.shape or found.dtype != array.dtype:
        raise ValueError(
            f"{name} has shape {found.shape} and dtype {found.dtype}: "
            f"must be those of the data, {array.shape} and {array.dtype}"
        )
    return found


#: Types that primitives take as they are. With Python numbers, NumPy lets the array decide the dtype (NEP 50).
_PLAIN = frozenset({np.ndarray, float, int, bool, type(None)})

#: An operator between a tensor and something else.
_Operator = Callable[["Tensor", Any], "Tensor"]


def _binary(primitive: Primitive) -> _Operator:
    """Return the operator with the tensor on its left."""
    return lambda tensor, other: tensor._apply(primitive, tensor, other)


def _reflected(primitive: Primitive) -> _Operator:
    """Return the operator with the tensor on its right."""
    return lambda tensor, other: tensor._apply(primitive, other, tensor)


def _in_place(primitive: Primitive) -> _Operator:
    """Return the operator that changes the tensor on its left."""
    return lambda tensor, other: tensor._apply_in_place(primitive, other)


def _comparison(ufunc: np.ufunc) -> _Operator:
    """Return an operator whose result has no gradient."""
    return lambda tensor, other: tensor._compare(ufunc, tensor, other)


class Tensor:
    """An array that remembers what it was computed from.

    `Tensor(array)` shares the array's memory; numbers and lists of numbers become float32, lists of bools bool. With
    `requires_grad=True`, `backward` of whatever is computed from it adds to its `grad`. Operators broadcast as those of
    NumPy do. In methods, `axis` and `keepdims` are NumPy's names, and `dim` and `keepdim` are PyTorch's for the same;
    no axis means all of them.

    Raises TypeError for data that are not numbers, and RuntimeError if a tensor of integers or bools is to require a
    gradient. Methods raise what NumPy and PyTorch raise: ValueError for shapes that do not fit, TypeError, IndexError,
    and RuntimeError for what concerns the graph.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4.], dtype=float32)

    Differs from PyTorch: gradients are NumPy arrays; `max` and `min` return values alone; a second `backward` adds the
    gradients again, where PyTorch raises without `retain_graph=True`; there are no devices and no float16.
    """

    __slots__ = ("__weakref__", "_data", "_node", "_version")

    # NumPy then leaves `array * tensor` to the tensor, and `np.exp(tensor)` is a TypeError instead of an object array.
    __array_ufunc__ = None

    _data: Array
    #: None if no gradient is wanted; a Leaf if the tensor was created, a GraphNode if it was computed.
    _node: Parent
    #: Shared with every view of the same memory that a primitive made.
    _version: Version

    def __init__(self, data: Any, requires_grad: bool = False, dtype: DTypeLike | None = None) -> None:
        self._data = as_array(data, dtype)
        self._version = Version()
        self._node = None
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def _apply(primitive: Primitive, *operands: Any, **options: Any) -> "Tensor":
        """Compute the primitive on tensors, arrays and numbers, and record it if a gradient is wanted."""
        arrays: list[Any] = []
        parents: list[Parent] = []
        versions: list[Version | None] = []
        for operand in operands:
            if isinstance(operand, Tensor):
                arrays.append(operand._data)
                parents.append(operand._node)
                versions.append(operand._version)
            else:
                arrays.append(operand if type(operand) in _PLAIN else as_operand(operand))
                parents.append(None)
                versions.append(None)
        observer = observing.get()
        if observer is None:
            result = primitive.forward(*arrays, **options)
        else:
            result = observer(primitive, "forward", primitive.forward, *arrays, **options)
        saved = result
        if primitive.keeps:
            result, saved = result
        if type(result) is not np.ndarray:
            result = np.asarray(result)
        tensor = _wrap(result, version_of(result, arrays, versions))
        if recording.get() and parents.count(None) != len(parents):
            tensor._node = node = record(primitive, parents, options, result)
            if node is not None:
                node.keep(arrays, saved, versions, tensor._version)
        return tensor

    @staticmethod
    def _compare(ufunc: np.ufunc, *operands: Any) -> "Tensor":
        arrays = [operand._data if isinstance(operand, Tensor) else operand for operand in operands]
        return _wrap(np.asarray(ufunc(*arrays)), Version())

    @property
    def data(self) -> Array:
        """The array itself, not a copy.

        An array that is assigned may have any shape and dtype; graphs that were recorded stay valid, as they hold the
        old one. Raises RuntimeError if the tensor requires a gradient and the new array is not float32 or float64.
        """
        return self._data

    @data.setter
    def data(self, array: Any) -> None:
        known = self._data
        if array is known:  # what `tensor.data += ...` does after it has changed the array
            self._version.count += 1
            return
        if type(array) is not np.ndarray or array.dtype is not known.dtype or array.shape != known.shape:
            array = as_array(array)
            if isinstance(self._node, Leaf):
                require_floating(array)
                if array.shape != known.shape or array.dtype != known.dtype:
                    self._node = Leaf(array.shape, array.dtype)
        self._data = array
        self._version = Version()

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis, `()` for a single number."""
        return self._data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the elements."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """The number of elements: the product."""
        return self._data.size

    @property
    def is_leaf(self) -> bool:
        """True if the tensor was created and not computed from others that require a gradient."""
        return type(self._node) is not GraphNode

    @property
    def grad_fn(self) -> GraphNode | None:
        """The node of the graph that computed the tensor, None for one that was created."""
        return self._node if type(self._node) is GraphNode else None

    @property
    def leaf(self) -> Leaf | None:
        """The leaf of a tensor that was created and requires a gradient, else None."""
        return self._node if type(self._node) is Leaf else None

    @property
    def requires_grad(self) -> bool:
        """True if operations on the tensor are recorded. It may be set.

        Raises RuntimeError if a tensor that is not float32 or float64, of whatever shape, is to require a gradient, or
        if one that was computed is not to any more: use `detach`.
        """
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        if type(self._node) is GraphNode:
            if not wanted:
                raise RuntimeError("a computed tensor cannot stop requiring a gradient: use detach()")
        elif not wanted:
            self._node = None
        elif self._node is None:
            require_floating(self._data)
            self._node = Leaf(self._data.shape, self._data.dtype)

    @property
    def grad(self) -> Array | None:
        """The sum of all gradients since `zero_grad`, an array of the tensor's shape and dtype.

        None before the first `backward`, and for tensors that were computed. It may be set: raises ValueError for
        another shape or dtype, RuntimeError if the tensor does not require a gradient.
        """
        return self._node.grad if type(self._node) is Leaf else None

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if gradient is None and type(self._node) is not Leaf:
            return
        leaf = self._leaf()
        leaf.grad = None if gradient is None else matching(gradient, self._data, "grad")

    @property
    def grad_buffer(self) -> Array | None:
        """Memory for the gradient, of the tensor's shape: the first one after `zero_grad` is written into it and `grad`
        is that array.

        It may be set: raises ValueError for another shape or dtype, RuntimeError if the tensor does not require a
        gradient.
        """
        return self._leaf().buffer if type(self._node) is Leaf else None

    @grad_buffer.setter
    def grad_buffer(self, buffer: Array | None) -> None:
        leaf = self._leaf()
        leaf.grad = None
        leaf.buffer = None if buffer is None else matching(buffer, self._data, "grad_buffer")

    def _leaf(self) -> Leaf:
        if not isinstance(self._node, Leaf):
            kind = "does not require a gradient" if self._node is None else "was computed from others"
            raise RuntimeError(f"a tensor of shape {self.shape} that {kind} holds no gradient of its own")
        return self._node

    def zero_grad(self) -> None:
        """Drop the gradient: `grad` is None until the next `backward`."""
        self.grad = None

    def backward(self, gradient: Any = None, retain_graph: bool = True, on_final: OnFinal | None = None) -> None:
        """Add to `grad` of every leaf that this tensor was computed from.

        `gradient` has the tensor's shape; it defaults to 1 for a single element. With `retain_graph=False` the arrays
        of the graph are freed on the way, which saves memory in a training loop, and it cannot be walked again.
        `on_final` is called with each leaf as soon as its gradient is final, while the walk continues.

        Raises RuntimeError if the tensor does not require a gradient, if `gradient` is missing or has another shape, if
        the graph was freed, and if an array that it needs was changed in place.

        Differs from PyTorch: `retain_graph` is True by default, so that a second `backward` adds the gradients again
        instead of raising.
        """
        if self._node is None:
            raise RuntimeError("backward() of a tensor that does not require a gradient: nothing to compute")
        if gradient is None:
            if self._data.size != 1:
                raise RuntimeError(f"backward() of a tensor of shape {self.shape} needs a gradient of that shape")
            seed = np.ones(self._data.shape, self._data.dtype)
        else:
            seed = np.asarray(as_array(gradient), self.dtype)
            if seed.shape != self.shape:
                raise RuntimeError(f"gradient of shape {seed.shape} for a tensor of shape {self.shape}: must be equal")
        backward(self._node, seed, retain_graph, on_final)

    def detach(self) -> "Tensor":
        """Return a tensor of the same memory and shape outside of the graph."""
        return _wrap(self._data, self._version)

    def numpy(self) -> Array:
        """Return the array itself, of the tensor's shape. Raises RuntimeError for a tensor that requires a gradient."""
        if self._node is not None:
            raise RuntimeError("numpy() of a tensor that requires a gradient: use tensor.detach().numpy()")
        return self._data

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype, copy=copy)

    def item(self) -> Any:
        """Return the only element as a Python number. Raises ValueError if the shape has more than one, or none."""
        return self._data.item()

    def tolist(self) -> Any:
        """Return nested lists of Python numbers in the tensor's shape; a number for shape `()`."""
        return self._data.tolist()

    def astype(self, dtype: DTypeLike) -> "Tensor":
        """Return a copy in another dtype, of the same shape, outside of the graph.

        Raises TypeError for a dtype without numbers.
        """
        return Tensor(self._data.astype(dtype))

    def argmax(
        self, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None, keepdim: bool = False
    ) -> "Tensor":
        """Return the indices of the first greatest elements along `axis` or `dim`; None means of the flattened tensor.

        The axis is dropped from the shape, or has size 1 with `keepdims=True`, which is also called `keepdim`. Raises
        ValueError for an axis that there is not, and for a tensor without elements.
        """
        along = axis if dim is None else dim
        kept = np.argmax(self._data, axis=along, keepdims=True)
        return Tensor(np.asarray(kept if keepdims or keepdim else kept.squeeze(along)))

    def __bool__(self) -> bool:
        return bool(self._data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator["Tensor"]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        text = np.array2string(self._data, separator=", ", prefix="tensor(")
        kind = "" if self.dtype in (np.float32, np.int64, np.bool_) else f", dtype={self.dtype}"
        state = f", grad_fn=<{self._node.primitive.name}>" if type(self._node) is GraphNode else ""
        return f"tensor({text}{kind}{state or (', requires_grad=True' if self.requires_grad else '')})"

    def __getitem__(self, index: Any) -> "Tensor":
        return self._apply(shape.take, self, index=_plain_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _plain_index(index)
        wanted = self._node is not None or (isinstance(value, Tensor) and value._node is not None)
        if wanted and recording.get():
            self._apply_in_place(shape.put, value, index=index)
        else:
            self._data[index] = value._data if isinstance(value, Tensor) else value
            self._version.count += 1

    def _apply_in_place(self, primitive: Primitive, *others: Any, **options: Any) -> "Tensor":
        """Compute `primitive(self, *others)`, write the result into this tensor's memory and take its place."""
        records = recording.get()
        if records and type(self._node) is Leaf:
            raise RuntimeError(
                "a tensor that requires a gradient and was not computed cannot change in place: use no_grad()"
            )
        result = self._apply(primitive, self, *others, **options)
        if result._node is not None and self._version.viewed:
            raise RuntimeError(
                f"{primitive.name!r} in place on memory of which there are views: their gradients would be wrong; "
                "compute a new tensor instead"
            )
        np.copyto(self._data, result._data)
        self._version.count += 1
        if records:
            self._node = result._node
        return self

    def copy_(self, source: Any) -> "Tensor":
        """Overwrite all elements with those of `source`, and return the tensor.

        The shape of `source` broadcasts to the tensor's. Raises ValueError if it does not, RuntimeError if the tensor
        was created, requires a gradient, and is not within `no_grad`.
        """
        self[...] = source
        return self

    def fill_(self, value: float) -> "Tensor":
        """Overwrite all elements, of any shape, with one number, and return the tensor.

        Raises RuntimeError if the tensor was created, requires a gradient, and is not within `no_grad`.
        """
        self[...] = value
        return self

    __add__, __radd__ = _binary(elementwise.add), _reflected(elementwise.add)
    __sub__, __rsub__ = _binary(elementwise.subtract), _reflected(elementwise.subtract)
    __mul__, __rmul__ = _binary(elementwise.multiply), _reflected(elementwise.multiply)
    __truediv__, __rtruediv__ = _binary(elementwise.divide), _reflected(elementwise.divide)
    __pow__, __rpow__ = _binary(elementwise.power), _reflected(elementwise.power)
    __matmul__, __rmatmul__ = _binary(linear_algebra.matmul), _reflected(linear_algebra.matmul)

    __iadd__, __isub__ = _in_place(elementwise.add), _in_place(elementwise.subtract)
    __imul__, __itruediv__ = _in_place(elementwise.multiply), _in_place(elementwise.divide)

    __eq__, __ne__ = _comparison(np.equal), _comparison(np.not_equal)  # type: ignore[assignment]
    __lt__, __le__ = _comparison(np.less), _comparison(np.less_equal)
    __gt__, __ge__ = _comparison(np.greater), _comparison(np.greater_equal)
    __and__, __or__ = _comparison(np.bitwise_and), _comparison(np.bitwise_or)

    def __invert__(self) -> "Tensor":
        return self._compare(np.invert, self)

    def __neg__(self) -> "Tensor":
        return self._apply(elementwise.negate, self)

    def __pos__(self) -> "Tensor":
        return self._apply(elementwise.multiply, self, 1)

    # Tensors are equal to nothing but themselves as keys, whatever their elements.
    __hash__ = object.__hash__

    def pow(self, exponent: Any) -> "Tensor":
        """Return `self ** exponent`, with broadcast shapes. Raises ValueError if the shapes do not broadcast."""
        return self._apply(elementwise.power, self, exponent)

    # From here to `unsqueeze`, each method is a function of `lockstep.F` too, and so takes arrays and numbers as `x`.

    def abs(x: Any) -> "Tensor":
        """Return `|x|`, of the shape of `x`; at 0 its derivative is 0. Raises TypeError if `x` holds no numbers."""
        return Tensor._apply(elementwise.absolute, x)

    __abs__ = abs  # noqa: A003

    def maximum(x: Any, other: Any) -> "Tensor":
        """Return the greater of the two, element by element; at a tie each gets half of the gradient.

        Shapes broadcast; raises ValueError if they do not.
        """
        return Tensor._apply(elementwise.maximum, x, other)

    def minimum(x: Any, other: Any) -> "Tensor":
        """Return the smaller of the two; shapes, ties, and the ValueError that it raises are those of `maximum`."""
        return Tensor._apply(elementwise.minimum, x, other)

    def clip(x: Any, min: Any = None, max: Any = None) -> "Tensor":  # noqa: A002
        """Bound from below by `min` and from above by `max`; None leaves that side open.

        The gradient passes where nothing was cut. The bounds are numbers, or arrays or tensors whose shapes broadcast
        with `x`; raises ValueError if they do not. `clamp` is the same function.

        >>> F.clip([-2.0, 0.5, 3.0], min=0, max=1)
        tensor([0. , 0.5, 1. ])
        """
        if isinstance(min, Tensor) or isinstance(max, Tensor):
            x = x if isinstance(x, Tensor) else Tensor(x)
            if min is not None:  # the bound gets the gradient where it takes the place of `x`
                x = Tensor._apply(elementwise.where, (x < min).data, min, x)
            return x if max is None else Tensor._apply(elementwise.where, (x > max).data, max, x)
        low, high = (as_array(each) if isinstance(each, list | tuple) else each for each in (min, max))
        return Tensor._apply(elementwise.clip, x, low=low, high=high)

    clamp = clip

    def matmul(x: Any, other: Any) -> "Tensor":
        """Return `x @ other`, with vectors and batches as in NumPy: (..., n, k) and (..., k, m) to (..., n, m).

        Raises ValueError if the inner sizes differ, or if one of the two is a number.
        """
        return Tensor._apply(linear_algebra.matmul, x, other)

    def exp(x: Any) -> "Tensor":
        """Return `e ** x`, of the shape of `x`, infinite beyond its dtype. Raises TypeError if `x` holds no numbers."""
        return Tensor._apply(elementwise.exp, x)

    def log(x: Any) -> "Tensor":
        """Return the natural logarithm, of the shape of `x`. Raises TypeError if `x` does not hold numbers.

        At 0 it is minus infinity and below 0 NaN, as in NumPy: nothing is raised.
        """
        return Tensor._apply(elementwise.log, x)

    def sqrt(x: Any) -> "Tensor":
        """Return the square root, of the shape of `x`. Raises TypeError if `x` does not hold numbers.

        Below 0 it is NaN, as in NumPy. At 0 the derivative is infinite.
        """
        return Tensor._apply(elementwise.sqrt, x)

    def tanh(x: Any) -> "Tensor":
        """Return the hyperbolic tangent, of the shape of `x`. Raises TypeError if `x` does not hold numbers."""
        return Tensor._apply(elementwise.tanh, x)

    def sigmoid(x: Any) -> "Tensor":
        """Return `1 / (1 + exp(-x))` of the shape of `x`, not overflowing. Raises TypeError if it holds no numbers."""
        return Tensor._apply(elementwise.sigmoid, x)

    def relu(x: Any) -> "Tensor":
        """Return `max(x, 0)`, of the shape of `x`; at 0 its derivative is 0. Raises TypeError if it has no numbers."""
        return Tensor._apply(elementwise.relu, x)

    def sum(x: Any, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> "Tensor":
        """Return the sum over `axis` or `dim`, an integer or a tuple; None means all axes.

        The summed axes are dropped from the shape, or have size 1 with `keepdims=True`, which is also called `keepdim`.
        Raises ValueError for an axis that `x` does not have.
        """
        return Tensor._apply(reduction.reduce_sum, x, axis=either(axis, dim), keepdims=keepdims or keepdim)

    def mean(x: Any, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> "Tensor":
        """Return the mean over axes. Arguments, shapes, and the ValueError that it raises are those of `sum`."""
        return Tensor._apply(reduction.reduce_mean, x, axis=either(axis, dim), keepdims=keepdims or keepdim)

    def max(x: Any, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> "Tensor":
        """Return the greatest elements over axes; those that tie share the gradient evenly.

        Arguments and shapes are those of `sum`. Raises ValueError for an axis that `x` does not have, and for one of
        size 0.

        Differs from PyTorch: with `dim` it returns the values alone, without their indices; `Tensor.argmax` has those.
        """
        return Tensor._apply(reduction.reduce_max, x, axis=either(axis, dim), keepdims=keepdims or keepdim)

    def min(x: Any, axis: Axis = None, keepdims: bool = False, *, dim: Axis = None, keepdim: bool = False) -> "Tensor":
        """Return the smallest elements over axes. Arguments, ties, shapes, and what it raises are those of `max`.

        Differs from PyTorch: with `dim` it returns the values alone, without their indices.
        """
        return Tensor._apply(reduction.reduce_min, x, axis=either(axis, dim), keepdims=keepdims or keepdim)

    def var(
        x: Any,
        axis: Axis = None,
        keepdims: bool = False,
        correction: float | None = 1,
        *,
        dim: Axis = None,
        keepdim: bool = False,
    ) -> "Tensor":
        """Return the variance over axes, divided by the count less `correction`: 1 gives the unbiased one, the default.

        Other arguments, and shapes, are those of `sum`. Raises ValueError for an axis that `x` does not have.
        """
        along, kept = either(axis, dim), keepdims or keepdim
        return Tensor._apply(
            reduction.variance, x, axis=along, correction=1 if correction is None else correction, keepdims=kept
        )

    def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> "Tensor":
        """Merge the axes from `start_dim` to `end_dim`, both included: (a, b, c) to (a, b·c) with `start_dim=1`.

        Raises ValueError if `start_dim` lies behind `end_dim`.
        """
        sizes = x.shape or (1,)
        start, end = start_dim % len(sizes), end_dim % len(sizes)
        if start > end:
            raise ValueError(f"start_dim {start_dim!r} lies behind end_dim {end_dim!r} in shape {x.shape}")
        flattened = (*sizes[:start], math.prod(sizes[start : end + 1]), *sizes[end + 1 :])
        return Tensor._apply(shape.reshape, x, shape=flattened)

    def transpose(x: Any, dim0: int, dim1: int) -> "Tensor":
        """Swap the axes `dim0` and `dim1`: (a, b) to (b, a). Raises ValueError for an axis that `x` does not have."""
        x = x if isinstance(x, Tensor) else Tensor(x)
        if not np.ndim(x.data):
            return Tensor._apply(shape.reshape, x, shape=())
        return Tensor._apply(shape.transpose, x, first=dim0, second=dim1)

    def squeeze(x: Any, dim: Axis = None) -> "Tensor":
        """Drop axes of size 1 from the shape: all of them, or `dim` if its size is 1; others stay, as in PyTorch.

        Raises IndexError for an axis that `x` does not have.
        """
        if dim is not None:
            chosen, sizes = dim if isinstance(dim, tuple) else (dim,), np.shape(x.data if isinstance(x, Tensor) else x)
            dim = tuple(each for each in chosen if (sizes or (0,))[each] == 1)
        return Tensor._apply(shape.squeeze, x, axis=dim)

    def unsqueeze(x: Any, dim: int) -> "Tensor":
        """Insert an axis of size 1 at `dim`: (a, b) to (1, a, b) at 0. Raises ValueError if `dim` is out of range."""
        return Tensor._apply(shape.unsqueeze, x, axis=dim)

    def reshape(self, *sizes: Any) -> "Tensor":
        """Return the elements in another shape, one of whose sizes may be -1; a view if possible. `view` is the same.

        Raises ValueError if the number of elements differs.

        Differs from PyTorch: `view` copies if the memory does not allow a view, where PyTorch raises.
        """
        return self._apply(shape.reshape, self, shape=sizes_of(sizes))

    view = reshape

    def permute(self, *dims: Any) -> "Tensor":
        """Reorder all axes of the shape. Raises ValueError if `dims` does not name each axis once."""
        return self._apply(shape.permute, self, axes=sizes_of(dims))

    def broadcast_to(self, *sizes: Any) -> "Tensor":
        """Repeat axes of size 1, without a copy, until the shape is `sizes`. Raises ValueError if it cannot be."""
        return self._apply(shape.broadcast_to, self, shape=sizes_of(sizes))

    @property
    def T(self) -> "Tensor":  # noqa: N802
        """The tensor with the axes of its shape in reverse order."""
        return self._apply(shape.permute, self, axes=tuple(reversed(range(len(self.shape)))))


apply = Tensor._apply


def _wrap(array: Array, version: Version) -> Tensor:
    """Return a tensor around an array that is known to be one, outside of the graph."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = array
    tensor._version = version
    tensor._node = None
    return tensor


def _plain_index(index: Any) -> Any:
    """Return an index with arrays in place of tensors."""
    if isinstance(index, tuple):
        return tuple(each._data if isinstance(each, Tensor) else each for each in index)
    return index._data if isinstance(index, Tensor) else index

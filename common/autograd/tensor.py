"""The tensor: an array, and its place in the graph of what was computed."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from common.autograd.arithmetic import Arithmetic
from common.autograd.conversion import as_array, as_operand, matching, require_floating
from common.autograd.graph import GraphNode, Leaf, Parent, backward, observing, record, recording
from common.autograd.methods import Methods
from common.autograd.primitives import indexing
from common.autograd.primitives.primitive import Array, Primitive
from common.autograd.version import Version, version_of

#: What goes into a primitive as it is. Python numbers stay so: NumPy then lets the array decide the dtype (NEP 50).
_PLAIN = frozenset({np.ndarray, float, int, bool, type(None)})


class Tensor(Arithmetic["Tensor"], Methods["Tensor"]):
    """An array that remembers what it was computed from.

    `Tensor(array)` shares the array's memory; numbers and lists of numbers become float32, lists of bools bool.
    Only floating-point tensors can require a gradient. Wrong uses raise what NumPy and PyTorch raise for them:
    ValueError, TypeError, IndexError, and RuntimeError for what concerns the graph.
    """

    __slots__ = ("__weakref__", "_data", "_node", "_version")

    # NumPy then leaves `array * tensor` to the tensor, and `np.exp(tensor)` is a TypeError instead of an object array.
    __array_ufunc__ = None

    _data: Array
    #: None where no gradient is wanted; a Leaf if the tensor was made, a Node if it was computed.
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
        """Compute the primitive on tensors, arrays and numbers, and record it where a gradient is wanted."""
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
        tensor = _wrap(result, version_of(result, arrays, versions), None)
        if recording.get() and parents.count(None) != len(parents):
            tensor._node = node = record(primitive, parents, options, result)
            if node is not None:
                node.keep(arrays, saved, versions, tensor._version)
        return tensor

    @staticmethod
    def _compare(ufunc: np.ufunc, *operands: Any) -> "Tensor":
        arrays = [operand._data if isinstance(operand, Tensor) else operand for operand in operands]
        return _wrap(np.asarray(ufunc(*arrays)), Version(), None)

    @property
    def data(self) -> Array:
        """The array itself, not a copy. Assigning another leaves recorded graphs valid: they hold the old one."""
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
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self._data.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._data.dtype

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def is_leaf(self) -> bool:
        """Whether the tensor was made and not computed from others that require a gradient."""
        return type(self._node) is not GraphNode

    @property
    def grad_fn(self) -> GraphNode | None:
        """The place in the graph of a computed tensor."""
        return self._node if type(self._node) is GraphNode else None

    @property
    def leaf(self) -> Leaf | None:
        """Where a tensor that was made, and requires a gradient, gets it."""
        return self._node if type(self._node) is Leaf else None

    @property
    def requires_grad(self) -> bool:
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
        """The sum of all gradients since `zero_grad`; None before the first, and for computed tensors."""
        return self._node.grad if type(self._node) is Leaf else None

    @grad.setter
    def grad(self, gradient: Array | None) -> None:
        if gradient is None and type(self._node) is not Leaf:
            return
        leaf = self._leaf()
        leaf.grad = None if gradient is None else matching(gradient, self._data, "grad")

    @property
    def grad_buffer(self) -> Array | None:
        """Memory for the gradient: the first after `zero_grad` is written into it and `grad` is then this array."""
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

    def backward(self, gradient: Any = None, retain_graph: bool = True) -> None:
        """Add to `grad` of every leaf that this tensor was computed from.

        `gradient` has the tensor's shape; it may be left out for a single element, where it is 1. The graph can be
        walked again; with `retain_graph=False` its arrays are freed on the way, which saves memory in a training loop.
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
        backward(self._node, seed, retain_graph)

    def detach(self) -> "Tensor":
        """Return the same memory outside the graph."""
        return _wrap(self._data, self._version, None)

    def numpy(self) -> Array:
        """Return the array itself; raise RuntimeError for a tensor that requires a gradient."""
        if self._node is not None:
            raise RuntimeError("numpy() of a tensor that requires a gradient: use tensor.detach().numpy()")
        return self._data

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.array(self.numpy(), dtype, copy=copy)

    def item(self) -> Any:
        """Return the only element as a Python number; raise ValueError where there are more or none."""
        return self._data.item()

    def tolist(self) -> Any:
        return self._data.tolist()

    def astype(self, dtype: DTypeLike) -> "Tensor":
        """Return a copy in another dtype, outside the graph."""
        return Tensor(self._data.astype(dtype))

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> "Tensor":
        """Return the indices of the first greatest elements."""
        kept = np.argmax(self._data, axis=axis, keepdims=True)
        return Tensor(np.asarray(kept if keepdims else kept.squeeze(axis)))

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
        return self._apply(indexing.take, self, index=_plain_index(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        index = _plain_index(index)
        wanted = self._node is not None or (isinstance(value, Tensor) and value._node is not None)
        if wanted and recording.get():
            self._apply_in_place(indexing.put, value, index=index)
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
        """Overwrite all elements with those of `source`, broadcast."""
        self[...] = source
        return self

    def fill_(self, value: float) -> "Tensor":
        """Overwrite all elements with one number."""
        self[...] = value
        return self


def apply(primitive: Primitive, *operands: Any, **options: Any) -> Tensor:
    """Compute a primitive on tensors, arrays and numbers, and record it where a gradient is wanted."""
    return Tensor._apply(primitive, *operands, **options)


def _wrap(array: Array, version: Version, node: Parent) -> Tensor:
    """Return a tensor around an array that is known to be one."""
    tensor = Tensor.__new__(Tensor)
    tensor._data = array
    tensor._version = version
    tensor._node = node
    return tensor


def _plain_index(index: Any) -> Any:
    """Return an index with arrays in place of tensors."""
    if isinstance(index, tuple):
        return tuple(each._data if isinstance(each, Tensor) else each for each in index)
    return index._data if isinstance(index, Tensor) else index

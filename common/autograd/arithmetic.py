"""The operators of a tensor. Knows which primitive each stands for, and nothing of how one is recorded."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

from common.autograd.primitives import elementwise, linear_algebra

T = TypeVar("T")


class Arithmetic(Generic[T]):
    """Operators with NumPy's broadcasting; a Python number takes the tensor's dtype. Their results are of type `T`."""

    __slots__ = ()

    #: `(primitive, *operands, **options) -> T`
    _apply: Callable[..., T]
    #: The same on `self` and other operands, written into `self`.
    _apply_in_place: Callable[..., T]
    #: `(ufunc, *operands) -> T` for what has no gradient.
    _compare: Callable[..., T]

    def __add__(self, other: Any) -> T:
        return self._apply(elementwise.add, self, other)

    def __radd__(self, other: Any) -> T:
        return self._apply(elementwise.add, other, self)

    def __sub__(self, other: Any) -> T:
        return self._apply(elementwise.subtract, self, other)

    def __rsub__(self, other: Any) -> T:
        return self._apply(elementwise.subtract, other, self)

    def __mul__(self, other: Any) -> T:
        return self._apply(elementwise.multiply, self, other)

    def __rmul__(self, other: Any) -> T:
        return self._apply(elementwise.multiply, other, self)

    def __truediv__(self, other: Any) -> T:
        return self._apply(elementwise.divide, self, other)

    def __rtruediv__(self, other: Any) -> T:
        return self._apply(elementwise.divide, other, self)

    def __pow__(self, other: Any) -> T:
        return self._apply(elementwise.power, self, other)

    def __rpow__(self, other: Any) -> T:
        return self._apply(elementwise.power, other, self)

    def __matmul__(self, other: Any) -> T:
        return self._apply(linear_algebra.matmul, self, other)

    def __rmatmul__(self, other: Any) -> T:
        return self._apply(linear_algebra.matmul, other, self)

    def __neg__(self) -> T:
        return self._apply(elementwise.negate, self)

    def __pos__(self) -> T:
        return self._apply(elementwise.multiply, self, 1)

    def __abs__(self) -> T:
        return self._apply(elementwise.absolute, self)

    def __iadd__(self, other: Any) -> T:
        return self._apply_in_place(elementwise.add, other)

    def __isub__(self, other: Any) -> T:
        return self._apply_in_place(elementwise.subtract, other)

    def __imul__(self, other: Any) -> T:
        return self._apply_in_place(elementwise.multiply, other)

    def __itruediv__(self, other: Any) -> T:
        return self._apply_in_place(elementwise.divide, other)

    def __eq__(self, other: Any) -> T:  # type: ignore[override]
        return self._compare(np.equal, self, other)

    def __ne__(self, other: Any) -> T:  # type: ignore[override]
        return self._compare(np.not_equal, self, other)

    def __lt__(self, other: Any) -> T:
        return self._compare(np.less, self, other)

    def __le__(self, other: Any) -> T:
        return self._compare(np.less_equal, self, other)

    def __gt__(self, other: Any) -> T:
        return self._compare(np.greater, self, other)

    def __ge__(self, other: Any) -> T:
        return self._compare(np.greater_equal, self, other)

    def __and__(self, other: Any) -> T:
        return self._compare(np.bitwise_and, self, other)

    def __or__(self, other: Any) -> T:
        return self._compare(np.bitwise_or, self, other)

    def __invert__(self) -> T:
        return self._compare(np.invert, self)

    # Tensors are equal to nothing but themselves as keys, whatever their elements.
    __hash__ = object.__hash__

    def pow(self, exponent: Any) -> T:
        """Return `self ** exponent`."""
        return self._apply(elementwise.power, self, exponent)

    def matmul(self, other: Any) -> T:
        """Return `self @ other`, with vectors and batches as in NumPy."""
        return self._apply(linear_algebra.matmul, self, other)

    def abs(self) -> T:
        """Return the absolute value; at 0 its derivative is 0."""
        return self._apply(elementwise.absolute, self)

    def maximum(self, other: Any) -> T:
        """Return the greater of the two, element by element; at a tie each gets half of the gradient."""
        return self._apply(elementwise.maximum, self, other)

    def minimum(self, other: Any) -> T:
        """Return the smaller of the two, element by element; at a tie each gets half of the gradient."""
        return self._apply(elementwise.minimum, self, other)

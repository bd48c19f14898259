"""A tensor that a module learns; knows nothing of modules or layouts."""

from numpy.typing import ArrayLike

from common.autograd.tensor import Tensor


class Parameter(Tensor):
    """A `Tensor` that a `Module` registers when it is assigned to one of its attributes.

    `.data` is float32 unless float64 is given. It may be made a view into a flat vector at any time, so whoever changes
    a parameter's values writes into `.data` and never replaces it.
    """

    __slots__ = ()

    def __init__(self, data: ArrayLike, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)

"""Primitives over signals, (batch, channels, length): those over images, of one row."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.autograd.primitives.spatial.windows import single

#: What the options are across the only row.
_ACROSS = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1, "output_size": 1}


def over_signals(name: str, images: Primitive, check: Callable[..., None] | None = None) -> Primitive:
    """Return the primitive over signals; its options are those over images, one integer each.

    `check` raises for arguments that the primitive over images would call by another name.
    """
    assert isinstance(images.derivatives, tuple)

    def forward(x: Array, *arrays: Array | None, **options: Any) -> Any:
        _check_signals(x, name)
        if check is not None:
            check(*arrays)
        result = images.forward(*map(_lifted, (x, *arrays)), **_of_one_row(options))
        return (result[0][:, :, 0], result[1]) if images.keeps else result[:, :, 0]

    return Primitive(
        name,
        forward,
        tuple(derivative and _lowered(derivative) for derivative in images.derivatives),
        keeps=images.keeps,
        reads=images.reads,
        writes=images.writes,
        is_opaque=images.is_opaque,
    )


def _lowered(derivative: Callable[..., Array]) -> Callable[..., Array]:
    """Return the derivative over signals of one over images."""

    def lowered(*arrays: Any, out: Array | None = None, **options: Any) -> Array:
        written = {} if out is None else {"out": _lifted(out)}
        return _flat(derivative(*map(_lifted, arrays), **_of_one_row(options), **written))

    return lowered


def _lifted(x: Any) -> Any:
    """Return a signal, or a kernel over one, as an image of one row; anything else as it is."""
    return x[:, :, None] if isinstance(x, np.ndarray) and x.ndim == 3 else x


def _flat(x: Array) -> Array:
    return x[:, :, 0] if x.ndim == 4 else x


def _of_one_row(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (_ACROSS[name], single(value, name)) if name in _ACROSS and value is not None else value
        for name, value in options.items()
    }


def _check_signals(x: Array, name: str) -> None:
    """Raise ValueError unless `x` is (batch, channels, length)."""
    if x.ndim != 3:
        raise ValueError(
            f"{name} got an input of shape {x.shape!r}, expected (batch, channels, length): reshape it to three axes"
        )

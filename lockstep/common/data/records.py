"""Samples, or labels, of several arrays each as one array of records: what gathers, stores or sends rows knows one.

Inputs have names, as "image" and "table", or are numbered from 0. Among labels, one name is that of samples' weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.errors import DataError

#: The name of a sample's weight among the labels, if samples have weights, and that of a label that is the only one.
WEIGHT, LABEL = "sample_weight", "y"


def as_records(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return arrays of one length, (n, …), as records, (n,), which have them by name in that order.

    `DataError` if one is a single value, or they are of different lengths.
    """
    for name, array in arrays.items():
        if not array.ndim:
            raise DataError(f"{name!r} is a single value: expected an array with a row for each sample")
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1:
        lengths = ", ".join(f"{name!r} has {len(array)}" for name, array in arrays.items())
        raise DataError(f"arrays of different lengths: {lengths}; expected a row for each sample")
    records = np.empty(rows.pop(), [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()])
    for name, array in arrays.items():
        records[name] = array
    return records


def fields_of(samples: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return the arrays of records by name, as views; of other samples, themselves without a name."""
    return {name: samples[name] for name in samples.dtype.names} if samples.dtype.names else {"": samples}


def are_numbered(names: Sequence[str]) -> bool:
    """Tell whether names are the places of arrays that were given in order: others have no order but the alphabet's."""
    return list(names) == [str(place) for place in range(len(names))]


def parts_of(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return labels without the weights of samples, and these, (n,), or None."""
    if labels.dtype.names is None:
        return labels, None
    names = [name for name in labels.dtype.names if name != WEIGHT]
    weights = labels[WEIGHT] if len(names) < len(labels.dtype.names) else None
    return (labels[names[0]] if len(names) == 1 else labels), weights


def as_input(named: str, array: NDArray[Any]) -> NDArray[Any]:
    """Return one of several inputs: bytes as they are, other integers as int32, floats as float32; of any shape."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        limits = np.iinfo(np.int32)
        if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
            raise DataError(f"{named} has integers of more than 32 bits: expected smaller ones, or floats")
        return array.astype(np.int32)
    if array.dtype.kind != "f":
        raise DataError(f"{named} is of dtype {str(array.dtype)!r}: expected an array of numbers")
    with np.errstate(over="ignore"):  # what float32 does not hold is refused by name
        return array.astype(np.float32)


def labels_with(arrays: Mapping[str, NDArray[Any]], weights: NDArray[Any] | None) -> NDArray[Any]:
    """Return labels as they are if they are one array without weights, otherwise as records."""
    if weights is None and list(arrays) == [""]:
        return arrays[""]
    named = {name or LABEL: array for name, array in arrays.items()}
    if weights is None:
        return as_records(named)
    if weights.ndim != 1 or weights.dtype.kind not in "biuf":
        raise DataError(
            f"weights of samples of shape {weights.shape!r} and dtype {str(weights.dtype)!r}: expected numbers, (n,)"
        )
    return as_records({**named, WEIGHT: weights.astype(np.float32)})

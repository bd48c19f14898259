"""How a change in place is noticed: every tensor, with all views of its memory, has one count of such changes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from common.autograd.primitives.primitive import Array


class Version:
    """How often the memory of an array, and of all its views, was changed in place."""

    #: Class attributes are the defaults: making one costs nothing until it is changed.
    count = 0
    #: Whether a view of the memory was made by a primitive.
    viewed = False


def version_of(result: Array, arrays: Sequence[Any], versions: Sequence[Version | None]) -> Version:
    """Return the version of the argument whose memory `result` shares, or a new one."""
    is_view = result.base is not None
    for array, version in zip(arrays, versions, strict=True):
        if version is not None and (array is result or (is_view and np.may_share_memory(array, result))):
            version.viewed = True
            return version
    return Version()

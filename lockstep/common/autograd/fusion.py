"""Makes fewer calls of those on a tape, with the same bits: what a call costs beyond its arithmetic is saved.

NumPy takes up to a microsecond for a call before it computes anything; a step of a small model consists of that.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from lockstep.common.autograd.tape import Call, View


def without_ones(calls: Sequence[Call]) -> list[bool]:
    """Tell for each call whether it is needed: not if it multiplies by ones, as by the gradient of the loss itself."""
    written = Counter(each for call in calls for each in call.written())
    ones = {
        call.operands[0].memory
        for call in calls
        if call.function is np.copyto
        and type(call.operands[1]) in (int, float)
        and call.operands[1] == 1
        and call.operands[0].nbytes == call.operands[0].memory.size
        and written[call.operands[0].memory] == 1
    }
    return [not any(view.memory in ones for view in _factors(call)) for call in calls]


def _factors(call: Call) -> Iterator[View]:
    """Yield what an array is multiplied by in place."""
    if call.function is np.multiply:
        left, right, result = call.operands
        if left == result and isinstance(right, View):
            yield right

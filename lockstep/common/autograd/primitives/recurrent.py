"""Recurrent layers over sequences (steps, batch, features): LSTM, GRU, and a plain recurrence with tanh or relu."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics import leaves
from lockstep.common.numerics.operands import GATES


@dataclass(eq=False, slots=True)
class _Pass:
    """The values that a forward keeps for its backward."""

    kind: str
    is_reversed: bool
    #: By sequence, its number of steps, (batch,); None if all are as long as the longest.
    lengths: Array | None
    gates: Array  # (steps, batch, gates · hidden), after their functions
    #: Of an LSTM, tanh of the cells; of a GRU, the state's part of the candidate. (steps, batch, hidden)
    curves: Array
    cells: Array  # those of an LSTM as states, otherwise empty
    states: Array  # (steps + 1, batch, hidden), with the first one in front, or at the end if the last step is first
    #: The gradient of the last backward, and what came of it: all arguments' gradients are computed at once.
    known: tuple[Array, tuple[Array | None, ...]] | None = field(default=None)

    @property
    def kept(self) -> tuple[Any, ...]:
        """Operands of leaves, behind the weights."""
        return self.gates, self.curves, self.cells, self.states, self.kind, self.is_reversed


def _recurrent(
    x: Array,
    state: Array | None,
    cell: Array | None,
    to_input: Array,
    to_state: Array,
    input_bias: Array | None = None,
    state_bias: Array | None = None,
    *,
    kind: str,
    is_reversed: bool = False,
    lengths: tuple[int, ...] | None = None,
) -> tuple[Array, _Pass]:
    """Return the states after each step, (steps, batch, hidden), then the last ones, and of an LSTM the last cells.

    `x` is (steps, batch, features); the weights are (gates · hidden, features) and (gates · hidden, hidden), with gates
    in PyTorch's order. Beyond the end of a sequence, the states are 0, and the last one is that at its end.
    """
    _check(x, state, cell, to_input, to_state, kind, lengths)
    steps, batch, _ = x.shape
    hidden, dtype = to_state.shape[1], np.result_type(x, to_input)

    def arrays(count: int, first: Array | None = None) -> Array:
        made = np.empty((count, batch, hidden), dtype)
        if count > steps:
            made[-1 if is_reversed else 0] = 0 if first is None else first
        return made

    made = _Pass(
        kind,
        is_reversed,
        None if lengths is None else np.array(lengths, np.int64),
        np.empty((steps, batch, len(to_input)), dtype),
        arrays(steps if kind in ("lstm", "gru") else 0),
        arrays(steps + 1 if kind == "lstm" else 0, cell),
        arrays(steps + 1, state),
    )
    if kind != "gru" and input_bias is not None and state_bias is not None:
        # A GRU multiplies the state's bias with a gate.
        input_bias, state_bias = input_bias + state_bias, None
    given = (x, to_input, input_bias, state_bias, made.lengths, to_state)
    leaves.recurrent.bind(*map(_flat, given), *made.kept)()
    return _result(made), made


def _flat(array: Any) -> Any:
    """Return an array that lies row after row, as leaves read it; None for None."""
    return None if array is None else np.require(array, requirements=["C", "A"])


def _check(
    x: Array,
    state: Array | None,
    cell: Array | None,
    to_input: Array,
    to_state: Array,
    kind: str,
    lengths: tuple[int, ...] | None,
) -> None:
    hidden = to_state.shape[-1]
    fits = x.ndim == 3 and to_input.shape == (GATES[kind] * hidden, x.shape[-1])
    if not fits or to_state.shape != (GATES[kind] * hidden, hidden):
        raise ValueError(
            f"a recurrent layer got an input of shape {x.shape} and weights of {to_input.shape} and {to_state.shape}: "
            "expected (steps, batch, features), (gates · hidden, features) and (gates · hidden, hidden)"
        )
    if not len(x):
        raise ValueError("a recurrent layer got a sequence without steps: expected at least one")
    for each in (state, cell):
        if each is not None and each.shape != (x.shape[1], hidden):
            raise ValueError(f"the first state has shape {each.shape}: expected {(x.shape[1], hidden)}")
    if lengths is not None and (len(lengths) != x.shape[1] or not all(0 < each <= len(x) for each in lengths)):
        raise ValueError(f"lengths is {lengths!r}: expected {x.shape[1]} numbers from 1 to {len(x)}")


def _result(made: _Pass) -> Array:
    steps, last = len(made.gates), 0 if made.is_reversed else -1
    result = np.empty((steps + 1 + bool(len(made.cells)), *made.states.shape[1:]), made.states.dtype)
    result[:steps] = made.states[:-1] if made.is_reversed else made.states[1:]
    if made.lengths is not None:
        result[:steps][made.lengths <= np.arange(steps)[:, np.newaxis]] = 0
    result[steps] = made.states[last]
    if len(made.cells):
        result[steps + 1] = made.cells[last]
    return result


def _gradients(
    gradient: Array, made: _Pass, x: Array, to_input: Array | None, to_state: Array
) -> tuple[Array | None, ...]:
    """Return the gradients of all arguments: none of x without the weights that it needs."""
    known = made.known
    if known is not None and (known[0] is gradient or _is_same(known[0], gradient)):
        return known[1]
    (steps, batch, count), hidden, features = made.gates.shape, to_state.shape[1], x.shape[-1]
    upstream, dtype = _flat(gradient), made.gates.dtype
    of_states = np.zeros((2, batch, hidden), dtype)
    of_states[: len(upstream) - steps] = upstream[steps:]
    of_x = None if to_input is None else np.empty_like(x, dtype, order="C")
    of_weights = (np.empty((count, features), dtype), np.empty((count, hidden), dtype))
    of_biases = np.empty((2, count), dtype)
    given = (_flat(x), _flat(to_input), upstream[:steps], of_states, np.empty_like(made.gates))
    filled = (of_x, *of_weights, of_biases)
    leaves.recurrent_gradient.bind(*given, *filled, made.lengths, _flat(to_state), *made.kept)()
    made.known = gradient, (of_x, *of_states, *of_weights, *of_biases)
    return made.known[1]


def _is_same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _derivative(argument: int) -> Callable[..., Array]:
    def derivative(
        gradient: Array,
        made: _Pass,
        x: Array,
        _: Any,
        __: Any,
        to_input: Array | None,
        to_state: Array,
        *___: Any,
        **____: Any,
    ) -> Array:
        found = _gradients(gradient, made, x, to_input, to_state)[argument]
        assert found is not None
        return found

    return derivative


recurrent = Primitive(
    "recurrent",
    _recurrent,
    tuple(_derivative(argument) for argument in range(7)),
    keeps=True,
    # The weights of the input are there only if its gradient is wanted.
    reads=((0, 3, 4), *((0, 4),) * 6),
    is_opaque=True,
)

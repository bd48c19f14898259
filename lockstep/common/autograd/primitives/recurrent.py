"""Recurrent layers over sequences (steps, batch, features): LSTM, GRU, and a plain recurrence with tanh or relu.

One product makes the inputs of all steps; then each step is a product with the state before it, and arithmetic of its
elements. In between, arrays are (features, batch), so that a step lies in one piece.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics import leaves

#: Gates by kind: how many times `hidden_size` rows the weights have.
GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}


@dataclass(eq=False, slots=True)
class _Pass:
    """The values that a forward keeps for its backward, in the order in which the steps are made."""

    kind: str
    #: The number of each step in the sequence.
    order: list[int]
    #: By step, the sequences that have ended, (batch,); None if all are as long as the longest.
    ended: list[Array] | None
    gates: Array  # (steps, gates · hidden, batch), after their functions
    states: Array  # (steps + 1, hidden, batch), the first one that before all steps
    cells: Array  # the same of an LSTM, otherwise empty
    #: Of an LSTM, tanh of the cells; of a GRU, the state's part of the candidate. (steps, hidden, batch)
    curves: Array
    #: The gradient of the last backward, and what came of it: all arguments' gradients are computed at once.
    known: tuple[Array, tuple[Array | None, ...]] | None = field(default=None)


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
    hidden = to_state.shape[1]
    order = list(range(steps))[:: -1 if is_reversed else 1]
    inputs = leaves.matrix_product(to_input, _columns(x), *_input_bias(kind, input_bias, state_bias))
    inputs = inputs.reshape(-1, steps, batch)
    made = _Pass(
        kind,
        order,
        None if lengths is None else [np.asarray(lengths) <= step for step in order],
        np.empty((steps, len(to_input), batch), inputs.dtype),
        _first(state, steps + 1, hidden, batch, inputs.dtype),
        _first(cell, steps + 1 if kind == "lstm" else 0, hidden, batch, inputs.dtype),
        np.empty((steps if kind in ("lstm", "gru") else 0, hidden, batch), inputs.dtype),
    )
    bias = (state_bias,) if kind == "gru" and state_bias is not None else ()
    for place, step in enumerate(order):
        leaves.matrix_product(to_state, made.states[place], *bias, out=made.gates[place])
        _FORWARD[kind](made, place, inputs[:, step])
        if made.ended is not None:
            for held in (made.states, made.cells):
                if len(held):
                    np.copyto(held[place + 1], held[place], where=made.ended[place])
    return _result(made), made


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


def _columns(x: Array) -> Array:
    """Return (steps, batch, features) as (features, steps · batch)."""
    return x.reshape(-1, x.shape[-1]).T


def _input_bias(kind: str, input_bias: Array | None, state_bias: Array | None) -> tuple[Array, ...]:
    """Return the bias that is added for all steps at once. A GRU multiplies the state's bias with a gate."""
    if input_bias is None or state_bias is None:
        return ()
    return (input_bias,) if kind == "gru" else (input_bias + state_bias,)


def _first(first: Array | None, count: int, hidden: int, batch: int, dtype: np.dtype[Any]) -> Array:
    made = np.empty((count, hidden, batch), dtype)
    if count:
        made[0] = 0 if first is None else first.T
    return made


def _result(made: _Pass) -> Array:
    count, hidden, batch = made.states.shape
    result = np.empty((count + bool(len(made.cells)), batch, hidden), made.states.dtype)
    for place, step in enumerate(made.order):
        np.copyto(result[step], made.states[place + 1].T)
        if made.ended is not None:
            result[step][made.ended[place]] = 0
    result[count - 1] = made.states[-1].T
    if len(made.cells):
        result[count] = made.cells[-1].T
    return result


# Forward of one step: gates are the products with the state before it, `inputs` those with the input


def _lstm(made: _Pass, place: int, inputs: Array) -> None:
    gates, hidden = made.gates[place], made.states.shape[1]
    gates += inputs
    leaves.sigmoid(gates[: 2 * hidden], out=gates[: 2 * hidden])
    leaves.tanh(gates[2 * hidden : 3 * hidden], out=gates[2 * hidden : 3 * hidden])
    leaves.sigmoid(gates[3 * hidden :], out=gates[3 * hidden :])
    takes, keeps, candidate, shows = gates.reshape(4, hidden, -1)
    cell, curve = made.cells[place + 1], made.curves[place]
    np.multiply(takes, candidate, out=curve)
    np.multiply(keeps, made.cells[place], out=cell)
    cell += curve
    leaves.tanh(cell, out=curve)
    np.multiply(shows, curve, out=made.states[place + 1])


def _gru(made: _Pass, place: int, inputs: Array) -> None:
    gates, hidden = made.gates[place], made.states.shape[1]
    both, candidate, state = gates[: 2 * hidden], gates[2 * hidden :], made.states[place + 1]
    np.copyto(made.curves[place], candidate)
    both += inputs[: 2 * hidden]
    leaves.sigmoid(both, out=both)
    candidate *= both[:hidden]
    candidate += inputs[2 * hidden :]
    leaves.tanh(candidate, out=candidate)
    np.subtract(made.states[place], candidate, out=state)
    state *= both[hidden:]
    state += candidate


def _tanh(made: _Pass, place: int, inputs: Array) -> None:
    gates = made.gates[place]
    gates += inputs
    leaves.tanh(gates, out=made.states[place + 1])


def _relu(made: _Pass, place: int, inputs: Array) -> None:
    gates = made.gates[place]
    gates += inputs
    leaves.relu(gates, out=made.states[place + 1])


_FORWARD: dict[str, Callable[[_Pass, int, Array], None]] = {"lstm": _lstm, "gru": _gru, "tanh": _tanh, "relu": _relu}


# Backward of one step: from the gradient of the state after it, which may be overwritten, write the gradient of the
# gates before their functions; return what the state before it gets directly


def _lstm_back(made: _Pass, place: int, state: Array, cell: Array, gates: Array, _: Array) -> Array | None:
    hidden = len(state)
    takes, keeps, candidate, shows = made.gates[place].reshape(4, hidden, -1)
    of_takes, of_keeps, of_candidate, of_shows = gates.reshape(4, hidden, -1)
    curve = made.curves[place]
    np.multiply(state, curve, out=of_shows)
    state *= shows
    cell += state
    state *= curve
    state *= curve
    cell -= state
    np.multiply(cell, candidate, out=of_takes)
    np.multiply(cell, made.cells[place], out=of_keeps)
    np.multiply(cell, takes, out=of_candidate)
    cell *= keeps
    for gate, of_gate in ((made.gates[place][: 2 * hidden], gates[: 2 * hidden]), (shows, of_shows)):
        of_gate *= gate
        of_gate *= 1 - gate
    of_candidate *= 1 - candidate * candidate
    return None


def _gru_back(made: _Pass, place: int, state: Array, _: Array, gates: Array, to_state: Array) -> Array | None:
    hidden = len(state)
    resets, keeps, candidate = made.gates[place].reshape(3, hidden, -1)
    of_resets, of_keeps, of_candidate = gates.reshape(3, hidden, -1)
    np.subtract(made.states[place], candidate, out=of_keeps)
    of_keeps *= state
    direct: Array = state * keeps
    np.subtract(state, direct, out=of_candidate)
    of_candidate *= 1 - candidate * candidate
    np.multiply(of_candidate, made.curves[place], out=of_resets)
    for gate, of_gate in ((resets, of_resets), (keeps, of_keeps)):
        of_gate *= gate
        of_gate *= 1 - gate
    np.copyto(to_state, gates)
    to_state[2 * hidden :] *= resets
    return direct


def _tanh_back(made: _Pass, place: int, state: Array, _: Array, gates: Array, __: Array) -> Array | None:
    result = made.states[place + 1]
    np.multiply(state, 1 - result * result, out=gates)
    return None


def _relu_back(made: _Pass, place: int, state: Array, _: Array, gates: Array, __: Array) -> Array | None:
    np.copyto(gates, leaves.relu_gradient(state, made.states[place + 1]))
    return None


_BACKWARD = {"lstm": _lstm_back, "gru": _gru_back, "tanh": _tanh_back, "relu": _relu_back}


def _gradients(gradient: Array, made: _Pass, x: Array, to_input: Array, to_state: Array) -> tuple[Array | None, ...]:
    """Return the gradients of all arguments."""
    known = made.known
    if known is not None and (known[0] is gradient or _is_same(known[0], gradient)):
        return known[1]
    steps, count, batch = made.gates.shape
    upstream = np.ascontiguousarray(gradient.transpose(0, 2, 1))
    state = upstream[steps].copy()
    cell = upstream[steps + 1].copy() if made.kind == "lstm" else state
    of_gates = np.empty_like(made.gates)
    of_products = np.empty_like(made.gates) if made.kind == "gru" else of_gates
    across = to_state.T
    for place in reversed(range(steps)):
        ended = None if made.ended is None else made.ended[place]
        after, cell_after = (state.copy(), cell.copy()) if ended is not None else (state, cell)
        state += upstream[made.order[place]]
        direct = _BACKWARD[made.kind](made, place, state, cell, of_gates[place], of_products[place])
        if ended is not None:
            of_gates[place][:, ended] = of_products[place][:, ended] = 0
        leaves.matrix_product(across, of_products[place], out=state)
        if direct is not None:
            state += direct
        if ended is not None:
            np.copyto(state, after, where=ended)
            np.copyto(cell, cell_after, where=ended)
    # In the order of the sequence, as x; and as made, as the states.
    of_inputs = np.ascontiguousarray(of_gates[made.order].transpose(1, 0, 2)).reshape(count, -1)
    of_steps = np.ascontiguousarray(of_products.transpose(1, 0, 2)).reshape(count, -1)
    before = np.ascontiguousarray(made.states[:-1].transpose(0, 2, 1)).reshape(steps * batch, -1)
    of_x = leaves.matrix_product(to_input.T, of_inputs).reshape(-1, steps, batch).transpose(1, 2, 0)
    found = (
        of_x,
        state.T,
        cell.T if made.kind == "lstm" else None,
        leaves.matrix_product(of_inputs, _columns(x).T),
        leaves.matrix_product(of_steps, before),
        leaves.total(of_inputs, axis=1),
        leaves.total(of_steps, axis=1),
    )
    made.known = gradient, found
    return found


def _is_same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _derivative(argument: int) -> Callable[..., Array]:
    def derivative(
        gradient: Array,
        made: _Pass,
        x: Array,
        _: Any,
        __: Any,
        to_input: Array,
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
    reads=((0, 3, 4),) * 7,
    is_opaque=True,
)

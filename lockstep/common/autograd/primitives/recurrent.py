"""Recurrent layers over sequences (steps, batch, features): LSTM, GRU, and a plain recurrence with tanh or relu.

One product makes the inputs of all steps; then each step is a product with the state before it, and arithmetic of its
elements. In between, arrays are (features, batch), so that a step lies in one piece.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from lockstep.common.autograd.primitives.primitive import Array, Primitive
from lockstep.common.numerics import leaves
from lockstep.common.numerics.leaves import Instruction

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
    inputs = leaves.matrix_product(to_input, x.transpose(0, 2, 1), *_input_bias(kind, input_bias, state_bias))
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

    def bind(place: int) -> list[Instruction]:
        multiply = leaves.matrix_product.bind(to_state, made.states[place], *bias, made.gates[place])
        return [multiply, *_FORWARD[kind](made, place, inputs[order[place]])]

    bound = leaves.repeated(bind, steps)
    _carry_out([*of_step, *_held(made, place)] for place, of_step in enumerate(bound))
    return _result(made), made


def _carry_out(steps: Iterable[Sequence[Instruction]]) -> None:
    for instruction in leaves.joined(list(chain.from_iterable(steps))):
        instruction()


def _held(made: _Pass, place: int) -> list[Instruction]:
    """Return what keeps the states of sequences that have ended."""
    if made.ended is None:
        return []
    each = [held for held in (made.states, made.cells) if len(held)]
    return [partial(np.copyto, held[place + 1], held[place], where=made.ended[place]) for held in each]


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


def _lstm(made: _Pass, place: int, inputs: Array) -> list[Instruction]:
    cells, states = made.cells, made.states
    arrays = (made.gates[place], inputs, cells[place], cells[place + 1], made.curves[place], states[place + 1])
    return [leaves.lstm.bind(*arrays)]


def _gru(made: _Pass, place: int, inputs: Array) -> list[Instruction]:
    states = made.states
    return [leaves.gru.bind(made.gates[place], inputs, states[place], made.curves[place], states[place + 1])]


def _plain(made: _Pass, place: int, inputs: Array) -> list[Instruction]:
    gates, function = made.gates[place], leaves.tanh if made.kind == "tanh" else leaves.relu
    return [partial(np.add, gates, inputs, out=gates), function.bind(gates, made.states[place + 1])]


_FORWARD = {"lstm": _lstm, "gru": _gru, "tanh": _plain, "relu": _plain}


@dataclass(frozen=True, eq=False, slots=True)
class _Backward:
    """The gradients of a step, which those of the step before it overwrite, and those of all steps."""

    #: That of the result, (steps + 1 or 2, hidden, batch), in the order of the sequence; then those of the last states.
    of_result: Array
    #: Those of a state by the products with it, of a GRU's state directly, of an LSTM's cell, (hidden, batch).
    product: Array
    direct: Array | None
    cell: Array
    #: Of gates before their functions, and of the products with the state: the same but for a GRU.
    of_gates: Array
    of_products: Array

    def bind(self, made: _Pass, place: int) -> list[Instruction]:
        """Return what writes the gradients of gates and products at a place, and others over those that follow it."""
        gates, of_gates, of_result = made.gates[place], self.of_gates[place], self.of_result[made.order[place]]
        if made.kind == "lstm":
            kept = (gates, made.curves[place], made.cells[place])
            return [leaves.lstm_gradient.bind(*kept, self.product, of_result, self.cell, of_gates)]
        if made.kind == "gru":
            kept = (gates, made.curves[place], made.states[place])
            gradients = (self.product, of_result, self.direct, of_gates, self.of_products[place])
            return [leaves.gru_gradient.bind(*kept, *gradients)]
        result = made.states[place + 1]
        add = partial(np.add, self.product, of_result, out=self.product)
        if made.kind == "relu":
            return [add, leaves.relu_gradient.bind(self.product, result, of_gates)]
        return [add, partial(np.multiply, self.product, 1 - result * result, out=of_gates)]

    def without(self, ended: Array, place: int, of_step: Sequence[Instruction]) -> Instruction:
        """Return a step that leaves the gradients of sequences that have ended as they are, and adds none of theirs."""
        *write, multiply = of_step

        def step() -> None:
            product = self.product.copy() if self.direct is None else self.product + self.direct
            cell = self.cell.copy()
            for each in write:
                each()
            self.of_gates[place][:, ended] = self.of_products[place][:, ended] = 0
            multiply()
            self.product[:, ended], self.cell[:, ended] = product[:, ended], cell[:, ended]
            if self.direct is not None:
                self.direct[:, ended] = 0

        return step


def _gradients(gradient: Array, made: _Pass, x: Array, to_input: Array, to_state: Array) -> tuple[Array | None, ...]:
    """Return the gradients of all arguments."""
    known = made.known
    if known is not None and (known[0] is gradient or _is_same(known[0], gradient)):
        return known[1]
    steps, count, batch = made.gates.shape
    back = _went_back(gradient, made, to_state)
    # In the order of the sequence, as x; and as made, as the states.
    in_order = back.of_gates if made.order[0] == 0 else back.of_gates[::-1]
    of_inputs = np.ascontiguousarray(in_order.transpose(1, 0, 2)).reshape(count, -1)
    of_steps = of_inputs
    if in_order is not back.of_products:
        of_steps = np.ascontiguousarray(back.of_products.transpose(1, 0, 2)).reshape(count, -1)
    before = np.ascontiguousarray(made.states[:-1].transpose(0, 2, 1)).reshape(steps * batch, -1)
    of_x = leaves.matrix_product(to_input.T, of_inputs).reshape(-1, steps, batch).transpose(1, 2, 0)
    found = (
        of_x,
        back.product.T,
        back.cell.T if made.kind == "lstm" else None,
        leaves.matrix_product(of_inputs, _columns(x).T),
        leaves.matrix_product(of_steps, before),
        leaves.total(of_inputs, axis=1),
        leaves.total(of_steps, axis=1),
    )
    made.known = gradient, found
    return found


def _went_back(gradient: Array, made: _Pass, to_state: Array) -> _Backward:
    """Return the gradients of all steps, and of the first state and the first cell."""
    steps = len(made.gates)
    upstream, is_lstm = np.ascontiguousarray(gradient.transpose(0, 2, 1)), made.kind == "lstm"
    of_gates, state = np.empty_like(made.gates), upstream[steps].copy()
    back = _Backward(
        upstream,
        product=state,
        direct=np.zeros_like(state) if made.kind == "gru" else None,
        cell=upstream[steps + 1].copy() if is_lstm else np.zeros_like(state),
        of_gates=of_gates,
        of_products=np.empty_like(of_gates) if made.kind == "gru" else of_gates,
    )
    places, across = range(steps)[::-1], to_state.T

    def bind(number: int) -> list[Instruction]:
        multiply = leaves.matrix_product.bind(across, back.of_products[places[number]], state)
        return [*back.bind(made, places[number]), multiply]

    bound = leaves.repeated(bind, steps)
    if made.ended is not None:
        bound = [[back.without(made.ended[at], at, of_step)] for at, of_step in zip(places, bound, strict=True)]
    _carry_out(bound)
    if back.direct is not None:
        state += back.direct
    return back


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

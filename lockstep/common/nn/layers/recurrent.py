"""Recurrent layers: LSTM, GRU and RNN, with the weights, layouts and options of PyTorch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from lockstep.common.autograd import functional as F
from lockstep.common.autograd.primitives.recurrent import recurrent
from lockstep.common.autograd.tensor import Tensor, apply
from lockstep.common.nn.initializers import uniform_
from lockstep.common.nn.layers.sizes import positive, volume
from lockstep.common.nn.module import Parameter, Stochastic, layer
from lockstep.common.numerics.operands import GATES
from lockstep.common.numerics.random import Purpose, default_generator

#: The states before the first step: one array, or of an LSTM (states, cells).
States = Tensor | tuple[Tensor, Tensor]


class _Recurrent(Stochastic):
    """The common part of the layers: all but the kind of a step."""

    #: Of a step: a key of `GATES`.
    _kind: str = ""
    #: The arrays of a state.
    _parts: ClassVar[int] = 1

    # More parameters than a function should have: they are PyTorch's, and that is what people type.
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout probability is {dropout!r}: expected a number in [0, 1]")
        self.input_size = positive(input_size, "input_size")
        self.hidden_size = positive(hidden_size, "hidden_size")
        self.num_layers = positive(num_layers, "num_layers")
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        rows = GATES[self._kind] * hidden_size
        for number, suffix in self._directions():
            features = input_size if not number else hidden_size * (1 + bidirectional)
            for name, shape in (("ih", (rows, features)), ("hh", (rows, hidden_size))):
                setattr(self, f"weight_{name}{suffix}", Parameter(np.empty(shape, np.float32)))
            for name in ("ih", "hh") if bias else ():
                setattr(self, f"bias_{name}{suffix}", Parameter(np.empty(rows, np.float32)))
        self.reset_parameters(rng or default_generator(Purpose.INITIALISE))

    @classmethod
    def count_values(cls, arguments: Mapping[str, Any]) -> int:
        hidden, directions = volume(arguments["hidden_size"]), 1 + bool(arguments["bidirectional"])
        first, others = volume(arguments["input_size"]), volume(arguments["num_layers"]) - 1
        biases, rows = 2 * bool(arguments["bias"]), GATES[cls._kind] * hidden * directions
        return rows * ((first + hidden + biases) + others * (directions * hidden + hidden + biases))

    def reset_parameters(self, rng: np.random.Generator) -> None:
        """Draw all from U(-1/√hidden_size, 1/√hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for _, parameter in self.named_parameters():
            uniform_(parameter, rng, -bound, bound)

    def _directions(self) -> Iterator[tuple[int, str]]:
        """Yield the number of each layer, with the end of its parameters' names, for each direction."""
        for number in range(self.num_layers):
            for suffix in ("", "_reverse")[: 1 + self.bidirectional]:
                yield number, f"_l{number}{suffix}"

    def forward(  # type: ignore[override]  # several results, as in PyTorch
        self, x: Tensor, states: States | None = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, States]:
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "n, t" if self.batch_first else "t, n"
            raise ValueError(f"{type(self).__name__} got shape {x.shape}: expected ({order}, {self.input_size})")
        given = [states] if isinstance(states, Tensor) else list(states or ())
        if given and len(given) != self._parts:
            raise ValueError(f"{type(self).__name__} got {len(given)} arrays as its states: expected {self._parts}")
        if x.ndim == 2:
            output, last = self._forward(x.unsqueeze(1), [each.unsqueeze(1) for each in given], None)
            return output.squeeze(1), self._joined([each.squeeze(1) for each in last])
        ends = None if lengths is None else tuple(int(each) for each in lengths)
        output, last = self._forward(x.transpose(0, 1) if self.batch_first else x, given, ends)
        return output.transpose(0, 1) if self.batch_first else output, self._joined(last)

    def _joined(self, last: list[Tensor]) -> States:
        return last[0] if len(last) == 1 else (last[0], last[1])

    def _forward(self, x: Tensor, given: list[Tensor], lengths: tuple[int, ...] | None) -> tuple[Tensor, list[Tensor]]:
        steps, made, last = x.shape[0], list[Tensor](), list[list[Tensor]]()
        for place, (number, suffix) in enumerate(self._directions()):
            first = [each[place] for each in given] + [None] * (2 - len(given))
            weights = [getattr(self, f"weight_{name}{suffix}") for name in ("ih", "hh")]
            biases = [getattr(self, f"bias_{name}{suffix}") if self.bias else None for name in ("ih", "hh")]
            options = {"kind": self._kind, "is_reversed": suffix.endswith("_reverse"), "lengths": lengths}
            result = apply(recurrent, x, *first, *weights, *biases, **options)
            made.append(result[:steps])
            last.append([result[steps + part] for part in range(self._parts)])
            if len(made) > self.bidirectional:
                x, made = made[0] if len(made) == 1 else F.cat(made, dim=-1), []
                if self.dropout and number + 1 < self.num_layers:
                    x = F.dropout(x, self.dropout, self.training, self._source)
        return x, [F.stack(list(each)) for each in zip(*last, strict=True)]

    def extra_repr(self) -> str:
        parts = [str(self.input_size), str(self.hidden_size)]
        defaults: dict[str, Any] = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        defaults |= {"bidirectional": False, "nonlinearity": "tanh"}
        values = ((name, vars(self).get(name, default), default) for name, default in defaults.items())
        return ", ".join([*parts, *(f"{name}={value!r}" for name, value, default in values if value != default)])


@layer(repeatable=True)
class LSTM(_Recurrent):
    """Long short-term memory over sequences (t, n, input_size); returns the output (t, n, hidden_size) and the states.

    Hochreiter and Schmidhuber, "Long short-term memory", Neural Computation 9, 1997. With `batch_first`, batches come
    before steps. `layer(x, (h, c), lengths)` begins with the states (num_layers, n, hidden_size), and each sequence
    ends after its number of steps: then its output is 0, as that of a packed sequence in PyTorch. With `bidirectional`,
    a second direction is joined to the output, and there are twice as many states. In training, `dropout` zeroes
    outputs between layers. The weights `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, and so on, are those
    of PyTorch. Raises ValueError for a size below 1, and for an input or a state of another shape.

    >>> layer = nn.LSTM(8, 16, batch_first=True)
    >>> output, (h, c) = layer(Tensor(np.zeros((5, 12, 8), np.float32)))
    >>> output.shape, h.shape
    ((5, 12, 16), (1, 5, 16))

    Differs from PyTorch: there is no `PackedSequence`, but the argument `lengths`; `proj_size` is always 0.
    """

    _kind = "lstm"
    _parts = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if proj_size:
            raise ValueError(f"proj_size is {proj_size!r}: expected 0; put a Linear layer behind the LSTM")
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, rng=rng)
        self.proj_size = proj_size


@layer(repeatable=True)
class GRU(_Recurrent):
    """Gated recurrent units over sequences (t, n, input_size); returns the output (t, n, hidden_size) and the states.

    Cho et al., "Learning phrase representations using RNN encoder-decoder", EMNLP 2014. Arguments, weights, shapes, and
    the ValueError that it raises are those of `LSTM`; its states are one array.

    Differs from PyTorch: there is no `PackedSequence`, but the argument `lengths`.
    """

    _kind = "gru"


@layer(repeatable=True)
class RNN(_Recurrent):
    """A plain recurrence over sequences (t, n, input_size); returns the output (t, n, hidden_size) and the states.

    Elman, "Finding structure in time", Cognitive Science 14, 1990. A state is tanh, or relu, of a linear function of
    the input and of the state before. Other arguments, weights, shapes, and the ValueError that it raises, also for
    another `nonlinearity`, are those of `LSTM`; its states are one array.

    Differs from PyTorch: there is no `PackedSequence`, but the argument `lengths`.
    """

    _kind = "tanh"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity is {nonlinearity!r}: expected 'tanh' or 'relu'")
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, rng=rng)
        self.nonlinearity = self._kind = nonlinearity

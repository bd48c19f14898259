"""Recurrent layers have PyTorch's results, for each of their options."""

from typing import Any

import numpy as np
import pytest

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from tests.lockstep.common.nn.examples import rng
from tests.lockstep.common.nn.finite_differences import to_float64

KINDS: dict[str, dict[str, Any]] = {"LSTM": {}, "GRU": {}, "RNN": {}, "RNN, relu": {"nonlinearity": "relu"}}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "batch_first": True},
    {"num_layers": 3, "batch_first": True, "bidirectional": True},
]


def both(kind: str, options: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return PyTorch, a layer of ours in float64, and PyTorch's with the same weights."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: .venv/bin/pip install -e '.[torch]'")
    name, options = kind.partition(",")[0], {**KINDS[kind], **options}
    ours: Any = getattr(nn, name)(4, 5, **options, rng=rng())
    to_float64(ours)
    theirs = getattr(torch.nn, name)(4, 5, **options).double()
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    return torch, ours, theirs


def each_of(states: Any) -> list[Any]:
    return list(states) if isinstance(states, tuple) else [states]


@pytest.mark.parametrize("has_lengths", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients_are_those_of_pytorch(
    kind: str, options: dict[str, Any], has_lengths: bool
) -> None:
    torch, ours, theirs = both(kind, options)
    lengths, first = (6, 4, 1) if has_lengths else None, bool(options.get("batch_first"))
    x = rng(1).standard_normal((3, 6, 4) if first else (6, 3, 4))
    count = options.get("num_layers", 1) * (1 + bool(options.get("bidirectional")))
    states = [rng(2 + part).standard_normal((count, 3, 5)) for part in range(2 if kind == "LSTM" else 1)]

    def joined(arrays: list[Any]) -> Any:
        return tuple(arrays) if len(arrays) > 1 else arrays[0]

    mine = [Tensor(each, requires_grad=True) for each in (x, *states)]
    output, last = ours(mine[0], joined(mine[1:]), lengths)
    theirs_in = [torch.tensor(each, requires_grad=True) for each in (x, *states)]
    rnn, sequence = torch.nn.utils.rnn, theirs_in[0]
    if lengths:
        sequence = rnn.pack_padded_sequence(sequence, torch.tensor(lengths), batch_first=first)
    expected, expected_last = theirs(sequence, joined(theirs_in[1:]))
    if lengths:
        expected, _ = rnn.pad_packed_sequence(expected, batch_first=first)
    pairs = list(zip([output, *each_of(last)], [expected, *each_of(expected_last)], strict=True))
    for number, (found, wanted) in enumerate(pairs):
        np.testing.assert_allclose(found.data, wanted.detach().numpy(), rtol=0, atol=1e-10)
        weights = rng(9 + number).standard_normal(found.shape)
        (found * weights).sum().backward()
        (wanted * torch.from_numpy(weights)).sum().backward(retain_graph=True)
    for given, wanted in zip(mine, theirs_in, strict=True):
        assert given.grad is not None
        np.testing.assert_allclose(given.grad, wanted.grad.numpy(), rtol=0, atol=1e-10)
    of_parameters = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        np.testing.assert_allclose(parameter.grad, of_parameters[name].numpy(), rtol=0, atol=1e-10, err_msg=name)


def test_a_sequence_may_lack_the_batch_axis() -> None:
    layer = nn.LSTM(4, 5, num_layers=2, rng=rng())
    x = rng(1).standard_normal((6, 4))
    output, (h, c) = layer(Tensor(x))
    expected, (last, _) = layer(Tensor(x[:, np.newaxis]))
    assert (output.shape, h.shape, c.shape) == ((6, 5), (2, 5), (2, 5))
    np.testing.assert_array_equal(output.data, expected.data[:, 0])
    np.testing.assert_array_equal(h.data, last.data[:, 0])


def test_dropout_is_between_layers_and_in_training_alone() -> None:
    layer, x = nn.GRU(4, 5, num_layers=2, dropout=1.0, rng=rng()), Tensor(rng(1).standard_normal((6, 3, 4)))
    changed = Tensor(x.data * 2)
    assert np.array_equal(layer(x)[0].data, layer(changed)[0].data)
    layer.eval()
    assert not np.array_equal(layer(x)[0].data, layer(changed)[0].data)


WRONG: dict[str, tuple[Any, str]] = {
    "features": (lambda layer: layer(Tensor(np.ones((6, 3, 5)))), r"LSTM got shape \(6, 3, 5\): expected \(t, n, 4\)"),
    "states": (lambda layer: layer(Tensor(np.ones((6, 3, 4))), Tensor(np.ones((1, 3, 5)))), "got 1 arrays as its"),
    "shape of a state": (
        lambda layer: layer(Tensor(np.ones((6, 3, 4))), (Tensor(np.ones((1, 2, 5))),) * 2),
        "the first state has shape",
    ),
    "lengths": (lambda layer: layer(Tensor(np.ones((6, 3, 4))), None, (7, 1, 1)), "expected 3 numbers from 1 to 6"),
    "no steps": (lambda layer: layer(Tensor(np.ones((0, 3, 4)))), "a sequence without steps"),
    "dropout": (lambda _: nn.GRU(4, 5, dropout=2.0), "dropout probability is 2.0"),
    "nonlinearity": (lambda _: nn.RNN(4, 5, nonlinearity="sine"), "nonlinearity is 'sine'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(what: str) -> None:
    call, text = WRONG[what]
    with pytest.raises(ValueError, match=text):
        call(nn.LSTM(4, 5, rng=rng()))

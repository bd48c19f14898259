"""One or more modules of every public class with an input that each accepts: so that no class escapes a law."""

import inspect

import numpy as np

from lockstep.common import nn
from lockstep.common.autograd.tensor import Tensor
from lockstep.common.nn.module import Module, Stochastic
from lockstep.common.numerics.random import Purpose, generator


def rng(seed: int = 0) -> np.random.Generator:
    """Return a generator whose draws depend on `seed` alone."""
    return generator(seed, Purpose.CANARY)


#: Layers with the shape of an input.
LAYERS: list[tuple[Module, tuple[int, ...]]] = [
    (nn.Linear(4, 3), (5, 4)),
    (nn.Linear(4, 3, bias=False), (2, 5, 4)),
    (nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 9)),
    (nn.Conv1d(4, 6, (3,), dilation=2, groups=2, bias=False), (2, 4, 8)),
    (nn.Conv2d(2, 3, 3), (2, 2, 6, 5)),
    (nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False), (2, 4, 7, 6)),
    (nn.MaxPool1d(2), (3, 2, 6)),
    (nn.MaxPool2d(2), (2, 3, 6, 4)),
    (nn.MaxPool2d((3, 2), stride=2, padding=(1, 0)), (2, 3, 7, 6)),
    (nn.AvgPool1d(3, stride=1, padding=1), (2, 3, 6)),
    (nn.AvgPool2d((2, 1)), (2, 3, 6, 4)),
    (nn.AdaptiveAvgPool1d(3), (2, 3, 7)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 3, 7, 6)),
    (nn.BatchNorm1d(4), (6, 4)),
    (nn.BatchNorm1d(4, eps=1e-3, momentum=0.2, affine=False), (6, 4, 3)),
    (nn.BatchNorm2d(3), (4, 3, 2, 5)),
    (nn.LayerNorm(4), (5, 4)),
    (nn.LayerNorm([3, 4], eps=1e-3, elementwise_affine=False), (5, 3, 4)),
    (nn.PositionalEmbedding(5, 4), (3, 5, 4)),
    (nn.PositionalEmbedding(7, 4), (2, 5, 4)),
    (nn.MultiheadAttention(6, 3, is_causal=True), (2, 4, 6)),
    (nn.MultiheadAttention(4, 1, bias=False), (3, 5, 4)),
    (nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, activation="gelu", norm_first=True, is_causal=True), (2, 3, 4)),
    (nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, activation="gelu"), (2, 3, 4)),
    (nn.Dropout(0.25), (5, 4)),
    (nn.Flatten(), (2, 3, 4)),
    (nn.Flatten(0, 1), (2, 3, 4)),
    (nn.ReLU(), (5, 4)),
    (nn.LeakyReLU(0.2), (5, 4)),
    (nn.GELU(), (5, 4)),
    (nn.GELU("tanh"), (5, 4)),
    (nn.Softplus(), (5, 4)),
    (nn.Softplus(beta=2.0), (5, 4)),
    (nn.Tanh(), (5, 4)),
    (nn.Sigmoid(), (5, 4)),
    (nn.Softmax(dim=1), (5, 4)),
    (nn.LogSoftmax(), (5, 4)),
    (nn.Identity(), (5, 4)),
    (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2, bias=False))), (5, 4)),
    (nn.Sequential({"hidden": nn.Linear(4, 3), "head": nn.Sequential(nn.ReLU(), nn.Linear(3, 2))}), (5, 4)),
]

#: Modules that are not called with one float tensor.
OTHERS: list[Module] = [
    nn.Embedding(5, 3),
    nn.TransformerEncoderLayer(8, 2, 16, dropout=0.25),
    nn.LSTM(3, 4, num_layers=2, dropout=0.5, bidirectional=True),
    nn.GRU(3, 4, bias=False, batch_first=True),
    nn.RNN(3, 4, nonlinearity="relu"),
    nn.ModuleList([nn.Linear(4, 3), nn.ReLU()]),
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    nn.NLLLoss(),
    nn.CrossEntropyLoss(weight=[1.0, 2.0], ignore_index=1),
    nn.MSELoss(reduction="none"),
    nn.L1Loss(),
    nn.SmoothL1Loss(),
    nn.BCEWithLogitsLoss(),
]

ALL: list[Module] = [*(layer for layer, _ in LAYERS), *OTHERS]


def public_classes() -> set[type[Module]]:
    """Return every concrete module class that `nn` offers."""
    offered = (getattr(nn, name) for name in nn.__all__)
    return {each for each in offered if inspect.isclass(each) and issubclass(each, Module)} - {Module, Stochastic}


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return float64 normal numbers."""
    return Tensor(rng(seed).normal(size=shape))


def label(module: Module) -> str:
    """Return a one-line name for a test's id."""
    return repr(module).replace("\n", "")

"""Every layer of `torch.nn` that has a forward of its own, each within a small net for images of 28 by 28.

Given as a model file by the name of the layer, and never imported by the tests.
"""

import math

import torch
from torch import nn


class Around(nn.Module):  # type: ignore[misc]  # as a user writes it
    """A layer between two linear ones."""

    def __init__(self, layer, shape, use) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.first = nn.Linear(784, math.prod(shape))
        self.layer = layer
        self.shape = shape
        self.use = use
        # Only for the shape: whether the layer is deterministic is seen when it trains, in whatever order tests run.
        before = torch._C._get_deterministic_algorithms()
        torch._C._set_deterministic_algorithms(False)
        with torch.no_grad():
            made = use(layer.eval(), torch.zeros(2, *shape))
        torch._C._set_deterministic_algorithms(before)
        self.last = nn.Linear(made.flatten(1).shape[1], 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        made = self.use(self.layer, self.first(x.flatten(1)).view(len(x), *self.shape))
        return self.last(made.flatten(1))


def plain(layer, x):  # type: ignore[no-untyped-def]
    return layer(x)


def first_of(layer, x):  # type: ignore[no-untyped-def]
    return layer(x)[0]


def codes(layer, x):  # type: ignore[no-untyped-def]
    return layer(x.argmax(-1))


def bags(layer, x):  # type: ignore[no-untyped-def]
    return layer(x.argsort(-1)[:, :3])


def attended(layer, x):  # type: ignore[no-untyped-def]
    return layer(x, x, x, need_weights=False)[0]


def twice(layer, x):  # type: ignore[no-untyped-def]
    return layer(x, x)


def flipped(layer, x):  # type: ignore[no-untyped-def]
    return layer(x, x.flip(-1))


def cells(layer, x):  # type: ignore[no-untyped-def]
    state = None
    for step in x.unbind(1):
        state = layer(step, state)
    return state[0] if isinstance(state, tuple) else state


def pooled(layer, x):  # type: ignore[no-untyped-def]
    return layer[1](*layer[0](x))


def unfolded(layer, x):  # type: ignore[no-untyped-def]
    return layer[1](layer[0](x))


def targets(layer, x):  # type: ignore[no-untyped-def]
    return layer.log_prob(x)


LINE, PLANE, SPACE, ROWS = (4, 12), (4, 8, 8), (2, 4, 4, 4), (5, 8)

#: By name: how the layer is made, the shape of its input, and how it is used.
LAYERS = {
    "Linear": (lambda: nn.Linear(8, 6), ROWS, plain),
    "Bilinear": (lambda: nn.Bilinear(8, 8, 6), ROWS, twice),
    "Identity": (lambda: nn.Identity(), ROWS, plain),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), LINE, plain),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), PLANE, plain),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), SPACE, plain),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), LINE, plain),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), PLANE, plain),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, 2), SPACE, plain),
    "Unfold, Fold": (lambda: nn.ModuleList([nn.Unfold(2), nn.Fold(8, 2)]), PLANE, unfolded),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), LINE, plain),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 2, dilation=2), PLANE, plain),
    "MaxPool3d": (lambda: nn.MaxPool3d(2), SPACE, plain),
    "MaxUnpool1d": (
        lambda: nn.ModuleList([nn.MaxPool1d(2, return_indices=True), nn.MaxUnpool1d(2)]), LINE, pooled,
    ),
    "MaxUnpool2d": (
        lambda: nn.ModuleList([nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)]), PLANE, pooled,
    ),
    "MaxUnpool3d": (
        lambda: nn.ModuleList([nn.MaxPool3d(2, return_indices=True), nn.MaxUnpool3d(2)]), SPACE, pooled,
    ),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), LINE, plain),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), PLANE, plain),
    "AvgPool3d": (lambda: nn.AvgPool3d(2), SPACE, plain),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, 4), PLANE, plain),
    "FractionalMaxPool3d": (lambda: nn.FractionalMaxPool3d(2, 2), SPACE, plain),
    "LPPool1d": (lambda: nn.LPPool1d(2, 2), LINE, plain),
    "LPPool2d": (lambda: nn.LPPool2d(2, 2), PLANE, plain),
    "LPPool3d": (lambda: nn.LPPool3d(2, 2), SPACE, plain),
    "AdaptiveMaxPool1d": (lambda: nn.AdaptiveMaxPool1d(5), LINE, plain),
    "AdaptiveMaxPool2d": (lambda: nn.AdaptiveMaxPool2d(3), PLANE, plain),
    "AdaptiveMaxPool3d": (lambda: nn.AdaptiveMaxPool3d(3), SPACE, plain),
    "AdaptiveAvgPool1d": (lambda: nn.AdaptiveAvgPool1d(5), LINE, plain),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(3), PLANE, plain),
    "AdaptiveAvgPool3d": (lambda: nn.AdaptiveAvgPool3d(3), SPACE, plain),
    "ConstantPad2d": (lambda: nn.ConstantPad2d(1, 0.5), PLANE, plain),
    "ZeroPad2d": (lambda: nn.ZeroPad2d(1), PLANE, plain),
    "ReflectionPad1d": (lambda: nn.ReflectionPad1d(2), LINE, plain),
    "ReflectionPad2d": (lambda: nn.ReflectionPad2d(2), PLANE, plain),
    "ReflectionPad3d": (lambda: nn.ReflectionPad3d(1), SPACE, plain),
    "ReplicationPad1d": (lambda: nn.ReplicationPad1d(2), LINE, plain),
    "ReplicationPad2d": (lambda: nn.ReplicationPad2d(2), PLANE, plain),
    "ReplicationPad3d": (lambda: nn.ReplicationPad3d(1), SPACE, plain),
    "CircularPad2d": (lambda: nn.CircularPad2d(2), PLANE, plain),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), LINE, plain),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), PLANE, plain),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(2), SPACE, plain),
    "InstanceNorm1d": (lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True), LINE, plain),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4), PLANE, plain),
    "InstanceNorm3d": (lambda: nn.InstanceNorm3d(2), SPACE, plain),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), PLANE, plain),
    "LayerNorm": (lambda: nn.LayerNorm(8), ROWS, plain),
    "RMSNorm": (lambda: nn.RMSNorm(8), ROWS, plain),
    "LocalResponseNorm": (lambda: nn.LocalResponseNorm(2), PLANE, plain),
    "CrossMapLRN2d": (lambda: nn.CrossMapLRN2d(2), PLANE, plain),
    "RNN": (lambda: nn.RNN(8, 6, 2, dropout=0.1, batch_first=True), ROWS, first_of),
    "LSTM": (lambda: nn.LSTM(8, 6, batch_first=True, bidirectional=True, proj_size=3), ROWS, first_of),
    "GRU": (lambda: nn.GRU(8, 6, batch_first=True), ROWS, first_of),
    "RNNCell": (lambda: nn.RNNCell(8, 6), ROWS, cells),
    "LSTMCell": (lambda: nn.LSTMCell(8, 6), ROWS, cells),
    "GRUCell": (lambda: nn.GRUCell(8, 6), ROWS, cells),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), ROWS, attended),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), ROWS, plain),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), ROWS, twice),
    "Transformer": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), ROWS, twice),
    "Embedding": (lambda: nn.Embedding(8, 6, padding_idx=0), ROWS, codes),
    "Embedding, max_norm": (lambda: nn.Embedding(8, 6, max_norm=0.5), ROWS, codes),
    "Embedding, sparse": (lambda: nn.Embedding(8, 6, sparse=True), ROWS, codes),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(8, 6), (8,), bags),
    "Dropout": (lambda: nn.Dropout(0.2), ROWS, plain),
    "Dropout1d": (lambda: nn.Dropout1d(0.2), LINE, plain),
    "Dropout2d": (lambda: nn.Dropout2d(0.2), PLANE, plain),
    "Dropout3d": (lambda: nn.Dropout3d(0.2), SPACE, plain),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.2), ROWS, plain),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.2), LINE, plain),
    "ChannelShuffle": (lambda: nn.ChannelShuffle(2), PLANE, plain),
    "PixelShuffle": (lambda: nn.PixelShuffle(2), PLANE, plain),
    "PixelUnshuffle": (lambda: nn.PixelUnshuffle(2), PLANE, plain),
    "Upsample, nearest": (lambda: nn.Upsample(scale_factor=2), PLANE, plain),
    "Upsample, bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), PLANE, plain),
    "Upsample, bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), PLANE, plain),
    "Upsample, linear": (lambda: nn.Upsample(scale_factor=2, mode="linear"), LINE, plain),
    "Upsample, trilinear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), SPACE, plain),
    "Flatten, Unflatten": (lambda: nn.ModuleList([nn.Flatten(), nn.Unflatten(1, (8, 5))]), ROWS, unfolded),
    "Softmax": (lambda: nn.Softmax(-1), ROWS, plain),
    "Softmax2d": (lambda: nn.Softmax2d(), PLANE, plain),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), ROWS, plain),
    "Softmin": (lambda: nn.Softmin(-1), ROWS, plain),
    "CosineSimilarity": (lambda: nn.CosineSimilarity(-1), ROWS, flipped),
    "PairwiseDistance": (lambda: nn.PairwiseDistance(), ROWS, flipped),
    "AdaptiveLogSoftmaxWithLoss": (lambda: nn.AdaptiveLogSoftmaxWithLoss(8, 10, [4]), (8,), targets),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 6)), ROWS, plain),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), ROWS, plain),
    "spectral_norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 6)), ROWS, plain),
    **{
        name: (getattr(nn, name), ROWS, plain)
        for name in (
            "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid",
            "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign",
            "Tanh", "Tanhshrink",
        )
    },
    "GLU": (lambda: nn.GLU(), ROWS, plain),
    "Threshold": (lambda: nn.Threshold(0.1, 0.0), ROWS, plain),
}  # fmt: skip


def builder(name):  # type: ignore[no-untyped-def]
    make, shape, use = LAYERS[name]
    return lambda: Around(make(), shape, use)


#: A function for each layer: what a job names, without what is no identifier.
for _name in LAYERS:
    globals()[_name.replace(", ", "_")] = builder(_name)  # type: ignore[no-untyped-call]

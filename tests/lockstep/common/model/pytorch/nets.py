"""Nine nets of PyTorch, with all that could depend on who computes: given as model files, never imported."""

import torch
from torch import nn
from torch.nn import functional as F


def mlp():  # type: ignore[no-untyped-def]  # as a user writes it
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10)
    )


def lenet():  # type: ignore[no-untyped-def]
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def cnn():  # type: ignore[no-untyped-def]
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.GELU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8, momentum=0.3), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class Encoder(nn.Module):  # type: ignore[misc]
    """A Transformer's layer over the rows of an image, whose brightest places are its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(28, 16)
        self.place = nn.Parameter(torch.zeros(28, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        tokens = x[:, 0].argmax(dim=2)
        return self.head(self.layer(self.token(tokens) + self.place).mean(dim=1))


def transformer():  # type: ignore[no-untyped-def]
    return Encoder()


class Recurrent(nn.Module):  # type: ignore[misc]
    """A recurrent net over the rows of an image."""

    def __init__(self, kind, **options) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.rows = kind(28, 12, batch_first=True, **options)
        self.head = nn.Linear(12, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.head(self.rows(x[:, 0])[0][:, -1])


def gru():  # type: ignore[no-untyped-def]
    return Recurrent(nn.GRU)


def lstm():  # type: ignore[no-untyped-def]
    return Recurrent(nn.LSTM, num_layers=2, dropout=0.2)


def depthwise():  # type: ignore[no-untyped-def]
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=3), nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.Conv2d(8, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


class Enlarging(nn.Module):  # type: ignore[misc]
    """A transposed convolution, and bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(1, 4, 7, stride=7)
        self.larger = nn.ConvTranspose2d(4, 3, 3, stride=2)
        self.head = nn.Linear(3 * 14 * 14, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.tanh(self.larger(self.small(x)))
        return self.head(F.interpolate(x, size=(14, 14), mode="bilinear", align_corners=False).flatten(1))


def upsampling():  # type: ignore[no-untyped-def]
    return Enlarging()


class Block(nn.Module):  # type: ignore[misc]
    """Two convolutions and what goes around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
            if stride > 1 or before != after
            else nn.Identity()
        )

    def forward(self, x):  # type: ignore[no-untyped-def]
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet18(width: int = 4):  # type: ignore[no-untyped-def]
    blocks, before = [], width
    for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        blocks += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10),
    )  # fmt: skip

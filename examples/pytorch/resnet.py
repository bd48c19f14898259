"""A ResNet-18 of an eighth of its width, in PyTorch: MNIST's images, padded to 32 by 32, in ten classes.

    lockstep train --job examples/pytorch/resnet.toml

After He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, with the first layer for small
images (3 by 3, no pooling). `build` says nothing of workers, seeds or devices: that is the job's, and Lockstep's.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, after, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """Eight blocks of two convolutions; `width` is 64 in the paper."""

    def __init__(self, width: int = 64, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks: list[nn.Module] = []
        before = width
        for after, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            blocks += [Block(before, after, stride), Block(after, after, 1)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, classes) of images (n, channels, 32, 32), or smaller ones, which are padded."""
        missing = 32 - images.shape[-1]
        if missing:
            images = F.pad(images, (missing // 2, missing - missing // 2) * 2)
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


def build() -> nn.Module:
    """Return a new model. Its weights are drawn from the job's seed."""
    return ResNet18(width=8, channels=1)


def full() -> nn.Module:
    """Return the paper's width, for images (3, 32, 32): 11 million weights."""
    return ResNet18()

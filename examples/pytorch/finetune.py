"""A backbone of timm, trained on MNIST, is frozen, and gets a new head for the digits of a pocket calculator.

    python examples/own_data.py
    lockstep train --model examples/pytorch/finetune.py:whole --epochs 1 --run-dir runs/backbone
    lockstep train --job examples/pytorch/finetune.toml

The second run takes the backbone from the first one's file and trains the head alone. With `--set
initial_partial=false` or without `--initial` the backbone would be a random one.
"""

import timm
import torch
from torch import nn


class Classifier(nn.Module):
    """A backbone that turns an image into features, and a linear head."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_resnet", pretrained=False, in_chans=1, num_classes=0)
        # Each task has a head of its own name, so that a file of one task has none for the other.
        self.heads = nn.ModuleDict({head: nn.Linear(self.backbone.num_features, 10)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, 10) of images (n, 1, 28, 28)."""
        (head,) = self.heads.values()
        return head(self.backbone(x))


class Frozen(Classifier):
    """The same, of which only the head is trained."""

    def __init__(self, head: str) -> None:
        super().__init__(head)
        self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Keep the backbone in evaluation mode, so that its BatchNorm leaves its averages as they are."""
        super().train(mode)
        self.backbone.eval()
        return self


def whole() -> nn.Module:
    """Return a net for MNIST, all of which is trained."""
    return Classifier("mnist")


def frozen() -> nn.Module:
    """Return a net for the calculator's digits, of which the head is trained."""
    return Frozen("calculator")

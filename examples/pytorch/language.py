"""Two models of PyTorch over characters, for the data of ../language: a small Transformer, and a LSTM.

    python examples/language/data.py
    lockstep train --job examples/pytorch/transformer.toml
    lockstep train --job examples/pytorch/lstm.toml

Both turn tokens (n, 64) into logits (n, 64, 64): for each place, one number for each character that may follow.
"""

import torch
from torch import nn

#: Kinds of characters, and characters that are seen at once.
KINDS, CONTEXT = 64, 64


class Transformer(nn.Module):
    """Layers of attention, each place to itself and to what is before it."""

    def __init__(self, width: int = 96, layers: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.token = nn.Embedding(KINDS, width)
        self.place = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, KINDS)
        # A constant: a buffer that nobody changes.
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.layers(self.token(tokens) + self.place, mask=self.mask, is_causal=True))


class Recurrent(nn.Module):
    """A LSTM, which begins each sample with an empty memory: what it keeps, it would keep on one worker only."""

    def __init__(self, width: int = 192) -> None:
        super().__init__()
        self.token = nn.Embedding(KINDS, 64)
        self.lstm = nn.LSTM(64, width, batch_first=True)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, KINDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        outputs, _ = self.lstm(self.token(tokens))
        return self.head(self.drop(outputs))


def transformer() -> nn.Module:
    """Return a new Transformer."""
    return Transformer()


def lstm() -> nn.Module:
    """Return a new recurrent net."""
    return Recurrent()

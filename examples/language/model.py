"""A small Transformer over characters: 64 of them, of 64 kinds, to what follows each.

lockstep train --job examples/language/job.toml
"""

from lockstep import nn

#: Kinds of characters, and characters that are seen at once.
KINDS, CONTEXT = 64, 64
#: Numbers that stand for a character on its way through.
WIDTH = 96


def build() -> nn.Module:
    """Return a new model: tokens (n, 64) to logits (n, 64, 64). A place sees itself and what is before it."""
    return nn.Sequential(
        nn.Embedding(KINDS, WIDTH),
        nn.PositionalEmbedding(CONTEXT, WIDTH),
        *(block() for _ in range(3)),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, KINDS),
    )


def block() -> nn.Module:
    """Return one layer of attention: four heads, each over 24 numbers."""
    return nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, norm_first=True, is_causal=True)

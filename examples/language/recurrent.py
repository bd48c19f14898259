"""A small LSTM over characters, to what follows each: the language model of model.py without attention.

python examples/language/data.py
lockstep train --model examples/language/recurrent.py:build --data runs/characters.npz --global-batch 32 --lr 1
"""

from lockstep import Tensor, nn

#: Kinds of characters, numbers that stand for one, and numbers of a state.
KINDS, WIDTH, HIDDEN = 64, 48, 128


class Characters(nn.Module):
    """Tokens (n, t) to logits (n, t, 64). A state knows of all characters before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(KINDS, WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, KINDS)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.head(states)


def build() -> nn.Module:
    """Return a new model."""
    return Characters()

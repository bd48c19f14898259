"""A GRU that tells three kinds of noisy waves apart, of any frequency: sines, squares and saws.

python examples/series/waves.py
lockstep train --model examples/series/waves.py:build --data runs/waves.npz --epochs 2 --global-batch 60 --lr 0.3
"""

import sys
from pathlib import Path

import numpy as np

from lockstep import Tensor, nn

#: Numbers of a series, and of a state.
STEPS, HIDDEN = 60, 32


class Waves(nn.Module):
    """Series (n, 60) to logits (n, 3), by the last state in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.gru(x.reshape(-1, STEPS, 1))
        return self.head(last.permute(1, 0, 2).reshape(-1, 2 * HIDDEN))


def build() -> nn.Module:
    """Return a new model."""
    return Waves()


def main(to: Path) -> None:
    """Write 6,000 series, a sixth of them for the test."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 6000)
    at = rng.uniform(0, 1, (6000, 1)) + rng.uniform(0.04, 0.12, (6000, 1)) * np.arange(STEPS)
    waves = np.stack([np.sin(2 * np.pi * at), np.sign(np.sin(2 * np.pi * at)), 2 * (at % 1) - 1])
    x = (waves[kinds, np.arange(6000)] + rng.normal(0, 0.3, (6000, STEPS))).astype(np.float32)
    to.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(to, x_train=x[:5000], y_train=kinds[:5000], x_test=x[5000:], y_test=kinds[5000:])
    print(f"wrote {to}: 5,000 and 1,000 series of {STEPS} numbers")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/waves.npz"))

"""Draws the data of Friedman's first regression problem, whose best possible error is known.

    python examples/regression/data.py

Ten features, uniform in [0, 1], of which five matter: y = 10 sin(π x0 x1) + 20 (x2 - 1/2)² + 10 x3 + 5 x4, plus normal
noise of deviation 1 (Friedman, "Multivariate adaptive regression splines", Annals of Statistics 19, 1991, eq. 56). The
targets are then brought to mean 0 and deviation 1 over the training set, so that no model can explain more than R² =
1 - 1/variance. It writes friedman.npz next to this file. The data is drawn here and free to use.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = 4000, 1000


def main(to: Path) -> None:
    """Write the arrays."""
    rng = np.random.Generator(np.random.Philox(1991))
    x = rng.random((TRAIN + TEST, 10))
    y = signal(x) + rng.standard_normal(TRAIN + TEST)
    mean, deviation = y[:TRAIN].mean(), y[:TRAIN].std()
    x, y = x.astype(np.float32), ((y - mean) / deviation).astype(np.float32)
    constants = {"target_mean": mean, "target_deviation": deviation}
    np.savez_compressed(to, x_train=x[:TRAIN], y_train=y[:TRAIN], x_test=x[TRAIN:], y_test=y[TRAIN:], **constants)
    print(f"wrote {to}: {TRAIN:,} and {TEST:,} samples; the noise alone is a mean squared error of {deviation**-2:.4f}")


def signal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what the noise is added to, (n,), of features (n, 10)."""
    return 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "friedman.npz")

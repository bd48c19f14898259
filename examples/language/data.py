"""Cuts the text next to this file into sequences of characters, as tokens: what job.toml trains on.

    python examples/language/data.py

Every tenth entry of the dictionary is for the test. A sample is 64 characters, and its labels are the same, each one
further on: what follows each of them. The file also holds the alphabet, with which sample.py turns tokens back.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEXT = Path(__file__).parent / "devils_dictionary.txt"
#: Characters of a sample: as many places as the model has.
CONTEXT = 64


def main(to: Path) -> None:
    """Write the arrays."""
    entries = TEXT.read_text(encoding="ascii").splitlines(keepends=True)
    alphabet = np.unique(codes("".join(entries)))
    test = [entry for place, entry in enumerate(entries) if place % 10 == 9]
    train = [entry for place, entry in enumerate(entries) if place % 10 != 9]
    (x_train, y_train), (x_test, y_test) = (
        windows(np.searchsorted(alphabet, codes("".join(p)))) for p in (train, test)
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(to, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, alphabet=alphabet)
    print(
        f"wrote {to}: {len(x_train):,} and {len(x_test):,} samples of {CONTEXT} characters, {len(alphabet)} different"
    )
    print(f"knowing only how often each occurs costs {unigram_loss(y_train, y_test):.4f} nats a character")


def codes(text: str) -> NDArray[np.uint8]:
    """Return the characters' numbers."""
    return np.frombuffer(text.encode("ascii"), dtype=np.uint8)


def windows(tokens: NDArray[np.int64]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Return samples and labels, (n, CONTEXT): each token is in one sample, and is predicted once."""
    count = (len(tokens) - 1) // CONTEXT
    small = tokens.astype(np.int16)
    return small[: count * CONTEXT].reshape(-1, CONTEXT), small[1 : count * CONTEXT + 1].reshape(-1, CONTEXT)


def unigram_loss(train: NDArray[np.int16], test: NDArray[np.int16]) -> float:
    """Return the cross-entropy of the test's characters under their shares in training: what a model must be below."""
    shares = (np.bincount(train.ravel(), minlength=int(test.max()) + 1) + 1) / (train.size + int(test.max()) + 1)
    return float(-np.log(shares[test]).mean())


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/characters.npz"))

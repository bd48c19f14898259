"""Continues a text with a trained language model, one character at a time, each drawn with its predicted probability.

python examples/language/sample.py RUN
python examples/language/sample.py RUN --start "HOPE, n. " --characters 400 --temperature 0.7 --seed 3
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockstep import Tensor, load_run, nn, no_grad


def main() -> None:
    """Print a text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--start", default="HAPPINESS, n. ", help="what the text begins with")
    parser.add_argument("--characters", type=int, default=300, help="how many are written")
    parser.add_argument("--temperature", type=float, default=0.7, help="below 1, likely ones come more often")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = load_run(given.run)
    with np.load(run.job.data) as arrays:
        alphabet, context = arrays["alphabet"], arrays["x_train"].shape[1]
    tokens = np.searchsorted(alphabet, np.frombuffer(given.start.encode("ascii"), dtype=np.uint8))
    written = write_on(run.model, tokens, given.characters, context, given.temperature, given.seed)
    print(alphabet[written].tobytes().decode("ascii"))


def write_on(
    model: nn.Module, tokens: NDArray[np.int64], count: int, context: int, temperature: float, seed: int
) -> NDArray[np.int64]:
    """Return tokens with `count` more behind them; the model sees the last `context` at a time."""
    rng = np.random.Generator(np.random.Philox(seed))
    for _ in range(count):
        with no_grad():
            logits = model(Tensor(tokens[np.newaxis, -context:].astype(np.int32))).data[0, -1].astype(np.float64)
        # The largest of logits with Gumbel noise is drawn with just their softmax (Gumbel, 1954).
        tokens = np.append(tokens, np.argmax(logits / temperature + rng.gumbel(size=logits.shape)))
    return tokens


if __name__ == "__main__":
    main()

"""The generators used where nobody passes one: for notebooks, since a run keys its draws by their place (rule R2)."""

import numpy as np

from common.random import Purpose, generator

_generators = {purpose: generator(0, purpose) for purpose in (Purpose.INITIALISE, Purpose.DROPOUT)}


def manual_seed(seed: int) -> None:
    """Restart the default generators, those of dropout layers that exist already included.

    Affects layers that are given no `rng` and dropout that has not been reseeded. `seed` is in [0, 2**64).
    """
    for purpose, default in _generators.items():
        # In place: a dropout layer holds on to its generator.
        default.bit_generator.state = generator(seed, purpose).bit_generator.state


def default_generator(purpose: Purpose) -> np.random.Generator:
    """Return the process-wide generator of `purpose`, INITIALISE or DROPOUT."""
    return _generators[purpose]

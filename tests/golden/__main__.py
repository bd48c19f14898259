"""`scripts/golden`: compute the golden jobs with portable numerics; compare with what is known, or record it."""

import sys

import click

from tests.golden.digests import computed, installed, record_canary, record_weights, weights_known_here
from tests.golden.jobs import GOLDEN


@click.command()
@click.option("--record", "is_recording", is_flag=True, help="write the digests as known ones of these versions")
def golden(is_recording: bool) -> None:
    """Compute six steps of each golden job with portable numerics, and compare the weights with the known ones.

    Record them for a version of NumPy that is not known yet, or after a change that is meant to change bits (then for
    each known version, in an environment with that version). Exit code 1 if digests differ or are not known.
    """
    numpy, blas = installed()
    print(f"NumPy {numpy} with {blas}")
    if is_recording:
        # First: a process whose canary is not the known one would compute nothing.
        record_canary(computed(()).canary)
    weights = computed(GOLDEN).weights
    known = weights_known_here() or {}
    for name, digest in weights.items():
        print(f"{name:<14} {digest}  {verdict(digest, known.get(name))}")
    if is_recording:
        record_weights(weights)
    elif weights != known:
        sys.exit("scripts/golden --record makes these the known ones of these versions")


def verdict(digest: str, known: str | None) -> str:
    """Return how a digest compares with the known one."""
    return "not known" if known is None else "as known" if digest == known else f"DIFFERS from {known}"


golden()

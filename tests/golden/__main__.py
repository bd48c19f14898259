"""`scripts/golden`: compute the golden jobs with portable numerics; compare with what is known, or record it."""

import sys

import click

from lockstep.common.numerics.choice import kernels_here
from tests.golden.digests import computed, known_weights, record
from tests.golden.jobs import GOLDEN


@click.command()
@click.option("--record", "is_recording", is_flag=True, help="write the digests as the known ones")
def golden(is_recording: bool) -> None:
    """Compute six steps of each golden job with portable numerics, and compare the weights with the known ones.

    Record them after a change that is meant to change bits. Exit code 1 if digests differ or are not known.
    """
    print(f"kernels for {kernels_here().target}")
    weights, known = computed(GOLDEN), known_weights().weights
    for name, digest in weights.items():
        print(f"{name:<14} {digest}  {verdict(digest, known.get(name))}")
    if is_recording:
        record(weights)
    elif weights != known:
        sys.exit("scripts/golden --record makes these the known ones")


def verdict(digest: str, known: str | None) -> str:
    """Return how a digest compares with the known one."""
    return "not known" if known is None else "as known" if digest == known else f"DIFFERS from {known}"


golden()

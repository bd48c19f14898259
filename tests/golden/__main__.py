"""`scripts/golden`: compute the golden jobs with portable numerics; compare with what is known, or record it."""

import shutil
import sys

import click

from lockstep.common.protocol.canary import installed_canary
from tests.golden.digests import computed, installed, record_canary, record_weights, weights_known_here
from tests.golden.jobs import GOLDEN

#: Runs a program of this machine on another processor of its architecture.
QEMU = "qemu-x86_64"


@click.command()
@click.option("--record", "is_recording", is_flag=True, help="write the digests as known ones of these versions")
def golden(is_recording: bool) -> None:
    """Compute six steps of each golden job with portable numerics, and compare the weights with the known ones.

    Record them for a version of NumPy that is not known yet, or after a change that is meant to change bits: those of
    other versions are then dropped. Exit code 1 if digests differ or are not known.
    """
    numpy, blas = installed()
    print(f"NumPy {numpy} with {blas}")
    if is_recording:
        # First: a process whose canary is not the known one would compute nothing.
        record_new_canary()
    weights = computed(GOLDEN).weights
    known = weights_known_here() or {}
    for name, digest in weights.items():
        print(f"{name:<14} {digest}  {verdict(digest, known.get(name))}")
    if is_recording:
        for version in record_weights(weights):
            print(f"dropped those of NumPy {version}, which are of other jobs or code: record them with that version")
    elif weights != known:
        sys.exit("scripts/golden --record makes these the known ones of these versions")


def record_new_canary() -> None:
    """Record the canary of these versions if it is not known yet: a Haswell, emulated, has to have it too."""
    known, here = installed_canary(), computed(()).canary
    if known is not None and known.parts == here:
        return
    if shutil.which(QEMU) is None:
        sys.exit(f"error: a canary is known only if a Haswell has it too: install {QEMU} (Debian: qemu-user)")
    emulated = computed((), (QEMU, "-cpu", "Haswell")).canary
    record_canary(emulated)
    odd = [name for name, digest in emulated.items() if here[name] != digest]
    if odd:
        sys.exit(
            f"error: this processor computes other bits than a Haswell in {', '.join(odd)}: recorded are Haswell's"
        )


def verdict(digest: str, known: str | None) -> str:
    """Return how a digest compares with the known one."""
    return "not known" if known is None else "as known" if digest == known else f"DIFFERS from {known}"


golden()

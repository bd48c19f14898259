"""The known digests by version, and those of the versions that are installed here."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from lockstep.common.files.atomic import write_atomically
from lockstep.common.protocol.canary import KNOWN, KnownCanaries, KnownCanary, known_canaries
from lockstep.common.runtime.blas import blas_name
from lockstep.common.runtime.environment import child_environment
from lockstep.common.runtime.numerics import environment_with
from tests.architecture.source import ROOT

DIGESTS = Path(__file__).with_name("digests.json")


class KnownWeights(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of the weights after the steps of each golden job, by the versions that compute them."""

    numpy: str
    blas: str
    weights: dict[str, str]


class Computed(msgspec.Struct, frozen=True, kw_only=True):
    """What a process with portable numerics computed."""

    canary: dict[str, str]
    weights: dict[str, str]


def installed() -> tuple[str, str]:
    """Return the versions of NumPy and its BLAS."""
    return np.__version__, blas_name()


def known_weights() -> list[KnownWeights]:
    """Return all that is known."""
    return msgspec.json.decode(DIGESTS.read_bytes(), type=list[KnownWeights])


def weights_known_here() -> dict[str, str] | None:
    """Return the digests for the versions that are installed, None if nobody has recorded them."""
    return next((each.weights for each in known_weights() if (each.numpy, each.blas) == installed()), None)


def computed(names: Iterable[str], within: Sequence[str] = ()) -> Computed:
    """Compute golden jobs in a process with portable numerics, which `within` may run on an emulated processor."""
    done = subprocess.run(
        [*within, sys.executable, "-P", "-m", "tests.golden.compute", *names],
        env={**environment_with("portable", child_environment()), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return msgspec.convert(json.loads(done.stdout.splitlines()[-1]), Computed)


def record_canary(parts: dict[str, str]) -> None:
    """Write the canary of the versions that are installed, in place of another one of theirs."""
    numpy, blas = installed()
    before = known_canaries()
    others = [each for each in before.known if (each.numpy, each.blas) != (numpy, blas)]
    all_known = sorted([*others, KnownCanary(numpy=numpy, blas=blas, parts=parts)], key=_version)
    _write(KNOWN, KnownCanaries(pinned_numpy=before.pinned_numpy, known=all_known))


def record_weights(weights: dict[str, str]) -> list[str]:
    """Write the weights of the versions that are installed, in place of others of theirs; return which were dropped.

    If they were known and have changed, our code has: then those of all other versions are wrong, and are dropped.
    """
    numpy, blas = installed()
    before = {(each.numpy, each.blas): each for each in known_weights()}
    here = KnownWeights(numpy=numpy, blas=blas, weights=weights)
    is_changed = before.pop((numpy, blas), here) != here
    _write(DIGESTS, sorted([here, *([] if is_changed else before.values())], key=_version))
    return [each.numpy for each in before.values()] if is_changed else []


def _version(known: KnownCanary | KnownWeights) -> list[int]:
    return [int(number) for number in known.numpy.split(".") if number.isdigit()]


def _write(path: Path, what: object) -> None:
    write_atomically(path, [msgspec.json.format(msgspec.json.encode(what), indent=2), b"\n"])

"""The known digests of portable numerics, which are the same on every machine, and those that are computed here."""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from lockstep.common.files.atomic import write_atomically
from lockstep.common.numerics.leaves import CONTRACT_VERSION
from lockstep.common.runtime.environment import child_environment
from tests.architecture.source import ROOT

DIGESTS = Path(__file__).with_name("digests.json")


class KnownWeights(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 of the weights after the steps of each golden job, and the contract that gives them."""

    contract: int
    weights: dict[str, str]


def known_weights() -> KnownWeights:
    """Return what is known."""
    return msgspec.json.decode(DIGESTS.read_bytes(), type=KnownWeights)


def computed(names: Iterable[str], within: Sequence[str] = ()) -> dict[str, str]:
    """Compute golden jobs in a process, which `within` may run on an emulated processor; return their digests."""
    done = subprocess.run(
        [*within, sys.executable, "-P", "-m", "tests.golden.compute", *names],
        env={**child_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return msgspec.convert(json.loads(done.stdout.splitlines()[-1]), dict[str, str])


def record(weights: dict[str, str]) -> None:
    """Write digests as the known ones."""
    known = KnownWeights(contract=CONTRACT_VERSION, weights=weights)
    write_atomically(DIGESTS, [msgspec.json.format(msgspec.json.encode(known), indent=2), b"\n"])

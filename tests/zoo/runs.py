"""What the zoo's nets come to: over any number of workers, on other processors, and in a plain loop of PyTorch."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.environment import child_environment
from tests.system.processes import Place

NETS = Path(__file__).with_name("nets.py")

#: By the group of nets that are trained together, the shape of a sample: of a picture, or of tokens.
GROUPS = {"timm_nets": (3, 160, 160), "torchvision_nets": (3, 64, 64), "transformers_nets": (12,)}

#: Numbers of workers with their transports: each number, and both transports.
WAYS = (("0", "auto"), ("1", "tcp"), ("2", "shm"), ("3", "tcp"))

#: By the kind of processor, what holds a process to it: PyTorch's own kernels, oneDNN's, MKL's.
PROCESSORS: Mapping[str, Mapping[str, str]] = {
    "as it is": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}

JOB = (
    *("--data", "samples.npz", "--steps", "3", "--global-batch", "8", "--micro-batches", "4"),
    *("--lr", "0.05", "--momentum", "0.9", "--seed", "3"),
)  # fmt: skip

#: The most by which a run may differ from a plain loop, as a part of how far training has moved the weights; or else as
#: a multiple of what rounding comes to. In nets that normalize over a few values, it grows from step to step.
ROUNDING, MULTIPLE = 1e-4, 10.0

Arrays = dict[str, NDArray[np.float32]]


def write_samples(group: str, to: Path) -> None:
    """Write the samples for a group: 24 to train with, 8 to test."""
    rng, shape = generator(5, Purpose.SIMULATE), GROUPS[group]
    parts: dict[str, NDArray[Any]] = {}
    for part, count in (("train", 24), ("test", 8)):
        if len(shape) == 1:
            tokens = rng.integers(0, 10, (count, *shape)).astype(np.int16)
            parts |= {f"x_{part}": tokens, f"y_{part}": np.roll(tokens, -1, axis=1)}
        else:
            parts[f"x_{part}"] = rng.integers(0, 256, (count, *shape)).astype(np.uint8)
            parts[f"y_{part}"] = np.arange(count, dtype=np.int64) % 10
    np.savez(to, allow_pickle=False, **parts)


def trained(place: Place, group: str, way: Sequence[str], environ: Mapping[str, str]) -> tuple[Arrays, str]:
    """Train a group in processes of its own; return all weights, and their digest."""
    run = f"{group}-{'-'.join(way)}"
    workers, transport = way
    flags = ("--workers", workers, "--transport", transport) if workers != "0" else ("--workers", "0")
    process = place.start("train", "--model", f"{NETS}:{group}", *JOB, *flags, "--run-dir", run, environ=environ)
    code, out, error = process.end(within_s=1200.0)
    assert code == 0, (out, error)
    folder = place.folder / run
    return load_file(folder / "weights.safetensors"), json.loads((folder / "result.json").read_text())["weights_sha256"]


def of_net(arrays: Mapping[str, Any], net: str) -> dict[str, Any]:
    """Return what of a group's arrays is one net's."""
    return {name: array for name, array in arrays.items() if name.startswith(f"nets.{net}.")}


def trained_plainly(place: Place, group: str, environ: Mapping[str, str]) -> dict[str, Arrays]:
    """Train a group in a plain loop, in a process of its own; `AssertionError` if its gradients have other bits.

    Return the first parameters, the last ones, and those after another order of rounding.
    """
    run, out = place.folder / f"{group}-0-auto", place.folder / "plain.safetensors"
    command = [sys.executable, "-W", "ignore", "-m", "tests.zoo.plain_loop", str(run), str(out)]
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=place.folder, env={**child_environment(), **paths, **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Arrays] = {}
    for key, array in load_file(out).items():
        kind, _, name = key.partition("/")
        found.setdefault(kind, {})[name] = array
    return found


def distance(first: Arrays, expected: Arrays, found: Arrays) -> float:
    """Return how far two results are from each other, measured by how far training has moved the weights."""

    def length(one: Arrays, other: Arrays) -> float:
        return float(np.sqrt(sum(np.square(one[name].astype(np.float64) - other[name]).sum() for name in expected)))

    return length(found, expected) / length(first, expected)


def is_equal(plain: Mapping[str, Arrays], found: Arrays) -> bool:
    """Tell whether a run and a plain loop are equal up to rounding."""
    rounding = distance(plain["first"], plain["last"], plain["backwards"])
    return distance(plain["first"], plain["last"], found) < max(ROUNDING, MULTIPLE * rounding)


def outcomes_of_nets(place: Place, group: str, processor: str) -> dict[str, dict[str, Any]]:
    """Train a group in all ways on a kind of processor, and in a plain loop; return what was found of each net."""
    write_samples(group, place.folder / "samples.npz")
    runs = [trained(place, group, way, PROCESSORS[processor]) for way in WAYS]
    plain = trained_plainly(place, group, PROCESSORS[processor])
    arrays, _ = runs[0]
    nets = list(dict.fromkeys(name.split(".")[1] for name in plain["last"]))
    # Those of the whole vector agree with those of its arrays.
    assert len({digest for _, digest in runs}) == len({_digest(each) for each, _ in runs})
    return {
        net: {
            "parameters": sum(array.size for array in of_net(plain["last"], net).values()),
            "runs": len(runs),
            "digests": len({_digest(of_net(each, net)) for each, _ in runs}),
            "plain loop": is_equal({kind: of_net(each, net) for kind, each in plain.items()}, of_net(arrays, net)),
        }
        for net in nets
    }


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()

"""What the zoo's nets come to: over any number of workers, on other processors, and in a plain loop of PyTorch."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.model.port import DrawKey
from lockstep.common.model.pytorch.runtime import seed_draws
from lockstep.common.model.source import open_model
from lockstep.common.random import Purpose, generator
from lockstep.runs.run_dir import recorded_job
from lockstep.worker.batches import Batches
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

#: The most by which a run may differ from a plain loop, as a part of how far training has moved the weights.
ROUNDING = 1e-3

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
    np.savez(to, **parts)  # type: ignore[arg-type]  # of its option that is a flag, which none of them is


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


def plain_loop(job: Job) -> tuple[Arrays, Arrays]:
    """Train with a loop of PyTorch alone; return the first parameters, and the last ones."""
    model = open_model(job.model, job.seed).module.train()
    data = load(job.data)
    batches = Batches(job, data)
    first = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr, momentum=job.momentum)
    for step in range(job.steps or 0):
        optimizer.zero_grad()
        for micro_batch, (x, y) in enumerate(_micro_batches(batches, step)):
            # The same numbers for dropout.
            seed_draws(DrawKey(job.seed, step, micro_batch))
            outputs = model(x)
            loss = torch.nn.functional.cross_entropy(
                outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1), reduction="sum"
            )
            (loss / (job.global_batch * data.train.targets)).backward()
        optimizer.step()
    return first, {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def _micro_batches(batches: Batches, step: int) -> Iterator[tuple[Any, Any]]:
    for micro_batch in range(batches.job.micro_batches):
        x, y = batches.training(batches.sampler.indices(step, micro_batch), step, micro_batch)
        samples = torch.from_numpy(np.ascontiguousarray(x))
        yield samples.long() if samples.dtype == torch.int32 else samples, torch.from_numpy(y)


def distance(first: Arrays, expected: Arrays, found: Arrays) -> float:
    """Return how far two results are from each other, measured by how far training has moved the weights."""

    def length(one: Arrays, other: Arrays) -> float:
        return float(np.sqrt(sum(np.square(one[name].astype(np.float64) - other[name]).sum() for name in expected)))

    return length(found, expected) / length(first, expected)


def job_in(place: Place, group: str) -> Job:
    """Return the job with which a group was trained in one process."""
    return recorded_job(place.folder / f"{group}-0-auto")


def outcomes_of_nets(place: Place, group: str, processor: str) -> dict[str, dict[str, Any]]:
    """Train a group in all ways on a kind of processor, and in a plain loop; return what was found of each net."""
    write_samples(group, place.folder / "samples.npz")
    runs = [trained(place, group, way, PROCESSORS[processor]) for way in WAYS]
    with chdir(place.folder):
        first, expected = plain_loop(job_in(place, group))
    arrays, _ = runs[0]
    nets = list(dict.fromkeys(name.split(".")[1] for name in expected))
    # Those of the whole vector agree with those of its arrays.
    assert len({digest for _, digest in runs}) == len({_digest(each) for each, _ in runs})
    return {
        net: {
            "parameters": sum(array.size for array in of_net(expected, net).values()),
            "runs": len(runs),
            "digests": len({_digest(of_net(each, net)) for each, _ in runs}),
            "plain loop": distance(*(of_net(each, net) for each in (first, expected, arrays))) < ROUNDING,
        }
        for net in nets
    }


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode() + arrays[name].tobytes())
    return digest.hexdigest()

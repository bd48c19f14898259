"""A loop of PyTorch alone over the samples of a run: `python -m tests.zoo.plain_loop RUN OUT`.

It runs in a process of its own, which may be held to other instructions of the processor.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lockstep.common.data.source import load
from lockstep.common.job.job import Job
from lockstep.common.model.port import DrawKey
from lockstep.common.model.pytorch.runtime import seed_draws
from lockstep.common.model.source import open_model
from lockstep.runs.run_dir import recorded_job
from lockstep.worker.batches import Batches

Arrays = dict[str, NDArray[np.float32]]


def plain_loop(job: Job, *, is_backwards: bool = False) -> Arrays:
    """Train with a loop of PyTorch alone, over the micro-batches of a step in their order or backwards.

    Return the parameters. Both orders are equal up to rounding: their distance is what rounding comes to in these nets.
    """
    model = open_model(job.model, job.seed).module.train()
    data = load(job.data)
    batches = Batches(job, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.lr, momentum=job.momentum)
    for step in range(job.steps or 0):
        optimizer.zero_grad()
        each = list(enumerate(_micro_batches(batches, step)))
        for micro_batch, (x, y) in reversed(each) if is_backwards else each:
            # The same numbers for dropout.
            seed_draws(DrawKey(job.seed, step, micro_batch))
            loss = _loss(model, x, y)
            (loss / (job.global_batch * data.train.targets)).backward()
        optimizer.step()
    return parameters(model)


def parameters(model: Any) -> Arrays:
    """Return copies of a model's parameters."""
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}


def check_gradients(job: Job) -> None:
    """Raise AssertionError unless the gradients of a micro-batch have the bits that PyTorch alone gives them."""
    model, plain = (open_model(job.model, job.seed) for _ in range(2))
    batches, key = Batches(job, load(job.data)), DrawKey(job.seed, 0, 1)
    images, targets = batches.training(batches.sampler.indices(0, 1), 0, 1)
    engine, sums = model.engine(batches.objective), model.layout.new_vector()
    engine.bind([model.first_weights(job.seed)], [sums])
    engine.forward(images, targets, key)
    engine.backward(None)
    alone = plain.module.train()
    seed_draws(key)
    _loss(alone, *list(_micro_batches(batches, 0))[1]).backward()
    found = model.layout.read(sums)
    for name, parameter in alone.named_parameters():
        expected = np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
        assert np.array_equal(found[name], expected, equal_nan=True), name


def _loss(model: Any, x: Any, y: Any) -> Any:
    """Return the sum of the losses."""
    outputs = model(x)
    return torch.nn.functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1), reduction="sum")


def _micro_batches(batches: Batches, step: int) -> Iterator[tuple[Any, Any]]:
    for micro_batch in range(batches.job.micro_batches):
        x, y = batches.training(batches.sampler.indices(step, micro_batch), step, micro_batch)
        samples = torch.from_numpy(np.ascontiguousarray(x))
        yield samples.long() if samples.dtype == torch.int32 else samples, torch.from_numpy(y)


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = recorded_job(Path(sys.argv[1]))
    check_gradients(job)
    made = {
        "first": parameters(open_model(job.model, job.seed).module),
        "last": plain_loop(job),
        "backwards": plain_loop(job, is_backwards=True),
    }
    save_file({f"{kind}/{name}": array for kind, arrays in made.items() for name, array in arrays.items()}, sys.argv[2])

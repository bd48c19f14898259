"""The peer: the same work in PyTorch, a thread a process; runs under a Python that has torch.

    PYTHON torch_peer.py step MODEL BATCH [--channels-last]             one process
    PYTHON torch_peer.py ddp MODEL BATCH WORKERS [--channels-last]      DistributedDataParallel over gloo, BATCH each
    PYTHON torch_peer.py allreduce PARAMETERS WORKERS                   gradients and the update alone, over gloo

Reads a number of steps from each line of standard input and answers with one line of JSON: the seconds of each step.
Stands alone: nothing of Lockstep is importable where it runs.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

#: Random images that are in memory before the first step.
SAMPLES = 4096

#: For as long a process may wait for the others, who wait for whoever asks.
PATIENCE = timedelta(days=7)


def build(name: str) -> nn.Module:
    """Return one of the four nets."""
    torch.manual_seed(0)
    if name == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    if name == "lenet":
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
        )
    if name == "cnn":
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10)),
        )
    raise SystemExit(f"unknown model {name!r}: expected linear, mlp, lenet or cnn")


def stepper(name: str, batch: int, *, is_channels_last: bool, is_distributed: bool) -> Callable[[int], None]:
    """Return a function of the step's number: forward, loss, backward, SGD with momentum 0.9."""
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    model = build(name).to(memory_format=layout)
    if is_distributed:
        model = nn.parallel.DistributedDataParallel(model)
    images = torch.rand(SAMPLES, 1, 28, 28).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (SAMPLES,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()

    def step(number: int) -> None:
        start = (number * batch) % (SAMPLES - batch)
        optimizer.zero_grad()
        loss_of(model(images[start : start + batch]), labels[start : start + batch]).backward()
        optimizer.step()

    return step


def exchanger(parameters: int) -> Callable[[int], None]:
    """Return a function that fills a gradient, adds up everybody's, and steps SGD by it."""
    gradient, weights = torch.rand(parameters), torch.rand(parameters)

    def exchange(_: int) -> None:
        gradient.fill_(0.5)
        if dist.is_initialized():
            dist.all_reduce(gradient)
        weights.add_(gradient, alpha=-1e-9)

    return exchange


@contextlib.contextmanager
def group(asked: argparse.Namespace) -> Iterator[None]:
    """Join the group of processes, and leave with it; the first one starts the others, which go when it goes."""
    others = []
    is_first = asked.rank == 0
    store = dist.TCPStore("127.0.0.1", asked.port, asked.workers, is_first, PATIENCE, wait_for_workers=False)
    if is_first:
        for rank in range(1, asked.workers):
            place = ["--rank", str(rank), "--port", str(store.port)]
            others.append(subprocess.Popen([sys.executable, *sys.argv, *place], stdin=subprocess.DEVNULL))
    dist.init_process_group("gloo", store=store, rank=asked.rank, world_size=asked.workers, timeout=PATIENCE)
    yield
    for other in others:
        other.wait()
    # Without an orderly end: while gloo takes its threads down, it now and then finds one that still runs, and aborts.
    sys.stdout.flush()
    os._exit(0)


def requests(asked: argparse.Namespace) -> Iterator[int]:
    """Yield the numbers of steps that are asked for; the first process reads them and tells the others."""
    lines = iter(sys.stdin) if asked.rank == 0 else iter(())
    while True:
        count = torch.tensor(int(next(lines, "0")))
        if asked.workers > 1:
            dist.broadcast(count, 0)
        if not count:
            return
        yield int(count)


def serve(asked: argparse.Namespace, step: Callable[[int], None]) -> None:
    """Make steps as asked; the first process answers."""
    number = 0
    for count in requests(asked):
        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - began)
            number += 1
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if asked.rank == 0:
            print(json.dumps({"version": torch.__version__, "seconds": seconds, "peak_rss_bytes": peak}), flush=True)


def arguments() -> argparse.Namespace:
    """Return what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for name in ("step", "ddp", "allreduce"):
        mode = modes.add_parser(name)
        if name == "allreduce":
            mode.add_argument("parameters", type=int)
        else:
            mode.add_argument("model")
            mode.add_argument("batch", type=int)
            mode.add_argument("--channels-last", action="store_true")
        if name == "step":
            mode.set_defaults(workers=1)
        else:
            mode.add_argument("workers", type=int)
        mode.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
        mode.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    with group(asked) if asked.workers > 1 else contextlib.nullcontext():
        if asked.mode == "allreduce":
            step = exchanger(asked.parameters)
        else:
            is_distributed = asked.workers > 1
            step = stepper(
                asked.model, asked.batch, is_channels_last=asked.channels_last, is_distributed=is_distributed
            )
        serve(asked, step)


if __name__ == "__main__":
    main()

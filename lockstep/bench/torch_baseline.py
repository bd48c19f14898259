"""The PyTorch baseline: the same work under a Python that has torch.

    PYTHON torch_baseline.py step MODEL BATCH [--channels-last]             one process with one thread
    PYTHON torch_baseline.py step MODEL BATCH --threads N [--compile]       one process with N, and torch.compile
    PYTHON torch_baseline.py ddp MODEL BATCH WORKERS [--channels-last]      DistributedDataParallel, BATCH each
    PYTHON torch_baseline.py ddp FILE.py:FUNCTION BATCH WORKERS --data FILE.npz   a user's module, its data
    PYTHON torch_baseline.py allreduce PARAMETERS WORKERS                   the exchange alone, over gloo

Reads a number of steps from each line of standard input and answers with one line of JSON: the seconds of each step,
or why it can make none. Imports nothing of Lockstep, which is not installed there.
"""

import argparse
import contextlib
import itertools
import json
import os
import resource
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

try:
    import numpy as np
    import torch
    import torch.distributed as dist
    from torch import nn
except ImportError as missing:
    sys.stdin.readline()
    print(json.dumps({"obstacle": str(missing)}))
    raise SystemExit(0) from None

#: Images in memory, but never fewer than two batches.
SAMPLES = 4096

#: How long a process may wait for the others, which wait for requests.
TIMEOUT = timedelta(days=7)


def mlp(*sizes: int) -> list[nn.Module]:
    """Return dense layers of these sizes, with a ReLU between two of them."""
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return [nn.Flatten(), *layers[:-1]]


def convolution(inputs: int, outputs: int, side: int, padding: int) -> list[nn.Module]:
    """Return a convolution with ReLU and pooling."""
    return [nn.Conv2d(inputs, outputs, side, padding=padding), nn.ReLU(), nn.MaxPool2d(2)]


NETS: dict[str, Callable[[], list[nn.Module]]] = {
    "linear": lambda: mlp(784, 10),
    "mlp": lambda: mlp(784, 512, 256, 10),
    "lenet": lambda: [*convolution(1, 6, 5, 2), *convolution(6, 16, 5, 0), *mlp(400, 120, 84, 10)],
    "cnn": lambda: [*convolution(1, 32, 3, 1), *convolution(32, 64, 3, 1), *mlp(3136, 128, 10)],
}


def build(name: str) -> nn.Module:
    """Return one of the four nets, or a user's module."""
    torch.manual_seed(0)
    if name in NETS:
        return nn.Sequential(*NETS[name]())
    if ":" in name:
        path, _, function = name.rpartition(":")
        # It may import files next to it.
        sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
        return runpy.run_path(path)[function]()
    raise SystemExit(f"unknown model {name!r}: expected {', '.join(NETS)} or FILE.py:FUNCTION")


def samples(data: str | None, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return so many of the training set of an .npz as a model is given it, or random images."""
    if data is None:
        return torch.rand(count, 1, 28, 28), torch.randint(0, 10, (count,))
    with np.load(data) as arrays:
        images, labels = arrays["x_train"][:count], arrays["y_train"][:count]
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    kind = np.float32 if images.dtype.kind == "f" else np.int64
    return torch.from_numpy(images.astype(kind)), torch.from_numpy(labels.astype(np.int64))


def stepper(options: argparse.Namespace, *, is_distributed: bool) -> Callable[[int], None]:
    """Return a function of the step's number: forward, loss, backward, SGD with momentum 0.9."""
    batch, layout = options.batch, torch.channels_last if options.channels_last else torch.contiguous_format
    model = build(options.model).to(memory_format=layout)
    if is_distributed:
        model = nn.parallel.DistributedDataParallel(model)
    images, labels = samples(options.data, max(SAMPLES, 2 * batch))
    if images.ndim == 4:
        images = images.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    mean_loss = nn.CrossEntropyLoss()

    def plain_loss(inputs: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        outputs = model(inputs)
        loss: torch.Tensor = mean_loss(outputs.reshape(-1, outputs.shape[-1]), expected.reshape(-1))
        return loss

    loss_of = torch.compile(plain_loss) if options.compile else plain_loss

    def step(number: int) -> None:
        start = (number * batch) % max(1, len(images) - batch)
        optimizer.zero_grad()
        loss_of(images[start : start + batch], labels[start : start + batch]).backward()
        optimizer.step()

    return step


def obstacle_to(step: Callable[[int], None]) -> str:
    """Make a step, which compiles it if need be; return why that cannot be done, empty if it can."""
    try:
        step(0)
    # No compiler, one that fails, a net that `view`s an array in channels-last: each raises something else.
    except Exception as error:  # noqa: BLE001  # whatever is raised is the obstacle
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"
    return ""


def exchanger(parameters: int) -> Callable[[int], None]:
    """Return a function that fills a gradient, adds up the gradients of all processes, and makes a step of SGD."""
    gradient, weights = torch.rand(parameters), torch.rand(parameters)

    def exchange(_: int) -> None:
        gradient.fill_(0.5)
        if dist.is_initialized():
            dist.all_reduce(gradient)
        weights.add_(gradient, alpha=-1e-9)

    return exchange


@contextlib.contextmanager
def group(options: argparse.Namespace) -> Iterator[None]:
    """Join the group of processes; the first one starts the others, and ends with them."""
    others = []
    is_first = options.rank == 0
    store = dist.TCPStore("127.0.0.1", options.port, options.workers, is_first, TIMEOUT, wait_for_workers=False)
    if is_first:
        for rank in range(1, options.workers):
            place = ["--rank", str(rank), "--port", str(store.port)]
            others.append(subprocess.Popen([sys.executable, *sys.argv, *place], stdin=subprocess.DEVNULL))
    dist.init_process_group("gloo", store=store, rank=options.rank, world_size=options.workers, timeout=TIMEOUT)
    yield
    for other in others:
        other.wait()
    # Not an orderly end: gloo sometimes aborts while it takes its threads down, if one of them still runs.
    sys.stdout.flush()
    os._exit(0)


def requests(options: argparse.Namespace) -> Iterator[int]:
    """Yield the requested numbers of steps, which the first process reads and broadcasts."""
    lines = iter(sys.stdin) if options.rank == 0 else iter(())
    while True:
        count = torch.tensor(int(next(lines, "0")))
        if options.workers > 1:
            dist.broadcast(count, 0)
        if not count:
            return
        yield int(count)


def serve(options: argparse.Namespace, step: Callable[[int], None]) -> None:
    """Make the requested steps; the first process answers."""
    number = 0
    for count in requests(options):
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - start)
            number += 1
        if options.rank == 0:
            answer = {"version": torch.__version__, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}
            print(json.dumps(answer), flush=True)


def peak_rss_bytes() -> int:
    """Return the peak memory of this process; `getrusage` may report that of the process which started it."""
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
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
            mode.add_argument("--compile", action="store_true")
            mode.add_argument("--data", metavar="FILE", help="an .npz with x_train and y_train")
        if name == "step":
            mode.set_defaults(workers=1)
        else:
            mode.add_argument("workers", type=int)
        mode.add_argument("--threads", type=int, default=1)
        mode.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
        mode.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    with group(options) if options.workers > 1 else contextlib.nullcontext():
        if options.mode == "allreduce":
            step = exchanger(options.parameters)
        else:
            step = stepper(options, is_distributed=options.workers > 1)
            if (options.compile or options.channels_last) and (obstacle := obstacle_to(step)):
                if options.rank == 0:
                    print(json.dumps({"obstacle": obstacle}), flush=True)
                return
        serve(options, step)


if __name__ == "__main__":
    main()

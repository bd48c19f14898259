"""The peer: the same nets and the same step in PyTorch on one thread; runs under a Python that has torch.

    PYTHON torch_step.py MODEL BATCH [--channels-last]

Reads a number of steps from each line of standard input and answers with one line of JSON: the seconds of each step.
Stands alone: nothing of Lockstep is importable where it runs.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

#: Random images that are in memory before the first step.
SAMPLES = 4096


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


def stepper(name: str, batch: int, channels_last: bool) -> Callable[[int], None]:
    """Return a function of the step's number: forward, loss, backward, SGD with momentum 0.9."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build(name).to(memory_format=layout)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("batch", type=int)
    parser.add_argument("--channels-last", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    step = stepper(asked.model, asked.batch, asked.channels_last)
    number = 0
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step(number)
            seconds.append(time.perf_counter() - began)
            number += 1
        # Kilobytes on Linux, bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"version": torch.__version__, "seconds": seconds, "peak_rss_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()

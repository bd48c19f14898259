"""Short jobs whose weights are known to the last bit, for portable numerics: all shipped models, and the examples.

Data is drawn here, so that nothing has to be downloaded; six steps are more than an epoch of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.common.job.job import Job
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.protocol.run_options import RunOptions
from lockstep.runs.job_file import read_values, resolve
from tests.architecture.source import ROOT

Arrays = dict[str, NDArray[Any]]

#: Steps of each job, and samples of the sets that are drawn.
STEPS, TRAIN, TEST = 6, 512, 64


def images() -> Arrays:
    """Return random images of MNIST's shape with random labels."""
    rng = generator(17, Purpose.SIMULATE)
    return {
        "x_train": rng.integers(0, 256, (TRAIN, 28, 28), dtype=np.uint8),
        "y_train": rng.integers(0, 10, TRAIN, dtype=np.uint8),
        "x_test": rng.integers(0, 256, (TEST, 28, 28), dtype=np.uint8),
        "y_test": rng.integers(0, 10, TEST, dtype=np.uint8),
    }


def text() -> Arrays:
    """Return random sequences for the language model, whose labels are the tokens that follow."""
    tokens = generator(17, Purpose.SIMULATE, at=1).integers(0, 64, (128 + 32, 65), dtype=np.int64)
    train, test = tokens[:128], tokens[128:]
    return {"x_train": train[:, :-1], "y_train": train[:, 1:], "x_test": test[:, :-1], "y_test": test[:, 1:]}


#: A net of smooth functions, as data.
SMOOTH: Mapping[str, Any] = {
    "class": "Sequential",
    "args": [
        {"class": "Flatten"},
        {"class": "Linear", "args": [784, 48]},
        {"class": "Softplus"},
        {"class": "Linear", "args": [48, 48]},
        {"class": "GELU"},
        {"class": "Linear", "args": [48, 10]},
    ],
}

#: Name -> what draws its data (None: the example has its own), its job file in examples/, and other values: what the
#: shipped jobs may change has to be here, or the weights would be others.
GOLDEN: Mapping[str, tuple[Callable[[], Arrays] | None, str, Mapping[str, Any]]] = {
    "linear": (images, "", {"model": "linear", "global_batch": 128, "lr": 0.05}),
    "mlp": (images, "", {"model": "mlp", "global_batch": 128, "lr": 0.1}),
    "lenet": (images, "", {"model": "lenet"}),
    "cnn": (images, "", {"model": "cnn"}),
    "batchnorm_cnn": (images, "batchnorm_cnn.toml", {}),
    "language": (text, "language/job.toml", {}),
    "regression": (None, "regression/job.toml", {}),
    # Eight local steps of four samples; those of the last batch of an epoch have two or three.
    "mlp, local": (
        images,
        "",
        {
            "model": "mlp",
            "global_batch": 192,
            "micro_batches": 6,
            "local_steps": 8,
            "lr": 0.7,
            "momentum": 0.6,
            "nesterov": True,
            "local_lr": 0.05,
            "local_momentum": 0.9,
            "local_weight_decay": 0.0001,
            "local_schedule": "one-cycle",
        },
    ),
    # Functions that NumPy leaves to the C library, or that are fitted by LAPACK.
    "smooth": (images, "", {"model": SMOOTH}),
    # Arithmetic that the others lack: rounding to int8, shifts, a cosine, smoothed labels, the norm of a gradient.
    "mlp, rounded": (
        images,
        "",
        {
            "model": "mlp",
            "global_batch": 128,
            "wire": "int8",
            "wire_weights": "bfloat16",
            "optimizer": "adamw",
            "lr": 0.001,
            "weight_decay": 0.01,
            "label_smoothing": 0.1,
            "clip_norm": 0.5,
            "schedule": "cosine",
            "warmup_steps": 2,
            "max_shift": 2,
        },
    ),
}


def golden_job(name: str, folder: Path) -> tuple[Job, RunOptions]:
    """Return a job by its name, with its data written to `folder`. It can be carried out from any folder."""
    draw, file, values = GOLDEN[name]
    example = read_values(ROOT / "examples" / file) if file else {}
    flags: dict[str, Any] = {"workers": 1, **values, "steps": STEPS, "numerics": "portable"}
    # The examples' paths are those of the checkout.
    flags |= {key: str(ROOT / example[key]) for key in ("model", "data") if isinstance(example.get(key), str)}
    if draw is not None:
        path = folder / f"{draw.__name__}.npz"
        if not path.exists():
            np.savez(path, **draw())  # type: ignore[arg-type]  # NumPy types them as if they were its own flags
        flags["data"] = str(path)
    return resolve(example, flags)

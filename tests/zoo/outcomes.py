"""What was found of each net and layer of the zoo, as `outcomes.json` has it: a page of the docs is made from that."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lockstep.common.errors import LockstepError
from lockstep.common.job.job import Job
from lockstep.common.job.objective import Objective
from lockstep.common.model.source import read_model_source
from lockstep.common.numerics.random import Purpose, generator
from lockstep.common.runtime.lent_process import computing

RECORDED = Path(__file__).with_name("outcomes.json")

LAYERS = Path(__file__).with_name("layers.py")

#: Whose nets and layers are in the zoo.
LIBRARIES = ("torch", "timm", "torchvision", "transformers")


def recorded() -> dict[str, Any]:
    """Return what was found last."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def record(part: str, found: dict[str, Any]) -> None:
    """Write a part of what was found, with the versions of the libraries."""
    versions = {name: version(name).partition("+")[0] for name in LIBRARIES}
    known = recorded() if RECORDED.exists() else {}
    text = json.dumps({**known, "versions": versions, part: found}, indent=1, sort_keys=True)
    RECORDED.write_text(text + "\n", encoding="utf-8")


@computing()
def outcome_of_layer(layer: str) -> str:
    """Return why a net with that layer is refused, empty if it can be trained."""
    images = generator(6, Purpose.SIMULATE).standard_normal((4, 1, 28, 28), dtype=np.float32)
    try:
        source = read_model_source(f"{LAYERS}:{layer.replace(', ', '_')}")
        source.check_repeated(source.build(3), Objective(Job(seed=3)), images, np.arange(4))
    except LockstepError as error:
        return str(error).replace(f"{LAYERS}:{layer}", "the function")
    return ""

"""From a job's `model` value to a Module: a name, a description as data, or a file of one's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.errors import ModelError
from common.files.spelling import nearest
from common.nn.description import build
from common.nn.model_file import read_model_file
from common.nn.models import MODELS
from common.nn.module import Module


@dataclass(frozen=True)
class Blueprint:
    """What a model is built from, as it was when it was read: nothing runs whose digest was not looked at before."""

    #: SHA-256 of the model's own file in hex, empty for a model of the library.
    source: str
    build: Callable[[], Module]


def blueprint_of(model: str | dict[str, Any]) -> Blueprint:
    """Read what a model is built from, once; `ModelError` where there is nothing of that name. Runs nothing."""
    if isinstance(model, dict):
        return Blueprint("", lambda: build(model))
    if names_file(model):
        file = read_model_file(model)
        return Blueprint(file.digest, file.build)
    if model not in MODELS:
        raise ModelError(
            f"model = {model!r} is not known{nearest(model, MODELS)}: expected one of {', '.join(MODELS)}, "
            "or FILE.py:FUNCTION that returns a Module"
        )
    return Blueprint("", MODELS[model])


def build_model(model: str | dict[str, Any]) -> Module:
    """Return a new model; its values are whatever its layers draw: call `initialize` or bind it to a vector."""
    return blueprint_of(model).build()


def names_file(model: str) -> bool:
    """Tell whether a name is that of a function in a file, and not of a model of the library."""
    return ":" in model or model.endswith(".py")

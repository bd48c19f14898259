"""From a job's `model` value to a Module: a name, a description as data, or a file of one's own."""

from typing import Any

from common.errors import ModelError
from common.nn.description import build
from common.nn.model_file import load_model, read_model_file
from common.nn.models import MODELS
from common.nn.module import Module
from common.spelling import nearest


def build_model(model: str | dict[str, Any]) -> Module:
    """Return a new model; its values are whatever its layers draw: call `initialize` or bind it to a vector."""
    if isinstance(model, dict):
        return build(model)
    if names_file(model):
        return load_model(model)
    if model not in MODELS:
        raise ModelError(
            f"model = {model!r} is not known{nearest(model, MODELS)}: expected one of {', '.join(MODELS)}, "
            "or FILE.py:FUNCTION that returns a Module"
        )
    return MODELS[model]()


def model_source(model: str | dict[str, Any]) -> str:
    """Return the SHA-256 of the model's own file in hex, empty for a model of the library."""
    return read_model_file(model).digest if isinstance(model, str) and names_file(model) else ""


def names_file(model: str) -> bool:
    """Tell whether a name is that of a function in a file, and not of a model of the library."""
    return ":" in model or model.endswith(".py")

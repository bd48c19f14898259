"""Models of jobs, as their users know them."""

from typing import Any

from lockstep.common.model.source import open_model
from lockstep.common.nn.module import Module


def build_model(model: str | dict[str, Any]) -> Module:
    """Return a new model; its values are whatever its layers draw."""
    module = open_model(model, 0).module
    assert isinstance(module, Module)
    return module

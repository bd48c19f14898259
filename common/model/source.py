"""From a job's `model` value to a model that can be trained."""

from dataclasses import dataclass
from typing import Any

from common.model.autograd import AutogradModel
from common.model.port import Model
from common.nn import model_source


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from, as it was when it was read: nothing runs whose digest was not checked before."""

    source: model_source.ModelSource

    @property
    def digest(self) -> str:
        """SHA-256 of the model's own file in hex, empty for a model of the library."""
        return self.source.digest

    def build(self) -> Model:
        """Build the model; ModelError if it cannot be built or trained."""
        return AutogradModel(self.source.build())


def read_model_source(model: str | dict[str, Any]) -> ModelSource:
    """Read what a model is built from, once; ModelError if there is nothing of that name. Runs nothing."""
    return ModelSource(model_source.read_model_source(model))


def open_model(model: str | dict[str, Any]) -> Model:
    """Return a new model of a job's value; errors as of `read_model_source` and `build`."""
    return read_model_source(model).build()

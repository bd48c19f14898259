"""From a job's `model` value to a model that can be trained, by our autograd or by PyTorch.

PyTorch is imported only if the model's own file does so.
"""

import re
import sys
from dataclasses import dataclass
from typing import Any

from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Model
from lockstep.common.nn import model_source
from lockstep.common.nn.model_source import ModelFile
from lockstep.common.nn.module import Module

#: A file that imports PyTorch. Here and below it is imported within functions, where a model asks for it.
_TORCH_IMPORT = re.compile(rb"^\s*(?:import|from)\s+torch\b", re.MULTILINE)


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from, as it was when it was read: nothing runs whose digest was not checked before."""

    source: model_source.ModelSource

    @property
    def digest(self) -> str:
        """SHA-256 of the model's own file in hex, empty for a model of the library."""
        return self.source.digest

    def build(self, seed: int) -> Model:
        """Build the model of a job with that seed; ModelError if it cannot be built or trained.

        What the file draws from PyTorch's generator follows from the seed.
        """
        file = self.source.file
        if file is None:
            return AutogradModel(self.source.build())
        built = _called(file, seed)
        if isinstance(built, Module):
            return AutogradModel(built)
        if is_torch_module(built):
            return torch_model(built)
        raise file.unexpected(built)

    def check_repeated(self, model: Model, seed: int) -> None:
        """Raise ModelError if building again gives another model than this one, whose values nobody has changed."""
        if is_torch_module(model.module):
            from lockstep.common.model.pytorch.model import check_equal

            check_equal(model, self.build(seed))


def _called(file: ModelFile, seed: int) -> object:
    """Run a file with PyTorch's generator seeded, if it uses that: once before the file, once before its function.

    So the function's draws do not depend on the file's own, and the caller's generator stays as it is.
    """

    def seed_again() -> None:
        if "torch" in sys.modules:
            from lockstep.common.model.pytorch.runtime import seed_all

            seed_all(seed)

    if "torch" not in sys.modules and not _TORCH_IMPORT.search(file.source):
        return file.call(seed_again)  # what it imports may still import PyTorch
    try:
        from lockstep.common.model.pytorch.runtime import seeded
    except ModuleNotFoundError:
        return file.call()
    with seeded(seed):
        return file.call(seed_again)


def read_model_source(model: str | dict[str, Any]) -> ModelSource:
    """Read what a model is built from, once; ModelError if there is nothing of that name. Runs nothing."""
    return ModelSource(model_source.read_model_source(model))


def open_model(model: str | dict[str, Any], seed: int) -> Model:
    """Return a new model of a job's value; errors as of `read_model_source` and `build`."""
    return read_model_source(model).build(seed)


def torch_model(module: Any) -> Model:
    """Return a `torch.nn.Module` as a model; ModelError if it cannot be trained."""
    from lockstep.common.model.pytorch.model import TorchModel

    return TorchModel(module)


def is_torch_module(value: object) -> bool:
    """Tell whether something is a `torch.nn.Module`, without importing PyTorch."""
    return is_torch_class(type(value))


def is_torch_class(kind: type) -> bool:
    """Tell whether a class is one of `torch.nn.Module`, without importing PyTorch."""
    return any((each.__module__, each.__name__) == ("torch.nn.modules.module", "Module") for each in kind.__mro__)

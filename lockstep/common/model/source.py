"""From a job's `model` value to a model that can be trained: a name, a description as data, or a file of the user's.

Two processes have the same model if the file's digests agree. Therefore the file must be self-contained: its
folder is not on the import path, since what it imported from there could differ unnoticed. PyTorch is imported only if
the file does so; a model is computed by it or by our autograd.
"""

import difflib
import hashlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lockstep.common.errors import ModelError
from lockstep.common.files.did_you_mean import nearest
from lockstep.common.files.reading import read_regular
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.port import Model
from lockstep.common.nn.description import build
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module

#: A file that imports PyTorch. Here and below it is imported within functions, where a model asks for it.
_TORCH_IMPORT = re.compile(rb"^\s*(?:import|from)\s+torch\b", re.MULTILINE)

#: How a file begins that `fit` made of a model from a notebook.
WRITTEN_BY_FIT = '"""A model that was defined in a notebook or a script, as `fit` found it there."""\n\n'

#: An import in such a file of a run from before `common` was in `lockstep`.
_OLD_IMPORT = re.compile(rb"^(import|from) common\.", re.MULTILINE)

#: Bytes of a model's file.
MOST_BYTES = 2**24


@dataclass(frozen=True)
class ModelFile:
    """A file of Python source, as it was when it was read, and the function in it that builds the model."""

    path: Path
    function: str
    source: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the source, hexadecimal: of just what `call` runs. What the file imports is not in it."""
        return hashlib.sha256(self.source).hexdigest()

    def call(self, before: Callable[[], None] = lambda: None) -> object:
        """Run the file, call `before` and then its function, and return what comes back; ModelError if one raises."""
        function = self._function_of(self._run())
        before()
        try:
            return function()
        except Exception as error:
            raise ModelError(f"{self} raised {_one_line(error)}: expected a function that returns a Module") from error

    def _run(self) -> ModuleType:
        """Execute the source that was read.

        Not by Python's own loader: that reads the file a second time, perhaps changed, or a stale __pycache__.
        """
        # Registered under a name of its own: dataclasses and pickle look a class's module up there.
        module = ModuleType(f"lockstep_model_{self.digest[:16]}")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        try:
            source = self.source
            if source.startswith(WRITTEN_BY_FIT.encode()):
                source = _OLD_IMPORT.sub(rb"\1 lockstep.common.", source)
            exec(compile(source, self.path, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            del sys.modules[module.__name__]
            advice = ""
            if isinstance(error, ModuleNotFoundError) and error.name == "torch":
                advice = f": expected PyTorch to be installed; run `{sys.executable} -m pip install 'torch>=2.9'`"
            raise ModelError(
                f"model file {str(self.path)!r} cannot be imported: it raised {_one_line(error)}{advice}"
            ) from error
        return module

    def _function_of(self, module: ModuleType) -> Callable[[], object]:
        found: object = vars(module).get(self.function)
        if callable(found):
            return found
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(self.function, names, n=1, cutoff=0.0)
        advice = f"did you mean {near[0]!r}?" if near else "the file defines none"
        raise ModelError(f"model file {str(self.path)!r} has no function {self.function!r}: {advice}")

    def __str__(self) -> str:
        return f"{self.path}:{self.function}"


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from, as it was when it was read: nothing runs whose digest was not checked before."""

    #: A description, or the name of a model of the library, if it is not a file.
    own: str | Mapping[str, Any] = ""
    file: ModelFile | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the model's own file in hex, empty for a model of the library."""
        return "" if self.file is None else self.file.digest

    def build(self, seed: int) -> Model:
        """Build the model of a job with that seed; ModelError if it cannot be built or trained.

        What the file draws from PyTorch's generator follows from the seed.
        """
        if self.file is None:
            return AutogradModel(MODELS[self.own]() if isinstance(self.own, str) else build(self.own))
        built = _called(self.file, seed)
        if isinstance(built, Module):
            return AutogradModel(built)
        if is_torch_module(built):
            return torch_model(built)
        raise ModelError(f"{self.file} returned {built!r}: expected a Module; does the function end in `return model`?")

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
            sys.modules["torch"].default_generator.manual_seed(seed)

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
    if isinstance(model, dict):
        return ModelSource(model)
    if ":" in model or model.endswith(".py"):
        return ModelSource(file=_read_file(model))
    if model not in MODELS:
        raise ModelError(
            f"model = {model!r} is not known{nearest(model, MODELS)}: expected one of {', '.join(MODELS)}, "
            "or FILE.py:FUNCTION that returns a Module"
        )
    return ModelSource(model)


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


def _read_file(name: str) -> ModelFile:
    """Read the file of `path/to/file.py:function`; ModelError if the name is malformed or the file is missing."""
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        raise ModelError(f"model {name!r} names no function in a file: expected path/to/file.py:function")
    try:
        return ModelFile(Path(path), function, read_regular(Path(path), MOST_BYTES))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(
            f"model file {str(Path(path))!r} cannot be read: {reason}; expected a file of Python"
        ) from error


def _one_line(error: BaseException) -> str:
    """Return the exception on one line: `ValueError: text`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

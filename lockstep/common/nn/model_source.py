"""From a job's `model` value to a Module: a name, a description as data, or the user's own `path/to/file.py:function`.

Two processes have the same model if the file's digests agree. Therefore the file must be self-contained: its
folder is not on the import path, since what it imported from there could differ unnoticed.
"""

import difflib
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lockstep.common.errors import ModelError
from lockstep.common.files.did_you_mean import nearest
from lockstep.common.files.reading import read_regular
from lockstep.common.nn.description import build
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module

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
        """SHA-256 of the source, hexadecimal: of just what `build` runs. What the file imports is not in it."""
        return hashlib.sha256(self.source).hexdigest()

    def build(self) -> Module:
        """Run the file and call its function; ModelError if either raises or no Module comes back."""
        model = self.call()
        if not isinstance(model, Module):
            raise self.unexpected(model)
        return model

    def call(self, before: Callable[[], None] = lambda: None) -> object:
        """Run the file, call `before` and then its function, and return what comes back; ModelError if one raises."""
        function = self._function_of(self._run())
        before()
        try:
            return function()
        except Exception as error:
            raise ModelError(f"{self} raised {_one_line(error)}: expected a function that returns a Module") from error

    def unexpected(self, model: object) -> ModelError:
        """Return the error of a function that returns no model."""
        return ModelError(f"{self} returned {model!r}: expected a Module; does the function end in `return model`?")

    def _run(self) -> ModuleType:
        """Execute the source that was read.

        Not by Python's own loader: that reads the file a second time, perhaps changed, or a stale __pycache__.
        """
        # Registered under a name of its own: dataclasses and pickle look a class's module up there.
        module = ModuleType(f"lockstep_model_{self.digest[:16]}")
        module.__file__ = str(self.path)
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.source, self.path, "exec"), vars(module))
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


def read_model_file(name: str) -> ModelFile:
    """Read the file of `path/to/file.py:function`; ModelError if the name is malformed or the file is missing."""
    path, _, function = name.rpartition(":")
    if not path or not function.isidentifier():
        raise ModelError(f"model {name!r} names no function in a file: expected path/to/file.py:function")
    return ModelFile(Path(path), function, _read(Path(path)))


def load_model(name: str) -> Module:
    """Build the model that `path/to/file.py:function` names; ModelError, one line, explains what is wrong with it."""
    return read_model_file(name).build()


def source_digest(path: str | Path) -> str:
    """Return SHA-256 of the file's bytes, hexadecimal; ModelError if it cannot be read."""
    return hashlib.sha256(_read(Path(path))).hexdigest()


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from, as it was when it was read: nothing runs whose digest was not checked before."""

    #: Builds the library's own model; of a file's model, what runs the file.
    build: Callable[[], Module]
    file: ModelFile | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the model's own file in hex, empty for a model of the library."""
        return "" if self.file is None else self.file.digest


def read_model_source(model: str | dict[str, Any]) -> ModelSource:
    """Read what a model is built from, once; ModelError if there is nothing of that name. Runs nothing."""
    if isinstance(model, dict):
        return ModelSource(lambda: build(model))
    if names_file(model):
        file = read_model_file(model)
        return ModelSource(file.build, file)
    if model not in MODELS:
        raise ModelError(
            f"model = {model!r} is not known{nearest(model, MODELS)}: expected one of {', '.join(MODELS)}, "
            "or FILE.py:FUNCTION that returns a Module"
        )
    return ModelSource(MODELS[model])


def build_model(model: str | dict[str, Any]) -> Module:
    """Return a new model; its values are whatever its layers draw: call `initialize` or bind it to a vector."""
    return read_model_source(model).build()


def names_file(model: str) -> bool:
    """Tell whether a name is that of a function in a file, and not of a model of the library."""
    return ":" in model or model.endswith(".py")


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MOST_BYTES)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(f"model file {str(path)!r} cannot be read: {reason}; expected a file of Python") from error


def _one_line(error: BaseException) -> str:
    """Return the exception on one line: `ValueError: text`."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

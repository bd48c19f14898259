"""From a job's `model` value to a model that can be trained: a name, a description as data, or files of the user's.

Nothing of these files runs before the digest of all of them is known, and what runs are the bytes that were digested. A
model is computed by PyTorch, which is imported only if a file does so, or by our autograd.
"""

import builtins
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path, PurePosixPath
from traceback import walk_tb
from types import MappingProxyType, ModuleType
from typing import Any

import msgspec
from msgspec.structs import replace

from lockstep.common.autograd.primitives.primitive import Array
from lockstep.common.errors import ModelError, nearest
from lockstep.common.job.job import SIZED, Job, names_code
from lockstep.common.job.objective import Objective
from lockstep.common.job.own_code import OwnCode, functions_of
from lockstep.common.model.autograd import AutogradModel
from lockstep.common.model.files import (
    ModelFile,
    ModelFiles,
    differing,
    digest_of,
    digests_of,
    is_shared,
    read_copy,
    read_model_files,
)
from lockstep.common.model.port import Evidence, Model
from lockstep.common.nn.description import build
from lockstep.common.nn.models import MODELS
from lockstep.common.nn.module import Module
from lockstep.common.numerics.choice import kernels_here
from lockstep.common.numerics.random import manual_seed, seeded_defaults
from lockstep.common.runtime.numerics import Numerics

#: A file that imports PyTorch, or a library of its models. Here and below it is imported within functions, where a
#: model asks for it.
_TORCH_IMPORT = re.compile(
    rb"^\s*(?:import|from)\s+(?:torch|torchvision|torchaudio|timm|transformers|peft|diffusers)\b", re.MULTILINE
)

#: How the package is called below which a model's files are modules, before the beginning of their digest.
_PREFIX = "lockstep_model_"

#: The value of a job that names its model.
MODEL = "model"

#: How the place of a file begins that belongs to a function that another value of the job names: that follows.
MARK = "+"


def _start_of(value: str) -> str:
    """Return how the places of the files begin that belong to the function that a value of a job names."""
    return "" if value == MODEL else f"{MARK}{value}/"


@dataclass
class ModelImporter(MetaPathFinder, Loader):
    """Imports the files of models as they were read, each model's below a package of its own.

    So two models may each have a `helpers.py`, and neither finds the other's, or a changed file, or a stale
    __pycache__. Modules have names in `sys.modules`, where dataclasses look a class's module up.
    """

    #: The files by the name of the model's package, and the places of its modules by their names.
    _models: dict[str, tuple[ModelFiles, dict[str, str]]] = field(default_factory=dict)

    def run(self, files: ModelFiles) -> ModuleType:
        """Execute the main file, and what it imports, again even if they ran before. Raises what they raise."""
        package = f"{_PREFIX}{files.digest[:16]}"
        self._models[package] = files, {_module_name(place): place for place in files.texts}
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        _forget(package)
        try:
            return importlib.import_module(f"{package}.{_module_name(files.main)}")
        except BaseException:
            _forget(package)
            raise

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        """Return the spec of a model's module, or of a package around one; None if it is not there."""
        package, _, name = fullname.partition(".")
        _, places = self._models.get(package, (None, {}))
        is_package = not name or PurePosixPath(places.get(name, "")).name == "__init__.py"
        is_around = any(each.startswith(f"{name}.") for each in places)
        if not places or not (is_package or is_around or name in places):
            return None
        return ModuleSpec(fullname, self, is_package=is_package or is_around)

    def exec_module(self, module: ModuleType) -> None:
        """Execute a module's source; a package without a file has none."""
        package, _, name = module.__name__.partition(".")
        files, places = self._models[package]
        if name not in places:
            return
        module.__file__ = str(files.root / places[name])
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _importing(package, files, places)}
        exec(compile(files.texts[places[name]], module.__file__, "exec"), vars(module))


_IMPORTER = ModelImporter()


def _module_name(place: str) -> str:
    """Return what a file is called as a module: a file may have any name, with points in it too."""
    parts = PurePosixPath(place.removesuffix("/__init__.py").removesuffix(".py")).parts
    return ".".join(part.replace(".", "_") for part in parts)


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _importing(package: str, files: ModelFiles, places: Mapping[str, str]) -> Callable[..., Any]:
    """Return the `__import__` of a model's files: it finds their own modules first, by the names that they use."""
    beside = _module_name("/".join(PurePosixPath(files.main).parts[:-1]))
    below = (name.removeprefix(f"{beside}.") for name in places if beside and name.startswith(f"{beside}."))
    around = {name.partition(".")[0]: f"{package}.{beside}" for name in below}
    around |= {name.partition(".")[0]: package for name in places}

    # The parameters are those of Python's function.
    def import_own_first(
        name: str,
        globals: Any = None,  # noqa: A002
        locals: Any = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or top not in around or is_shared(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = builtins.__import__(f"{around[top]}.{name}", globals, locals, fromlist or ())
        return found if fromlist else sys.modules[f"{around[top]}.{top}"]

    return import_own_first


class ModelSource(msgspec.Struct, frozen=True):
    """The source of a model, as it was when it was read: nothing runs whose digest was not checked before."""

    #: A description, or the name of a model of the library, if the model has no files.
    own: str | Mapping[str, Any] = ""
    #: The files of each function that a user wrote, by the value of the job that names it: those of the model first.
    files: Mapping[str, ModelFiles] = msgspec.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of all own files in hex, empty if all is of the library."""
        files = self.digests()
        return digest_of(files) if files else ""

    def digests(self) -> list[ModelFile]:
        """Return all own files with their digests, the one with the model's function first."""
        return digests_of(self.texts())

    def texts(self) -> dict[str, bytes]:
        """Return the same files by their places."""
        return {
            f"{_start_of(value)}{place}": text
            for value, files in self.files.items()
            for place, text in files.texts.items()
        }

    def own_code(self) -> OwnCode:
        """Return the functions that the job names next to its model; ModelError if there is no such function."""
        others = {value: files for value, files in self.files.items() if value != MODEL}
        return OwnCode.of({value: _function_of(files, _run(files)) for value, files in others.items()})

    def build(self, seed: int) -> Model:
        """Build the model of a job with that seed; ModelError if it cannot be built or trained.

        The draws of the files from PyTorch's generator, or from ours, follow from the seed.
        """
        files = self.files.get(MODEL)
        if files is None:
            return AutogradModel(MODELS[self.own]() if isinstance(self.own, str) else build(self.own))
        built = _called(files, seed)
        if isinstance(built, Module):
            return _begun(AutogradModel(built), seed)
        if is_torch_module(built):
            return torch_model(built)
        raise ModelError(f"{files} returned {built!r}: expected a Module; does the function end in `return model`?")

    def check_repeated(
        self,
        model: Model,
        objective: Objective,
        images: Array,
        targets: Array,
        taken: Mapping[str, Array] = MappingProxyType({}),
    ) -> Evidence:
        """Return a model's evidence, of a micro-batch; ModelError if it is another one when it is built again.

        The model has adopted `taken`. Other errors as of `Model.evidence`.
        """

        def again() -> Model:
            built = self.build(objective.job.seed)
            built.adopt(taken)
            return built

        return model.evidence(objective, images, targets, again)


def _begun(model: AutogradModel, seed: int) -> AutogradModel:
    """Return a model of ours whose frozen parameters have the values with which they stay."""
    if model.layout.frozen:
        model.initialize(seed)
    return model


def _called(files: ModelFiles, seed: int) -> object:
    """Run the files with the default generators seeded, and PyTorch's if they use that: before them, and before the
    function.

    So the function's draws do not depend on the files' own, and the caller's generators stay as they are.
    """

    def seed_again() -> None:
        manual_seed(seed)
        if "torch" in sys.modules:
            sys.modules["torch"].default_generator.manual_seed(seed)

    with seeded_defaults(seed):
        if "torch" not in sys.modules and not any(map(_TORCH_IMPORT.search, files.texts.values())):
            return _call(files, seed_again)  # what they import may still import PyTorch
        try:
            from lockstep.common.model.pytorch.runtime import seeded
        except ModuleNotFoundError:
            return _call(files, seed_again)
        with seeded(seed):
            return _call(files, seed_again)


def _call(files: ModelFiles, before: Callable[[], None] = lambda: None) -> object:
    """Run the files, call `before` and then the function, and return what comes back; ModelError if one raises."""
    function = _function_of(files, _run(files))
    before()
    try:
        return function()
    except Exception as error:
        raise ModelError(f"{files} raised {_one_line(error)}: expected a function that returns a Module") from error


def _run(files: ModelFiles) -> ModuleType:
    try:
        return _IMPORTER.run(files)
    except (Exception, SystemExit) as error:
        own = {str(files.root / place) for place in files.texts}
        ran = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
        path = next((path for path in reversed(ran) if path in own), str(files.path))
        raise ModelError(
            f"model file {path!r} cannot be imported: it raised {_one_line(error)}{_advice(error)}"
        ) from error


def _advice(error: BaseException) -> str:
    """Return what to do if a module is missing, empty if that is unknown."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    if error.name == "torch":
        return f": expected PyTorch to be installed; run `{sys.executable} -m pip install 'torch>=2.9'`"
    top = error.name.partition(".")[0]
    if os.path.isdir(top) or os.path.isfile(f"{top}.py"):
        return ": it is in the current folder, not in the model's: name the model as package.module:function"
    return ""


def _function_of(files: ModelFiles, module: ModuleType) -> Callable[[], object]:
    found: object = vars(module).get(files.function)
    if callable(found):
        return found
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    near = difflib.get_close_matches(files.function, names, n=1, cutoff=0.0)
    advice = f"did you mean {near[0]!r}?" if near else "the file defines none"
    raise ModelError(f"model file {str(files.path)!r} has no function {files.function!r}: {advice}")


def code_of(job: Job) -> dict[str, str]:
    """Return all that a job names in files, by the value that names it: its model first."""
    return {**({MODEL: str(job.model)} if names_code(job.model) else {}), **functions_of(job)}


def read_model_source(model: str | Mapping[str, Any]) -> ModelSource:
    """Read what a model is built from, once; ModelError if there is nothing of that name. Runs nothing."""
    if not isinstance(model, str):
        return ModelSource(model)
    if names_code(model):
        return ModelSource(files={MODEL: read_model_files(model)})
    if model in SIZED:
        raise ModelError(f"model = {model!r} without data: expected a job whose data it can take the sizes from")
    if model not in MODELS:
        known = (*MODELS, *SIZED)
        raise ModelError(
            f"model = {model!r} is not known{nearest(model, known)}: expected one of {', '.join(known)}, "
            "or FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that returns a Module"
        )
    return ModelSource(model)


def read_job_source(job: Job) -> ModelSource:
    """Read what a job's model is built from, and its other functions; ModelError as of `read_model_source`."""
    return _source_of(job, {value: read_model_files(name) for value, name in code_of(job).items()})


def _source_of(job: Job, files: Mapping[str, ModelFiles]) -> ModelSource:
    """Return the source of a job with these files, of which those of the model may be a copy."""
    return replace(ModelSource() if MODEL in files else read_model_source(job.model), files=files)


def default_numerics(texts: Iterable[bytes]) -> Numerics:
    """Return the numerics of a job that does not say which, by the texts of its model's own files.

    A model of PyTorch has native ones, and so has everything on a machine without kernels. A model that hides from
    this that it is PyTorch's is refused when the run is opened, with advice.
    """
    is_portable = not kernels_here().obstacle and not any(map(_TORCH_IMPORT.search, texts))
    return "portable" if is_portable else "native"


def open_model(model: str | Mapping[str, Any], seed: int) -> Model:
    """Return a new model of a job's value; errors as of `read_model_source` and `build`."""
    return read_model_source(model).build(seed)


class WantedSource(msgspec.Struct, frozen=True, kw_only=True):
    """The source that a model was trained with, as a server or a run's folder names it."""

    digest: str
    #: The files; empty in records from before they were listed.
    files: Sequence[ModelFile] = ()
    #: The folder that may have a copy of the files.
    copy: Path | None = None
    #: For an error: whose source it is, and how to get it.
    owner: str
    advice: str

    def read(self, job: Job) -> ModelSource:
        """Read the source from where a job names it, or else the copy. `ModelError` if neither has this digest."""
        model = job.model
        try:
            found = read_job_source(job)
        except ModelError as error:
            reason = str(error)
        else:
            if found.digest == self.digest:
                return found
            digests = f"SHA-256 {found.digest[:12]}… here, {self.digest[:12]}… there"
            odd = differing(found.digests(), self.files) if self.files else digests
            reason = f"the source of model {model!r} is not {self.owner} ({odd})"
        if self.copy is not None and self.copy.is_dir() and self.files:
            return self._copied(self.copy, job)
        raise ModelError(f"{reason}: {self.advice}")

    def _copied(self, copy: Path, job: Job) -> ModelSource:
        found = _source_of(job, {value: self._copy_of(copy, value, name) for value, name in code_of(job).items()})
        if found.digest != self.digest:
            raise ModelError(f"the copy of the model in {str(copy)!r} is not {self.owner}: {self.advice}")
        return found

    def _copy_of(self, copy: Path, value: str, name: str) -> ModelFiles:
        start = _start_of(value)
        files = [
            ModelFile(file.place.removeprefix(start), file.sha256)
            for file in self.files
            if (file.place.startswith(start) if start else not file.place.startswith(MARK))
        ]
        return read_copy(copy / start, name.rpartition(":")[2], files)


def source_from_welcome(job: Job, digest: str, files: Sequence[ModelFile], folder: str) -> ModelSource:
    """Return what a server's model is built from, as it is on this machine; `ModelError` if it is not here."""
    names = ", ".join(file.place for file in files)
    return WantedSource(
        digest=digest,
        files=files,
        copy=Path(folder) if folder else None,
        owner="the server's",
        advice=f"copy the server's files to this machine: {names or 'it has none'}",
    ).read(job)


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


def _one_line(error: BaseException) -> str:
    """Return the exception on one line: `ValueError: text`, with modules as the model's files call them."""
    text = re.sub(rf"{_PREFIX}[0-9a-f]{{16}}\.", "", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""The form in which a model is sent: as a name, as data, or as the text of a file that builds it on this machine.

The text is gathered from a notebook or a script. Installed packages are imported, because every worker of this machine
finds the same ones. Definitions next to the model are copied, and so are plain values. An error names anything else,
which has no text. The text does not come from `inspect.getsource`: before Python 3.13 that finds no class of a
notebook, because `__main__` has no file there. But every function knows the cell that it was compiled from, and
`linecache` has that cell's text."""

import ast
import builtins
import inspect
import linecache
import math
import site
import symtable
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import msgspec
import numpy as np

from lockstep.common.autograd.primitives.primitive import Sink
from lockstep.common.errors import JobError, ModelError
from lockstep.common.files.sanitize import one_line
from lockstep.common.job.losses import LOSSES
from lockstep.common.job.metrics import metric_name
from lockstep.common.job.own_code import NAMING, OF_METRIC
from lockstep.common.model.likeness import differences, is_alike
from lockstep.common.model.source import default_numerics, is_torch_class, is_torch_module, torch_model
from lockstep.common.nn.description import describe, is_describable
from lockstep.common.nn.module import Module, Parameter, RunningStatistic
from lockstep.common.optim.rules import RULES

#: How a file begins that was made of a model from a notebook.
BEGINNING = '"""A model that was defined in a notebook or a script, as `fit` found it there."""\n\n'


def borrowed_names(text: str) -> list[str]:
    """Return the names that a definition uses and neither defines nor has from Python itself, in order."""
    table = symtable.symtable(text, "<definition>", "exec")
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    own |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_namespace()}
    return sorted(set(_global_names(table, is_top=True)) - own - set(dir(builtins)))


def _global_names(table: symtable.SymbolTable, *, is_top: bool = False) -> Iterator[str]:
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (is_top or symbol.is_global()):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _global_names(inner)


Definition = type | FunctionType


def text_of(definition: Definition) -> str:
    """Return a class or function as it was written, with its decorators; a lambda as an expression.

    `ModelError` if its text cannot be had.
    """
    name = definition.__name__
    code = _code_of(definition)
    lines = linecache.getlines(code.co_filename) if code is not None else []
    if code is None or not lines:
        raise ModelError(
            f"the source of {name} cannot be had: expected a class or function of a notebook's cell or of a file, "
            "with a method of its own; put it into a file and give path/to/file.py:function"
        )
    return (_cut_out_lambda if name == LAMBDA else _cut_out)(definition, code, "".join(lines))


def _code_of(definition: Definition) -> CodeType | None:
    """Return some code that was compiled together with the definition."""
    if isinstance(definition, FunctionType):
        return definition.__code__
    within = f"{definition.__qualname__}."
    methods = map(_function_in, vars(definition).values())
    codes = (method.__code__ for method in methods if isinstance(method, FunctionType))
    # A dataclass has methods that were made for it, of no file.
    return next((code for code in codes if code.co_qualname.startswith(within) and code.co_filename[0] != "<"), None)


def _cut_out(definition: Definition, code: CodeType, text: str) -> str:
    kinds = ast.ClassDef if isinstance(definition, type) else ast.FunctionDef
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, kinds) and node.name == definition.__name__:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            last = node.end_lineno or node.lineno
            if first <= code.co_firstlineno <= last:
                return textwrap.dedent("".join(f"{line}\n" for line in text.splitlines()[first - 1 : last]))
    raise ModelError(
        f"the source of {definition.__name__} in {code.co_filename!r} has changed since it was run: run its cell again"
    )


def _cut_out_lambda(definition: Definition, code: CodeType, text: str) -> str:
    """Return a lambda's text: of those around all places that it was compiled from, the one that begins last."""
    # The first instruction is at no place: it begins where it ends.
    places = [
        (line, column)
        for line, end_line, column, end_column in code.co_positions()
        if line is not None and column is not None and (line, column) != (end_line, end_column)
    ]
    first, last = min(places, default=(0, 0)), max(places, default=(0, 0))
    around = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Lambda)
        and (node.body.lineno, node.body.col_offset) <= first
        and last <= (node.body.end_lineno or 0, node.body.end_col_offset or 0)
    ]
    if not around:
        raise ModelError(
            f"the source of the lambda in line {code.co_firstlineno} of {code.co_filename!r} cannot be had: expected a "
            "function; write `def build(): return ...`"
        )
    found = max(around, key=lambda node: (node.lineno, node.col_offset))
    return f"({textwrap.dedent(ast.get_source_segment(text, found) or '')})"


#: The name of a function that has none.
LAMBDA = "<lambda>"

#: Names that every module has.
GIVEN = ("__name__", "__file__", "__doc__")


@dataclass
class Gathering:
    """The parts of a file, in the order in which they have to stand."""

    imports: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    #: The value of each name.
    _taken: dict[str, object] = field(default_factory=dict)
    #: Whether the first definition builds the model as it is, and how that is passed to `fit` by its name.
    is_whole: bool = True
    _by_name: str = ""

    def add(self, definition: Definition, name: str = "") -> None:
        """Add a definition, after all that it uses; `ModelError` names what cannot be had.

        A lambda needs a name. Variables of a function around it become variables of the file, with the values that
        they have now.
        """
        name = name or definition.__name__
        if not self._take(name, definition, name):
            return
        self._by_name = self._by_name or _by_name(definition, is_whole=self.is_whole)
        namespace = vars(sys.modules[definition.__module__]) if isinstance(definition, type) else definition.__globals__
        known = {**namespace, **_closed_over(definition)}
        text = self._as_evaluated(definition, text_of(definition), known, name)
        for borrowed in borrowed_names(text):
            if borrowed in GIVEN:
                continue
            if borrowed not in known:
                raise ModelError(f"{name} uses {borrowed!r}, which is defined nowhere: define it, or import it")
            self._add_name(borrowed, known[borrowed], name)
        self.parts.append(f"{name} = {text}\n" if definition.__name__ == LAMBDA else text)

    def value(self, value: object, user: str) -> str:
        """Return an expression for a value, after adding what it uses; `ModelError` if it has none."""
        if isinstance(value, type | FunctionType):
            name = value.__name__ if value.__name__ != LAMBDA else f"function{len(self.parts)}"
            self._add_name(name, value, user)
            return name
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            parts = ", ".join(self.value(each, user) for each in value)
            return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
        if type(value) is dict:
            return "{" + ", ".join(f"{self.value(k, user)}: {self.value(v, user)}" for k, v in value.items()) + "}"
        return _plain(repr(value), value, user)

    def text(self) -> str:
        imports = "".join(f"{line}\n" for line in sorted(set(self.imports)))
        return "\n\n".join(part for part in (imports, *self.parts) if part)

    def _as_evaluated(self, definition: Definition, text: str, names: dict[str, object], user: str) -> str:
        """Return a definition's text with the default arguments and attributes that it has; add their names.

        Python evaluated them when the definition was run: a name in them may stand for something else by now.
        """
        written: list[tuple[ast.expr, str]] = []
        for expression, value in _evaluated(definition, ast.parse(text).body[0]):
            if not _has_value(expression, value, names):
                written.append((expression, self.value(value, user)))
                names.setdefault(written[-1][1], value)
        return _replaced(text, written)

    def _add_name(self, name: str, value: object, user: str) -> None:
        """Let `name` stand for `value` in the file."""
        if isinstance(value, type | FunctionType) and not _is_installed(value.__module__):
            if value.__name__ == LAMBDA:
                self.add(value, name)
                return
            self.add(value)
            if value.__name__ != name and self._take(name, value, user):
                self.parts.append(f"{name} = {value.__name__}\n")
        elif self._take(name, value, user):
            line = _import_of(name, value, user, self._by_name)
            (self.imports if line else self.parts).append(line or f"{name} = {_plain(name, value, user)}\n")

    def _take(self, name: str, value: object, user: str) -> bool:
        """Record what a name stands for; return whether that is new."""
        if name in self._taken:
            if self._taken[name] is not value:
                raise ModelError(
                    f"{user} uses a {name!r} that is not the one which another part of the model uses: expected one of "
                    "each name; rename one of them"
                )
            return False
        self._taken[name] = value
        return True


def _function_in(value: object) -> object:
    """Return the function of a method, which may be a property, a class method or a static one."""
    return getattr(value, "fget", getattr(value, "__func__", value))


def _evaluated(definition: object, node: ast.AST) -> Iterator[tuple[ast.expr, object]]:
    """Yield the default arguments of a function, or of a class's methods, and its attributes, with their values.

    Those that are not known, as of a function which was decorated by another one, are left out.
    """
    match node:
        case ast.ClassDef():
            own = vars(definition)
            for part in node.body:
                match part:
                    case ast.FunctionDef() if part.name in own:
                        yield from _evaluated(_function_in(own[part.name]), part)
                    case (
                        ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value)
                        | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
                    ) if name in own and not (isinstance(value, ast.Call) and is_dataclass(definition)):
                        yield value, own[name]
        case ast.FunctionDef(args=arguments) | ast.Expr(value=ast.Lambda(args=arguments)):
            function = inspect.unwrap(definition) if callable(definition) else None
            if not isinstance(function, FunctionType):
                return
            code, names = function.__code__, [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
            given, by_name = function.__defaults__ or (), function.__kwdefaults__ or {}
            if names == [*code.co_varnames[: code.co_argcount]] and len(given) == len(arguments.defaults):
                yield from zip(arguments.defaults, given, strict=True)
                keywords = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                yield from ((each, by_name[key.arg]) for key, each in keywords if each and key.arg in by_name)


def _has_value(expression: ast.expr, value: object, names: Mapping[str, object]) -> bool:
    """Tell whether an expression still has a value, as far as that can be known without running it."""
    if isinstance(value, type | FunctionType):
        # A definition that was run again is the same one, by its new text.
        now = names.get(expression.id, value) if isinstance(expression, ast.Name) else value
        return getattr(now, "__name__", "") == value.__name__
    if _written(value) is None:
        return True  # it cannot be sent, and is made again
    try:
        now = names[expression.id] if isinstance(expression, ast.Name) else ast.literal_eval(expression)
    except (KeyError, ValueError, TypeError):
        return False
    return is_alike(now, value, lambda here, there: None)


def _replaced(text: str, written: Sequence[tuple[ast.expr, str]]) -> str:
    """Return a text with others in place of expressions in it."""
    content = text.encode()
    starts = [0, *accumulate(len(line) + 1 for line in content.split(b"\n"))]
    for each, other in sorted(written, key=lambda part: (part[0].lineno, part[0].col_offset), reverse=True):
        first, last = starts[each.lineno - 1], starts[(each.end_lineno or each.lineno) - 1]
        content = content[: first + each.col_offset] + other.encode() + content[last + (each.end_col_offset or 0) :]
    return content.decode()


def _closed_over(definition: Definition) -> dict[str, object]:
    """Return the variables of functions around a definition that it uses, or its methods do, with their values."""
    parts = vars(definition).values() if isinstance(definition, type) else [definition]
    functions = map(_function_in, parts)
    found: dict[str, object] = {}
    for function in functions:
        if isinstance(function, FunctionType):
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
                # The class itself, for `super()`; and names without a value yet, such as the function itself.
                if name != "__class__" and cell != CellType():
                    found[name] = cell.cell_contents
    return found


def _import_of(name: str, value: object, user: str, by_name: str) -> str:
    """Return the import of something installed, empty if it is a plain value."""
    if isinstance(value, ModuleType):
        if not _is_installed(value.__name__):
            raise ModelError(
                f"{user} uses the module {name!r} from {getattr(value, '__file__', None)!r}, which workers do not "
                f"find: pass {by_name}, whose imports are found, or write `from {value.__name__} import ...` for "
                "what it uses"
            )
        return f"import {value.__name__}" + (f" as {name}" if value.__name__ != name else "")
    where, what = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if isinstance(where, str) and isinstance(what, str) and getattr(sys.modules.get(where), what, None) is value:
        return f"from {where} import {what}" + (f" as {name}" if what != name else "")
    return ""


def _by_name(definition: Definition, *, is_whole: bool) -> str:
    """Return how a model is passed by its name: only what a module defines, and is called as it is, has one."""
    if not is_whole or definition.__module__ == "__main__" or not definition.__qualname__.isidentifier():
        return "FILE.py:FUNCTION instead, of a file that builds the model"
    return f"its name {f'{definition.__module__}:{definition.__qualname__}'!r} instead"


def _plain(name: str, value: object, user: str) -> str:
    """Return a value as it is written in a program; `ModelError` if it is not a plain one."""
    text = _written(value)
    if text is None:
        raise ModelError(
            f"{user} uses {name!r}, a {type(value).__name__}, which cannot be written down for the workers: expected "
            "a number, a text, a list of such, a function, a class or an installed module; make it within the model"
        )
    return text


def _written(value: object) -> str | None:
    text = repr(value)
    try:
        is_plain = type(value) in (bool, int, float, str, bytes, tuple, list, dict, set, type(None)) and (
            ast.literal_eval(text) == value
        )
    except (ValueError, SyntaxError):
        is_plain = isinstance(value, float) and not math.isfinite(value)
        text = f"float({text!r})"
    return text if is_plain else None


def _is_installed(module: str) -> bool:
    """Return whether a worker of this machine can import a module: it has the same packages, and not our folder."""
    root = module.partition(".")[0]
    if root == "lockstep" or root in sys.builtin_module_names:
        return True
    if root == "__main__":
        return False
    package = sys.modules.get(root)
    files = [getattr(package, "__file__", None), *getattr(package, "__path__", [])]
    return any(Path(file).is_relative_to(folder) for file in files if file for folder in package_folders(sys.path))


def package_folders(search: Sequence[str]) -> tuple[Path, ...]:
    """Return the folders of installed packages, of which some are only in Python's search path.

    An environment with the packages of the system has two of them, Debian's Python has three, and a `.pth` may add any.
    """
    paths = sysconfig.get_paths()
    named = [paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()]
    others = (path for path in search if Path(path).name in ("site-packages", "dist-packages"))
    return tuple(map(Path, dict.fromkeys([*named, site.getusersitepackages(), *others])))


#: A model, of `lockstep.nn` or of PyTorch, what builds one, or the name of one.
Model = Any


class ModelText(msgspec.Struct, frozen=True):
    """The source of a file with a function in it that returns the model."""

    #: The name of the model on the screen.
    name: str
    function: str
    text: str


class ExportedModel(msgspec.Struct, frozen=True):
    """A model as a job can name it."""

    #: The job's value; if there is a text, a placeholder until that has a file. Empty if it follows from the data.
    value: str | dict[str, Any]
    text: ModelText | None = None

    def values(self) -> dict[str, Any]:
        """Return the model as a value of a job, and the numerics that the job has unless it says which."""
        if self.text is None:
            return {"model": self.value} if self.value != "" else {}
        # Its file is not written yet: there may be another one of that name.
        return {"numerics": default_numerics([self.text.text.encode()]), "model": self.value}


def exported(model: Model) -> ExportedModel:
    """Return how a model is sent: a name as it is, the library's layers as data, and everything else as its text.

    None is the model that follows from the data.
    Raises as `model_text`, and `ModelError` if a parameter of a model that is sent as data is frozen.
    """
    if model is None or isinstance(model, str):
        return ExportedModel(model or "")
    if is_torch_module(model):
        torch_model(model)  # raises if it cannot be trained
    if is_described(model):
        _check_trained(model)
        return ExportedModel(dict(describe(model)))
    text = model_text(model)
    return ExportedModel(f"{text.name}.py:{text.function}", text)


def _check_trained(model: Module) -> None:
    """Raise if a parameter is frozen: a description has the layers only."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise ModelError(
                f"the parameter {name!r} is frozen, and the model is sent as a description of its layers, which does "
                "not say so: expected a function that builds and freezes it; write `def build(): ... return model` and "
                "pass it to `fit`"
            )


def exported_functions(values: Mapping[str, Any]) -> dict[str, ModelText]:
    """Return the text of each function that is given in place of a job's value, by that value's name.

    `ModelError` as of `model_text`; `JobError` for something else that can be called.
    """
    found = {}
    metrics = values.get("metrics")
    for metric in metrics if isinstance(metrics, list | tuple) else ():
        if isinstance(metric, FunctionType) and metric.__name__ == LAMBDA:
            raise JobError(
                "metrics has a lambda, whose figure would have no name: expected a function with one; write `def "
                "my_metric(outputs, targets): return ...` with a sum and what it is divided by"
            )
        if isinstance(metric, FunctionType):
            found[f"{OF_METRIC}{metric.__name__}"] = ModelText(metric.__name__, metric.__name__, _text_of(metric))
        elif callable(metric):
            raise JobError(f"metrics has {metric!r}: expected a name, a function of your own, or FILE.py:FUNCTION")
    for name in NAMING:
        value = values.get(name)
        kind = value if isinstance(value, type) else type(value)
        _check_not_of_a_library(name, value)
        if isinstance(value, FunctionType) or (name == "optimizer" and isinstance(value, type)):
            called = value.__name__ if value.__name__ != LAMBDA else name
            found[name] = ModelText(called, called, _text_of(value, called))
        elif name == "optimizer" and is_dataclass(value):
            kind = type(value)
            given = ", ".join(f"{one.name}={getattr(value, one.name)!r}" for one in fields(value) if one.init)
            built = f"\n\ndef build_rule():\n    return {kind.__name__}({given})\n"
            found[name] = ModelText(kind.__name__, "build_rule", _text_of(kind) + built)
        elif callable(value):
            raise JobError(
                f"{name} = {value!r}: expected a function of your own, the name of one of the library, or "
                "FILE.py:FUNCTION"
            )
    return found


#: Libraries whose losses and optimizers have names in a job.
LIBRARIES = {"lockstep": "the library", "torch": "PyTorch"}


def _check_not_of_a_library(name: str, value: object) -> None:
    """Raise `JobError` if a loss or an optimizer is a function or class of a library, and not of the user."""
    kind = value if isinstance(value, type | FunctionType) else type(value)
    library = LIBRARIES.get(kind.__module__.partition(".")[0])
    if library is None or name not in ("loss", "optimizer"):
        return
    is_loss = name == "loss"
    names = ", ".join(LOSSES if is_loss else RULES)
    why = "a run needs sums, and what they are divided by" if is_loss else "the server updates the weights"
    rest = "" if is_loss else "; its values are arguments, such as lr and weight_decay"
    raise JobError(f"{name} is {kind.__name__} of {library}: expected one of {names}, as {why}{rest}")


def with_names(values: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a job with names in place of functions: of those that `exported_functions` has found."""
    of_metrics = {value.removeprefix(OF_METRIC): name for value, name in named.items() if value.startswith(OF_METRIC)}
    others = {value: name for value, name in named.items() if not value.startswith(OF_METRIC)}
    if not of_metrics:
        return {**values, **others}
    metrics = [of_metrics.get(_metric_called(metric), metric) for metric in values["metrics"]]
    return {**values, **others, "metrics": metrics}


def names_of(functions: Mapping[str, ModelText]) -> dict[str, str]:
    """Return what a job may call functions before they have files, by the values that name them."""
    return {value: f"{value}.py:{text.function}" for value, text in functions.items()}


def _metric_called(metric: object) -> str:
    return metric.__name__ if isinstance(metric, FunctionType) else metric_name(str(metric))


def is_described(model: object) -> bool:
    """Return whether a model consists of the library's own layers, which are sent as data."""
    return isinstance(model, Module) and all(is_describable(type(part)) for part in model.modules())


def _form_of(value: object, depth: int = 2) -> str:
    """Return a value as text, and arrays as types and shapes: data is taken for a model if that is forgotten."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} {tuple(shape)}"
    if isinstance(value, tuple | list) and depth:
        return f"({', '.join(_form_of(part, depth - 1) for part in value[:3])}{', …' if len(value) > 3 else ''})"
    if isinstance(value, dict) and depth:
        return f"{{{', '.join(f'{name!r}: {_form_of(part, depth - 1)}' for name, part in value.items())}}}"
    return one_line(repr(value), 60)


def model_text(model: Any) -> ModelText:
    """Return the text that builds a model: of its class, or of the function that returns it.

    `ModelError` if the text cannot be had, uses names without a text, or would build another model than the one given.
    """
    if isinstance(model, FunctionType):
        name = model.__name__ if model.__name__ != LAMBDA else "model"
        return ModelText(name, name, _text_of(model, name))
    if isinstance(model, partial):
        return _text_of_call(model)
    kind = model if isinstance(model, type) else type(model)
    if not issubclass(kind, Module) and not is_torch_class(kind):
        raise ModelError(
            f"the model is {_form_of(model)}: expected a Module, its class, or a function that returns it; data comes "
            "after a model, as in fit('dense', data), or alone, as in fit((x, y))"
        )
    if is_torch_module(model) and (text := text_of_module(model)) is not None:
        return text
    if is_torch_class(kind) and kind.__module__.partition(".")[0] == "torch":
        raise ModelError(
            f"the {kind.__name__} is a class of PyTorch, and what it was built with is not known: expected a class of "
            "your own, or what builds the model; pass `lambda: ...` or `functools.partial(...)` to `fit`"
        )
    if not isinstance(model, type):
        _check_own(model)
        check_rebuilt(model)
    function = "build" if kind.__name__ != "build" else "build_model"
    return ModelText(kind.__name__, function, _text_of(kind) + f"\n\ndef {function}():\n    return {kind.__name__}()\n")


def _text_of(definition: Definition, name: str = "") -> str:
    gathering = Gathering()
    gathering.add(definition, name)
    return BEGINNING + gathering.text()


def _text_of_call(model: "partial[Any]") -> ModelText:
    """Return the text of a function that calls another one, or a class, with some arguments."""
    gathering = Gathering(is_whole=False)
    called = gathering.value(model.func, "the partial")
    given = [gathering.value(each, called) for each in model.args]
    given += [f"{key}={gathering.value(each, called)}" for key, each in model.keywords.items()]
    function = "build" if called != "build" else "build_model"
    text = f"{gathering.text()}\n\ndef {function}():\n    return {called}({', '.join(given)})\n"
    return ModelText(called, function, BEGINNING + text)


def text_of_module(model: Any) -> ModelText | None:
    """Return the text that builds a module of PyTorch with the arguments that its layers show; None if they do not.

    The model that it builds was compared with the module.
    """
    # Here, where the model itself has imported PyTorch already.
    from lockstep.common.model.pytorch.comparison import constructed

    gathering = Gathering()
    built = constructed(model, gathering.value)
    if built is None:
        return None
    call, requires_grad = built
    lines = [f"return {call}"]
    if requires_grad:
        lines = [
            f"model = {call}",
            *(f"model.get_parameter({name!r}).requires_grad = {value}" for name, value in requires_grad.items()),
            "return model",
        ]
    body = "\n".join(f"    {line}" for line in lines)
    text = f"{BEGINNING}{gathering.text()}\n\ndef build():\n{body}\n"
    return ModelText(type(model).__name__, "build", text)


def _check_own(model: Any) -> None:
    """Raise if the model is a container of ours around a class of theirs, whose arguments are unknown."""
    if isinstance(model, Module) and is_describable(type(model)):
        own = next(type(module).__name__ for module in model.modules() if not is_describable(type(module)))
        raise ModelError(
            f"the {type(model).__name__} holds a {own} of your own, and what that was built with is not known: "
            f"expected a function that builds the whole; write `def build(): return ...` and pass it to `fit`"
        )


#: Attributes of every module that do not show how it was built.
PASSING = ("training", "_source", "_observers", "_is_drawn")


def check_rebuilt(model: Any) -> None:
    """Raise `ModelError` with the first thing in which the model differs from what its class alone builds."""
    name = type(model).__name__
    advice = f"expected a model that {name}() builds; give `fit` a function instead: `lambda: {name}(...)`"
    if not isinstance(model, Module):
        # Here, where the model itself has imported PyTorch already.
        from lockstep.common.model.pytorch.comparison import first_difference, unkept_arguments

        if unkept := unkept_arguments(model):
            kept = "; ".join(f"self.{each} = {each}" for each in unkept)
            advice = (
                f"expected a model that {name}() builds, or one that keeps its arguments: add `{kept}` to "
                f"{name}.__init__, or give `fit` a function instead: `lambda: {name}(...)`"
            )
    try:
        other = type(model)()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ModelError(f"{name}() raised {text}: {advice}") from error
    if isinstance(model, Module):
        odd = next(differences(dict(_attributes(model)), dict(_attributes(other)), _judged, _told), None)
    else:
        odd = first_difference(model, other)
    if odd is not None:
        raise ModelError(f"{odd}: {advice}")


def _attributes(model: Module) -> Iterator[tuple[str, object]]:
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name not in PASSING:
                yield f"{prefix}.{name}" if prefix else name, value


def _judged(here: Any, there: Any) -> bool | None:
    """Return whether two attributes of a kind that is ours are alike."""
    if isinstance(here, Parameter):
        return bool(here.shape == there.shape and here.requires_grad == there.requires_grad)
    if isinstance(here, RunningStatistic):
        return bool(here.value.shape == there.value.shape)
    # The attributes of a module are looked at by themselves, and a sink is bound to its module.
    return True if isinstance(here, Module | Sink) else None


def _told(value: object) -> str:
    if isinstance(value, Parameter):
        return f"of shape {value.shape}{'' if value.requires_grad else ', frozen,'}"
    return f"a {type(value).__name__}" if isinstance(value, Module | np.ndarray) else repr(value)

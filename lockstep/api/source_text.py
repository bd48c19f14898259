"""A model's source, gathered from a notebook or a script into a file that needs no other.

Installed packages are imported, since every worker of this machine finds the same ones. Definitions next to the model
are copied, and so are plain values. An error names anything else, which has no text.

The text does not come from `inspect.getsource`: before Python 3.13 that finds no class of a notebook, since `__main__`
has no file there. But every function knows the cell that it was compiled from, and `linecache` has that cell's text.
"""

import ast
import builtins
import linecache
import math
import site
import symtable
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType

from lockstep.common.errors import ModelError


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
    methods = (getattr(value, "fget", getattr(value, "__func__", value)) for value in vars(definition).values())
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
        text = text_of(definition)
        known = _closed_over(definition)
        namespace = vars(sys.modules[definition.__module__]) if isinstance(definition, type) else definition.__globals__
        for borrowed in borrowed_names(text):
            if borrowed in GIVEN:
                continue
            if borrowed not in known and borrowed not in namespace:
                raise ModelError(f"{name} uses {borrowed!r}, which is defined nowhere: define it, or import it")
            self._add_name(borrowed, known[borrowed] if borrowed in known else namespace[borrowed], name)
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


def _closed_over(definition: Definition) -> dict[str, object]:
    """Return the variables of functions around a definition that it uses, or its methods do, with their values."""
    parts = vars(definition).values() if isinstance(definition, type) else [definition]
    functions = [getattr(part, "fget", getattr(part, "__func__", part)) for part in parts]
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
    """Return a value as it is written in a program."""
    text = repr(value)
    try:
        is_plain = type(value) in (bool, int, float, str, bytes, tuple, list, dict, set, type(None)) and (
            ast.literal_eval(text) == value
        )
    except (ValueError, SyntaxError):
        is_plain = isinstance(value, float) and not math.isfinite(value)
        text = f"float({text!r})"
    if not is_plain:
        raise ModelError(
            f"{user} uses {name!r}, a {type(value).__name__}, which cannot be written down for the workers: expected "
            "a number, a text, a list of such, a function, a class or an installed module; make it within the model"
        )
    return text


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

"""The source text of one class or function, from a notebook's cell, a script or a module; knows no other names in it.

Not by `inspect.getsource`: before Python 3.13 that finds no class of a notebook, since `__main__` has no file there.
But every function knows the cell that it was compiled from, and `linecache` has that cell's text.
"""

import ast
import linecache
import textwrap
from dataclasses import dataclass
from types import CodeType, FunctionType

from common.errors import ModelError

Definition = type | FunctionType


@dataclass(frozen=True)
class Excerpt:
    """A definition as it was written, its decorators included."""

    definition: Definition
    text: str


def excerpt_of(definition: Definition) -> Excerpt:
    """Return the text of a class or function; `ModelError` where it cannot be had, or not as something of its own."""
    name = definition.__name__
    if name == "<lambda>":
        raise ModelError("a lambda has no text of its own: expected a function; write `def build(): return ...`")
    if "<locals>" in definition.__qualname__:
        raise ModelError(
            f"{definition.__qualname__} is defined within a function, on whose variables it may depend: expected a "
            "definition at the top of a cell or file; move it there"
        )
    code = _code_of(definition)
    lines = linecache.getlines(code.co_filename) if code is not None else []
    if code is None or not lines:
        raise ModelError(
            f"the source of {name} cannot be had: expected a class or function of a notebook's cell or of a file, "
            "with a method of its own; put it into a file and give path/to/file.py:function"
        )
    return Excerpt(definition, _cut_out(definition, code, "".join(lines)))


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

"""Markdown tables, and how a definition in the code is described: its types in words, and its `#:` comments."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import inspect as types

#: Packages whose classes are asked for comments.
OURS = ("lockstep",)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """Return a value as it is written in code."""
    return f"`{value}`"


def first_sentence(docstring: str | None) -> str:
    """Return the first sentence of a docstring."""
    text = " ".join((docstring or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", text)[0]


def comments_of(kind: type) -> dict[str, str]:
    """Return the `#:` comment above each attribute of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        if parent.__module__.partition(".")[0] not in OURS:
            continue
        lines = textwrap.dedent(inspect.getsource(parent)).splitlines()
        body = ast.parse("\n".join(lines)).body[0]
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            match node:
                case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                    found[name] = _above(lines, node.lineno - 1)
    return found


def _above(lines: Sequence[str], index: int) -> str:
    start = index
    while start and lines[start - 1].strip().startswith("#:"):
        start -= 1
    return " ".join(line.strip().removeprefix("#:").strip() for line in lines[start:index])


#: Limits of the validator, which a reader of a file need not know.
_RANGES = re.compile(
    r",? (?:(?:at least|at most|above|below|of at most) [-\d,.]*\d|from \d+ to [\d,]*\d)(?: characters)?"
)


def fields_table(kind: type[msgspec.Struct]) -> str:
    """Return the fields of a record: name, type, and what it is."""
    comments, info = comments_of(kind), types.type_info(kind)
    assert isinstance(info, types.StructType)
    rows = [
        [code(field.encode_name), _RANGES.sub("", words(field.type)), comments.get(field.name, "")]
        for field in info.fields
    ]
    return table(("field", "type", "what it is"), rows)


def words(kind: types.Type) -> str:
    """Return a type in words, with the range that its validator allows."""
    match kind:
        case types.Metadata(type=inner):
            return words(inner)
        case types.IntType():
            return f"whole number{_range(kind)}"
        case types.FloatType():
            return f"number{_range(kind)}"
        case types.BoolType():
            return "true or false"
        case types.StrType(pattern=pattern, max_length=most):
            if pattern is not None and "0-9a-f" in pattern:
                return "hexadecimal digits"
            return "text" if most is None else f"text of at most {most:,} characters"
        case types.BytesType(max_length=most):
            return "bytes" if most is None else f"at most {most:,} bytes"
        case types.NoneType():
            return "nothing"
        case types.LiteralType(values=values):
            return "one of " + ", ".join(map(code, values)) if len(values) > 1 else code(values[0])
        case types.EnumType(cls=cls):
            return "one of " + ", ".join(code(each.value) for each in cls)
        case types.UnionType(types=members):
            return " or ".join(words(each) for each in members)
        case types.ListType(item_type=item) | types.VarTupleType(item_type=item):
            return f"list of {_plural(words(item))}"
        case types.TupleType(item_types=items):
            return "list of " + ", ".join(words(each) for each in items)
        case types.NamedTupleType(fields=fields):
            return "list of " + ", ".join(words(each.type) for each in fields)
        case types.DictType():
            return "object"
        case types.StructType(cls=cls):
            return code(cls.__name__)
        case types.AnyType():
            return "anything"
        case _:
            raise TypeError(f"{kind!r} has no words: add them here")


def _plural(text: str) -> str:
    # What follows the noun is its range or its length.
    found = re.match(r"(?P<noun>.*?)(?P<rest>(?: from | of |, ).*)?$", text)
    assert found is not None  # any text matches
    noun, rest = found["noun"], found["rest"] or ""
    return (noun if noun.startswith("`") else f"{noun}s") + rest


def _range(kind: Any) -> str:
    """Return the range of a number; a bound that only keeps numbers finite is not worth the words."""
    low = f"at least {_number(kind.ge)}" if kind.ge is not None and kind.ge > -1e18 else ""
    low = low or (f"above {_number(kind.gt)}" if kind.gt is not None else "")
    has_top = kind.le is not None and abs(kind.le) < 1e9
    high = f"at most {_number(kind.le)}" if has_top else f"below {_number(kind.lt)}" if kind.lt is not None else ""
    if low.startswith("at least") and high.startswith("at most"):
        return f" from {_number(kind.ge)} to {_number(kind.le)}"
    together = ", ".join(part for part in (low, high) if part)
    return f", {together}" if together else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"

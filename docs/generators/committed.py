"""What GitHub shows of the reference: generated parts as plain Markdown, committed in the pages, made from the code.

    python -m docs.generators.committed            writes them; a test fails when they are not what the code gives

The site makes them again, with links and with a form of its own: see `expansion`.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from docs.generators.expansion import SECTION, collapsed, end_of, piece
from docs.generators.tables import code, first_sentence, table

ROOT = Path(__file__).parents[2]

_DIRECTIVE = re.compile(r"^```\{eval-rst\}\n\.\. (\w+):: (\S+)\n(.*?)```$", re.MULTILINE | re.DOTALL)
#: Entries one below the other, which become one list.
_ENTRIES = re.compile(rf"(?:{_DIRECTIVE.pattern}\n*)+", re.MULTILINE | re.DOTALL)
#: GitHub shows no drawing that a page holds; the table above one has the same.
_DRAWING = re.compile(r"^<(div|figure|svg)\b.*?</\1>\n*", re.MULTILINE | re.DOTALL)
_MEMBERS = re.compile(r":members: (.+)")
_PROGRAM = re.compile(r":prog: (.+)")


def committed(text: str) -> str:
    """Return a page with everything in it that is generated, as GitHub shows it."""
    return SECTION.sub(lambda found: f"{_comment(found[1])}\n\n{readable(piece(found[1]))}\n\n{end_of(found[1])}", text)


def readable(text: str) -> str:
    """Return a generated part without what only Sphinx understands: of entries, a list of their first sentences."""
    return _DRAWING.sub("", _ENTRIES.sub(_listed, text)).strip()


def _comment(name: str) -> str:
    return f"<!-- generated: {name} -->"


def _listed(found: re.Match[str]) -> str:
    rows = [row for entry in _DIRECTIVE.finditer(found[0]) for row in _rows(*entry.groups())]
    return f"{table(('name', 'what it does'), rows)}\n"


def _rows(kind: str, target: str, options: str) -> Iterator[list[str]]:
    if kind == "click":
        program = _PROGRAM.search(options)
        assert program is not None  # each entry names it
        module, _, name = target.partition(":")
        yield from _rows_of_command(getattr(importlib.import_module(module), name), program[1])
        return
    member = _member(target)
    yield _row(target.removeprefix("lockstep."), member)
    named = _MEMBERS.search(options)
    for name in named[1].split(", ") if named else ():
        yield _row(f"{target.rpartition('.')[2]}.{name}", inspect.getattr_static(member, name))


def _rows_of_command(command: click.Command, program: str) -> Iterator[list[str]]:
    arguments = [
        each.make_metavar(click.Context(command)) for each in command.params if each.param_type_name == "argument"
    ]
    yield [code(" ".join([program, *arguments])), first_sentence(command.help)]
    if isinstance(command, click.Group):
        for name, each in sorted(command.commands.items()):
            yield from _rows_of_command(each, f"{program} {name}")


def _member(target: str) -> Any:
    parts = target.split(".")
    found = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 1):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[: place + 1]))
        found = getattr(found, part)
    return found


def _row(name: str, member: Any) -> list[str]:
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    return [
        code(f"{name}{_call(function)}"),
        first_sentence(inspect.cleandoc(getattr(function, "__doc__", None) or "")),
    ]


def _call(member: Any) -> str:
    """Return the names of what is passed, in parentheses; nothing for a property."""
    if not callable(member):
        return ""
    try:
        names = list(inspect.signature(member).parameters.values())
    except (TypeError, ValueError):
        return "()"
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return f"({', '.join(stars.get(each.kind, '') + each.name for each in names if each.name != 'self')})"


def pages() -> list[Path]:
    """Return the pages of the documentation that have generated parts."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return [path for path in found if "_build" not in path.parts and SECTION.search(path.read_text(encoding="utf-8"))]


def main() -> None:
    """Write all generated parts into the pages."""
    for path in pages():
        text = path.read_text(encoding="utf-8")
        try:
            new = committed(collapsed(text))
        except FileNotFoundError as error:
            # A part is made from measurements, which nobody has recorded yet.
            print(f"left {path.relative_to(ROOT)}: {error.filename} is not there")
            continue
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

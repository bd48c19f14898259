"""What GitHub shows of the reference: generated parts as plain Markdown, committed in the pages, made from the code.

    python -m docs.generators.committed            writes them; a test fails when they are not what the code gives

The site makes them again, with links and with a form of its own: see `expansion`.
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import click

from docs.generators import pictures
from docs.generators.expansion import SECTION, collapsed, end_of, piece

ROOT = Path(__file__).parents[2]

#: Whatever the width of a terminal is.
WIDTH = 80

_DIRECTIVE = re.compile(r"^```\{eval-rst\}\n\.\. (\w+):: (\S+)\n(.*?)```$", re.MULTILINE | re.DOTALL)
#: GitHub shows no drawing that a page holds; the table below one has the same.
_DRAWING = re.compile(r"^<(div|figure|svg)\b.*?</\1>\n*", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r"\{py:\w+\}`([^`<]+?)\s*(?:<[^`>]*>)?`")
_MEMBERS = re.compile(r":members: (.+)")
_PROGRAM = re.compile(r":prog: (.+)")


def committed(text: str) -> str:
    """Return a page with everything in it that is generated, as GitHub shows it."""
    return SECTION.sub(lambda found: f"{_comment(found[1])}\n\n{readable(piece(found[1]))}\n\n{end_of(found[1])}", text)


def readable(text: str) -> str:
    """Return a generated part without what only Sphinx understands."""
    text = _DRAWING.sub("", _DIRECTIVE.sub(_described, text))
    return _ROLE.sub(r"`\1`", text).strip()


def _comment(name: str) -> str:
    return f"<!-- generated: {name} -->"


def _described(found: re.Match[str]) -> str:
    kind, target, options = found[1], found[2], found[3]
    if kind == "click":
        program = _PROGRAM.search(options)
        assert program is not None  # each entry names it
        return _help_of(target, program[1])
    member = _member(target)
    parts = [_entry(target, member)]
    named = _MEMBERS.search(options)
    for name in named[1].split(", ") if named else ():
        own = f"{target.rpartition('.')[2]}.{name}"
        parts += [_entry(own, inspect.getattr_static(member, name), level=5)]
    return "\n\n".join(parts)


def _help_of(target: str, program: str) -> str:
    module, _, name = target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    commands = [_help_of_command(command, program)]
    if isinstance(command, click.Group):
        commands += [_help_of_command(each, f"{program} {name}") for name, each in sorted(command.commands.items())]
    return "\n\n".join(commands)


def _help_of_command(command: click.Command, program: str) -> str:
    context = click.Context(
        command, info_name=program, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    return f"### `{program}`\n\n```text\n{command.get_help(context)}\n```"


def _member(target: str) -> Any:
    parts = target.split(".")
    found = importlib.import_module(parts[0])
    for place, part in enumerate(parts[1:], 1):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[: place + 1]))
        found = getattr(found, part)
    return found


def _entry(name: str, member: Any, level: int = 4) -> str:
    """Return a heading with the call, and what the docstring says, quoted as it is written."""
    function = member.__func__ if isinstance(member, staticmethod | classmethod) else member
    text = inspect.cleandoc(getattr(function, "__doc__", None) or "")
    return f"{'#' * level} `{name}{_call(function)}`\n\n{text}".strip()


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
    """Write all generated parts into the pages, and draw the pictures of what was measured."""
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
    pictures.main()


if __name__ == "__main__":
    main()

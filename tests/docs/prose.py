"""Passages without code: of Markdown, of a notebook's Markdown, of a command's help, of a module of Python."""

import ast
import inspect
import io
import json
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs.generators.expansion import collapsed
from tests.architecture.source import source_of

#: Stands in a passage for code: a name, a command, a formula. One word, which no rule knows.
CODE = "CODE"

#: Directives of MyST whose content is prose and not code.
_PROSE_DIRECTIVE = re.compile(
    r"^\{(?:note|tip|hint|important|seealso|warning|caution|danger|admonition|dropdown|details|toggle|margin)\}"
)
_BACKTICKED = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\s](?:[^$]*[^$\s])?\$", re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
#: The end of a sentence: its stop, quotes and brackets that close, and the start of the next one.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')*_\u201d\u2019]*\s+(?=[\"'(*_\u201c\u2018]*[A-Z0-9])")
#: Full stops that end no sentence, with a capital or a number behind them.
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|et al|no|Ex|[A-Z])\.$")


class Kind(Enum):
    """Where a passage is: some rules are for whole sentences only."""

    TEXT = auto()
    HEADING = auto()
    CELL = auto()
    #: The first paragraph of a docstring.
    DOCSTRING = auto()
    #: A comment, or a further paragraph of a docstring.
    COMMENT = auto()
    MESSAGE = auto()


@dataclass(frozen=True)
class Passage:
    """One paragraph, heading or cell of a table, in one line, with `CODE` for all code."""

    place: str
    kind: Kind
    text: str

    def sentences(self) -> list[str]:
        """Return the sentences, in order."""
        found: list[str] = []
        for part in _SENTENCE_END.split(self.text):
            if found and _ABBREVIATION.search(found[-1]):
                found[-1] += f" {part}"
            else:
                found.append(part)
        return found


def words_of(sentence: str) -> list[str]:
    """Return what a reader would count as words: a name of code is one, a dash is none."""
    return re.findall(r"[^\W_][\w'\u2019./%,:-]*", sentence)


def passages_of_markdown(text: str, name: str) -> list[Passage]:
    """Return the passages of a page. Blocks of code are left out, and so are comments of HTML."""
    front = _FRONT_MATTER.match(text)
    above = front[0].count("\n") if front else 0
    return list(_passages(text[front.end() :] if front else text, name, above))


def _passages(text: str, name: str, above: int) -> Iterator[Passage]:
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    line, kind = above, Kind.TEXT
    for token in tokens:
        if token.map is not None:
            line = above + token.map[0] + 1
        match token.type:
            case "heading_open":
                kind = Kind.HEADING
            case "th_open" | "td_open":
                kind = Kind.CELL
            case "heading_close" | "th_close" | "td_close":
                kind = Kind.TEXT
            case "fence" if _PROSE_DIRECTIVE.match(token.info):
                yield from _passages(token.content, name, line)
            case "inline":
                shown = " ".join(_shown(token).split())
                if shown:
                    yield Passage(f"{name}:{line}", kind, shown)


def _shown(token: Token) -> str:
    shown = "".join(_shown_of(child) for child in token.children or ())
    return _FORMULA.sub(CODE, shown)


def _shown_of(child: Token) -> str:
    match child.type:
        case "text":
            return child.content
        case "code_inline":
            return CODE
        case "image":
            return _shown(child)
        case "softbreak" | "hardbreak":
            return " "
        case "html_inline" if child.content.startswith("<br"):
            # Two commands in one cell of a table: whatever is read there is not one sentence.
            return ". "
        case _:
            return ""


def passages_of_notebook(text: str, name: str) -> list[Passage]:
    """Return the passages of a notebook's Markdown cells, each placed by its cell's number from 1."""
    cells = json.loads(text)["cells"]
    return [
        replace(passage, place=re.sub(r":(?=\d+$)", f", cell {number}, line ", passage.place))
        for number, cell in enumerate(cells, start=1)
        if cell["cell_type"] == "markdown"
        for passage in passages_of_markdown("".join(cell["source"]), name)
    ]


def passages_of_file(path: Path, root: Path) -> list[Passage]:
    """Return the passages of a page or a notebook below `root`."""
    read = passages_of_notebook if path.suffix == ".ipynb" else passages_of_markdown
    return read(collapsed(path.read_text(encoding="utf-8")), path.relative_to(root).as_posix())


def commands_below(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all commands below it, with what one types to call each."""
    yield name, command
    if isinstance(command, click.Group):
        for below in sorted(command.commands):
            yield from commands_below(f"{name} {below}", command.commands[below])


def passages_of_help(name: str, command: click.Command) -> list[Passage]:
    """Return what `--help` of one command shows: its text, and that of each of its options."""
    texts = [command.help, command.short_help, command.epilog]
    texts += [option.help for option in command.params if isinstance(option, click.Option)]
    return [
        Passage(f"{name} --help", Kind.TEXT, " ".join(_BACKTICKED.sub(CODE, part).split()))
        for text in texts
        for part in _help_paragraphs(text or "")
        if part.strip()
    ]


def _help_paragraphs(text: str) -> Iterator[str]:
    r"""Yield paragraphs; of those that click does not wrap (`\b`), the lines and the comments of commands."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text.split("\f", 1)[0])):
        unwrapped, mark, lines = paragraph.partition("\b\n")
        yield unwrapped
        if mark:
            yield from _without_commands(lines.splitlines())


def _without_commands(lines: list[str]) -> Iterator[str]:
    prose: list[str] = []
    for line in lines:
        if line.startswith("  "):
            yield " ".join(prose)
            prose = []
            yield line.partition("# ")[2]
        else:
            prose.append(line)
    yield " ".join(prose)


def passages_of_source(text: str, name: str) -> list[Passage]:
    """Return the paragraphs of docstrings, the comments, and the other texts of several words of a module."""
    nodes = source_of(name, text).nodes
    docstrings = {id(found): found for node in nodes if (found := _docstring(node)) is not None}
    passages = [
        Passage(f"{name}:{node.lineno}", Kind.COMMENT if number else Kind.DOCSTRING, shown)
        for node in docstrings.values()
        for number, paragraph in enumerate(re.split(r"\n\s*\n", inspect.cleandoc(str(node.value))))
        if (shown := _plain(paragraph))
    ]
    within = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    messages = (
        Passage(f"{name}:{getattr(node, 'lineno', 1)}", Kind.MESSAGE, shown)
        for node in nodes
        if id(node) not in docstrings and id(node) not in within and (shown := _plain(_text(node))).count(" ") > 1
    )
    return [*passages, *messages, *_comments(text, name)]


def _docstring(node: ast.AST) -> ast.Constant | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return first.value
    return None


def _text(node: ast.AST) -> str:
    """Return a text of the program, with `CODE` for each value that it is filled with; empty if it is not a text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else CODE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _comments(text: str, name: str) -> Iterator[Passage]:
    """Yield each block of comments: those in consecutive lines are one."""
    start, last, lines = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != last + 1:
            yield Passage(f"{name}:{start}", Kind.COMMENT, _plain(" ".join(lines)))
            lines = []
        start, last = start if lines else token.start[0], token.start[0]
        lines.append(token.string.lstrip("#: "))
    if lines:
        yield Passage(f"{name}:{start}", Kind.COMMENT, _plain(" ".join(lines)))


def _plain(text: str) -> str:
    return " ".join(_BACKTICKED.sub(CODE, text).split())

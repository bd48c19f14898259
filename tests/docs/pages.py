"""The pages of the documentation as data: their code blocks, and what the comments above these say. Runs nothing.

A code block is fenced, and its fence names the language. `bash` blocks hold commands and `python` blocks hold Python:
both are run as they stand (tests/docs/running.py). What a test has to know besides stands in the page, in comments that
nobody sees who reads it. Directly above a block:

    <!-- not run: REASON -->         it needs what this machine lacks: another machine, a cluster, a package index
    <!-- file: model.py -->          it is the content of this file, which later blocks use
    <!-- background -->              it goes on while the blocks after it are run, and is interrupted at the page's end
    <!-- exit code: 2 -->            its last command ends with this code: the page shows an error
    <!-- output differs: REASON -->  a `text` block below a command, of which the test looks for digests and, unless the
                                     command is stopped, for the figures of epochs

On a line of its own, what the site makes from the code when it is built (docs/generators/expansion.py):

    <!-- generated: job values -->

Anywhere in a page, for all of it:

    <!-- slow: REASON -->            its blocks take too long for the default suite, and are run by `scripts/test --all`
    <!-- needs: torch -->            its blocks are skipped where this module is not installed
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from docs.generators.expansion import collapsed
from tests.architecture.source import ROOT

#: Where a page may be. The labs are notebooks, which tests/notebooks runs.
PATTERNS = ("README.md", "SECURITY.md", "examples/**/*.md", "docs/**/*.md")

#: Languages whose blocks are run.
RUN = ("bash", "python")

#: Languages whose blocks are shown only, or are the content of a file.
SHOWN = ("text", "toml", "json", "yaml", "csv", "ini", "dockerfile", "css", "html")

NAMES = ("not run", "file", "background", "exit code", "output differs", "generated", "slow", "needs")
MARKER = re.compile(rf"<!--\s*(?P<name>{'|'.join(NAMES)})(?::\s*(?P<text>.+?))?\s*-->")

#: A whole digest, which is the same on every machine, whatever else differs.
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")

#: The figures of an epoch of training, which are the same too: all but its seconds.
EPOCH = re.compile(r"\bepoch \d+/\d+  loss .*%")

#: Markers that say something of the page, and not of the block below them.
OF_PAGE = ("slow", "needs", "generated")


class PageError(Exception):
    """A page breaks a rule of this module; the text has the place."""


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    #: The line of the fence, from 1.
    line: int
    language: str
    text: str
    #: What stands directly above it: marker -> its text.
    markers: dict[str, str]
    #: What the page shows as its output, None if it shows none.
    output: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether its text is run, or written to its file."""
        return "not run" not in self.markers and (self.language in RUN or "file" in self.markers)


@dataclass(frozen=True)
class Page:
    """One page."""

    name: str
    blocks: tuple[Block, ...]
    #: Markers of the whole page.
    markers: dict[str, str]


def page_paths() -> list[Path]:
    """Return the pages of the checkout, in order."""
    return sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern) if "_build" not in path.parts})


def read_page(path: Path) -> Page:
    """Return the page in a file; `PageError` if it breaks a rule."""
    return parse_page(path.relative_to(ROOT).as_posix(), collapsed(path.read_text(encoding="utf-8")))


def parse_page(name: str, text: str) -> Page:
    """Return a page; `PageError` with the place if a block or a comment breaks a rule."""
    blocks: list[Block] = []
    markers: dict[str, str] = {}
    above: dict[str, str] = {}
    is_below_run = False
    for line, token in _tokens(text):
        if token.type == "html_block":
            found = _markers(f"{name}:{line}", token.content)
            markers |= {key: value for key, value in found.items() if key in OF_PAGE}
            above |= {key: value for key, value in found.items() if key not in OF_PAGE}
            continue
        if token.type == "inline" and "<!--" in token.content:
            raise PageError(f"{name}:{line}: a comment within a paragraph: expected an empty line above it")
        if token.type == "code_block":
            raise PageError(f"{name}:{line}: an indented block: expected a fenced one, ```bash, ```python or ```text")
        if token.type == "fence":
            block = _block(name, line, token, above)
            if block.language == "text" and is_below_run:
                before = blocks.pop()
                output = block.text
                if "output differs" in above:
                    output = promised_lines(block.text, has_epochs="exit code" not in before.markers)
                blocks.append(Block(before.page, before.line, before.language, before.text, before.markers, output))
            elif "output differs" in above:
                raise PageError(f"{block.place}: no output of a block that is run: expected one directly above it")
            blocks.append(block)
        is_below_run = token.type == "fence" and blocks[-1].language in RUN and blocks[-1].is_run
        if above and token.type not in ("fence",) and token.block and token.nesting >= 0:
            raise PageError(f"{name}:{line}: the comment {sorted(above)} is not directly above a block")
        above = {}
    if above:
        raise PageError(f"{name}: the comment {sorted(above)} at its end is not above a block")
    return Page(name, tuple(blocks), markers)


def promised_lines(text: str, *, has_epochs: bool) -> str:
    """Return the lines of an output that have a whole digest, or the figures of an epoch."""
    promised = (DIGEST, EPOCH) if has_epochs else (DIGEST,)
    return "\n".join(line for line in text.splitlines() if any(each.search(line) for each in promised))


def _tokens(text: str) -> Iterator[tuple[int, Token]]:
    """Yield the tokens with their lines from 1; those of a directive's content in its place."""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        line = token.map[0] + 1 if token.map else 0
        is_directive = token.type == "fence" and token.info.startswith("{")
        if is_directive:
            yield from ((line + inner, found) for inner, found in _tokens(token.content) if found.type == "fence")
        else:
            yield line, token


def _markers(place: str, html: str) -> dict[str, str]:
    """Return the markers in a block of HTML; `PageError` if a comment is none, so that none is misspelt."""
    found = {}
    for comment in re.findall(r"<!--.*?-->", html, re.DOTALL):
        match = MARKER.fullmatch(comment)
        if match is None:
            raise PageError(f"{place}: the comment {comment!r} is not a valid marker: see tests/docs/pages.py")
        if (match["text"] is None) != (match["name"] == "background"):
            raise PageError(f"{place}: {comment!r} lacks its text, or has one too many: see tests/docs/pages.py")
        found[match["name"]] = match["text"] or ""
    return found


def _block(name: str, line: int, token: Token, above: dict[str, str]) -> Block:
    language = token.info.split()[0] if token.info.split() else ""
    block = Block(name, line, language, token.content, dict(above))
    if language not in (*RUN, *SHOWN):
        raise PageError(f"{block.place}: a block of {language!r}: expected one of {', '.join((*RUN, *SHOWN))}")
    if language not in RUN and {"background", "exit code"} & above.keys():
        raise PageError(f"{block.place}: {sorted(above)} above a block of {language}: expected one of {', '.join(RUN)}")
    return block

"""The texts that the program can print, and what of them a page quotes. Knows no page."""

import ast
import re
from collections.abc import Iterator
from functools import cache

from tests.architecture.source import ROOT, Source, read_tree, sources_of

#: In place of what a text is filled in with, and between two texts.
VALUE, END = "\0", "\1"

#: What a quote shows in place of a value: quoted words, numbers and seconds, paths, names of signals, what is left out.
_VALUES = re.compile(
    r"'[^']*'|\"[^\"]*\"|…|\b\d[\d.,+e%x]*(?: s\b)?|\S*/\S+|`[^`]*`|\bSIG[A-Z]+\b|[()]|\$\w+|\s\.venv\b"
)


@cache
def program_texts() -> str:
    """Return all texts in the program's sources, one after the other; each with `VALUE` for what it is filled with."""
    texts = [text for source in sources_of(read_tree(ROOT)).values() for text in _texts_of(source)]
    texts += [path.read_text() for path in sorted((ROOT / "lockstep").rglob("*.toml"))]
    texts += [path.read_text() for path in sorted((ROOT / "scripts").iterdir()) if path.is_file()]
    return END.join(re.sub(r"\{[^{}]*\}", VALUE, text) for text in texts)


def _texts_of(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def missing_parts(quote: str) -> list[str]:
    """Return the parts of a quote, between values, of two words or more that no text of the program has."""
    parts = (part.strip(" ,;:()|.") for part in _VALUES.split(re.sub(r"\s+", " ", quote)))
    return [part for part in parts if part.count(" ") and not _is_printed(part)]


def _is_printed(part: str) -> bool:
    """Return whether a text has these words in this order, some of them as values: at least two are its own."""
    words = part.split()
    if part in program_texts():
        return True
    lefts = (" ".join(words[:place]) + f" {VALUE}" for place in range(2, len(words)))
    rights = (f"{VALUE} " + " ".join(words[place:]) for place in range(1, len(words) - 1))
    return any(each in program_texts() for each in (*lefts, *rights))

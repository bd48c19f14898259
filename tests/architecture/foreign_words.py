"""Finds tests that pin what another library says: its next release may say it differently.

A message of ours begins in lower case and has what its reader needs. A library's text comes after ours, and tests look
at ours. A text of the system is written as `os.strerror(errno.ENOENT)`.
"""

import ast
import errno
import os
import re
from collections.abc import Iterator, Mapping

from tests.architecture.source import Source, Violation


def _texts_of_the_system() -> tuple[str, ...]:
    """Return the texts of all errors, but for those of one word, which anybody may use."""
    texts = sorted({os.strerror(number) for number in errno.errorcode})
    return tuple(re.escape(text) for text in texts if " " in text)


#: Sentences of libraries, as far as no sentence of ours has the same words. Case counts: those of click, TOML and
#: the system begin with a capital, ours do not.
PHRASES = {
    "msgspec": (
        r"[Ee]xpected `",
        r"got `",
        r" - at `",
        r"Invalid value '",
        r"Invalid enum value",
        r"missing required field `",
        r"unknown field `",
        r"JSON is malformed",
        r"[Tt]railing characters",
        r"[Ii]nvalid UTF-8",
    ),
    "msgpack": (r"exceeds max_", r"[Uu]npack failed", r"[Uu]npack\(b\) received"),
    "click": (
        r"No such (option|command)",
        r"Missing (option|argument|parameter)",
        r"Invalid value for ",
        r"Did you mean",
        r"[Gg]ot unexpected extra argument",
        r"' requires an argument",
        r"does not take a value",
        r"is not a valid (integer|float|boolean|UUID)\b",
        r"is not one of '",
        r"^Usage: ",
    ),
    "tomllib": (
        r"\(at (line \d|end of document)",
        r"Expected '=' after",
        r"Invalid (value|statement|initial character)\b",
        r"Unclosed array",
        r"Cannot overwrite a value",
    ),
    "json": (r"Expecting (value|property name|',' delimiter)", r"Extra data: line", r"Unterminated string"),
    "gzip": (
        r"Not a gzipped file",
        r"CRC check failed",
        r"Compressed file ended",
        r"Error -\d while decompressing",
        r"File is not a zip file",
        r"Bad magic number",
    ),
    "NumPy": (
        r"assignment destination",
        r"does not support ufuncs",
        r"\Ainhomogeneous",
        r"could not be broadcast",
        r"cannot reshape array",
        r"Input operand \d",
        r"encountered in [a-z]",
    ),
    "Python": (
        r"No module named",
        r"has no attribute '",
        r"object is not (callable|iterable|subscriptable)",
        r"\brequired positional argument",
        r"\Apositional argument",
        r"got an unexpected keyword argument",
        r"invalid literal for",
        r"could not convert string",
        r"division by zero",
        r"maximum recursion",
        r"' codec( can't|\Z)",
        r"unsupported operand type",
        r"(not enough|too many) values to unpack",
        r"is not defined\Z",
    ),
    "the system": (*_texts_of_the_system(), r"No such file\b", r"No space left\b"),
}

_PATTERNS = {library: re.compile("|".join(phrases)) for library, phrases in PHRASES.items()}

#: Of a source that has none of these words anywhere, texts in parts put together, nothing has to be parsed.
_ANY = re.compile("|".join(re.sub(r"\\[AZ]|\^", "", phrase) for phrases in PHRASES.values() for phrase in phrases))
_BETWEEN_PARTS = re.compile(r"[\"']\s*\n\s*[rbf]?[\"']")


def check_foreign_words(sources: Mapping[str, Source]) -> Iterator[Violation]:
    """Find literals with a library's words. Docstrings may quote it, and so may an error that a test raises itself."""
    for source in sources.values():
        if not _ANY.search(_BETWEEN_PARTS.sub("", source.text)):
            continue
        own = {id(part) for node in source.nodes if _may_quote(node) for part in ast.walk(node)}
        for node in source.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in own:
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                for library, pattern in _PATTERNS.items():
                    if found := pattern.search(text):
                        yield Violation(
                            source.module,
                            node.lineno,
                            f"expects {found[0]!r}, which are the words of {library}: expect what we say ourselves",
                        )


def _may_quote(node: ast.AST) -> bool:
    """Tell whether texts within the node pin nothing: docstrings, and what is raised by the test."""
    return isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))

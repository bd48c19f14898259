"""The nearest right word for a mistyped one, as a part of an error's text."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, empty if nothing is near."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""

"""The nearest right word for a mistyped one, as a part of an error's text."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`, empty if nothing is near."""
    # `AdamW` is nearer to `adamw` than to `adam`.
    spelled = {each.lower(): each for each in words}
    found = difflib.get_close_matches(word.lower(), list(spelled), n=1)
    return f" (did you mean {spelled[found[0]]!r}?)" if found else ""

"""Texts of others as text: what a peer or a file says can neither move a cursor, nor begin a line, nor fill a screen.

Knows nothing of who says what. Whoever shows a text, or puts it into one of ours, takes it through here.
"""

#: Characters of a text that is a part of one of our lines.
LINE_LIMIT = 500


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """Return a text on one line: what cannot be printed is escaped, and one longer than `limit` loses its middle.

    Not printable are control characters, ANSI's escapes among them, line ends, spaces but the usual one, what turns the
    direction of writing, and halves of surrogates: `str.isprintable` goes by Unicode's categories.
    """
    if not text.isprintable():
        # Cut first, so that a text of a megabyte costs no more than what is shown of it.
        text = "".join(map(_escaped, cut(text, limit)))
    return cut(text, limit)


def indented(text: str) -> str:
    """Return a text of several lines, each as `one_line` has it, with two spaces before it.

    A log is read line by line, by people and by us: what comes from elsewhere begins none.
    """
    return "\n".join(f"  {one_line(line.expandtabs())}".rstrip() for line in text.split("\n"))


def printable(text: str) -> str:
    """Return a text of several lines as it is shown: each as `one_line` has it, as long as it is."""
    if text.isprintable():
        return text
    # The longest escape has ten characters.
    return "\n".join(one_line(line, 10 * len(line) + 3) for line in text.expandtabs().split("\n"))


def cut(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters: a longer one loses its middle."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")

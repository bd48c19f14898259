"""Makes texts from peers and files safe to print: they cannot move the cursor, begin a line or fill the screen.

Every such text that is shown, or that becomes a part of one of ours, passes through here.
"""

#: Most characters of a foreign text within one of our lines.
LINE_LIMIT = 500


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """Return a text on one line: unprintable characters are escaped, and one longer than `limit` loses its middle.

    Unprintable are control characters including ANSI escapes, line ends, spaces other than the usual one, marks of the
    writing direction, and lone surrogates: `str.isprintable` follows Unicode's categories.
    """
    if not text.isprintable():
        # Cut first, so that a text of a megabyte costs no more than its shown part.
        text = "".join(map(_escaped, cut(text, limit)))
    return cut(text, limit)


def indented(text: str) -> str:
    """Return a text of several lines, each as `one_line` has it, with two spaces before it.

    Logs are read line by line, by people and by programs: a foreign text must not begin a line.
    """
    return "\n".join(f"  {one_line(line.expandtabs())}".rstrip() for line in text.split("\n"))


def printable(text: str) -> str:
    """Return a text of several lines for printing, each as `one_line` returns it, without a limit."""
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

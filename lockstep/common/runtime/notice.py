"""Lines that a person is to see at once, wherever in a run they come up; it does not know how they are shown."""


class Notice(str):
    """A line that goes to the person who has started the run, and not only into the log of the process that says it."""

    __slots__ = ()


def notice(text: str) -> Notice:
    """Return a line about something that is as it should be, and that a person may not expect."""
    return Notice(f"notice: {text}")


def warning(text: str) -> Notice:
    """Return a line about something that is not as it should be, although the run continues."""
    return Notice(f"warning: {text}")

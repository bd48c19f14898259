"""A bar that shows how far a file has been read, where there is a terminal to draw it on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lockstep.common.files.sanitize import one_line


@contextmanager
def progress_of(what: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error for as long as the context lasts; give what is called with the share, 0 to 1."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(one_line(what, 60), total=1.0)
        yield lambda share: bar.update(task, completed=share)

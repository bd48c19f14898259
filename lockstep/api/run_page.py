"""A run's page in the cell of a notebook."""

import atexit
import html
from dataclasses import dataclass
from pathlib import Path

from lockstep.launch.companion import PageProcess, PageRequest


@dataclass(frozen=True)
class RunPage:
    """A page that is served until `close`; a notebook shows it as the value of a cell."""

    page: PageProcess
    height: int

    @property
    def link(self) -> str:
        """Where a browser on this machine finds the page."""
        return self.page.link

    def close(self) -> None:
        """End the page's process; may be called twice."""
        self.page.close()

    def _repr_html_(self) -> str:
        link = html.escape(self.link, quote=True)
        return f'<iframe src="{link}" width="100%" height="{self.height}" style="border: 0" title="Lockstep"></iframe>'

    def __repr__(self) -> str:
        return f"RunPage({self.link!r})"


def show_page(folder: Path, height: int) -> RunPage:
    """Start the page of the run in a folder; it ends with this process at the latest."""
    page = RunPage(PageProcess.start(folder.absolute(), PageRequest()), height)
    atexit.register(page.close)
    return page

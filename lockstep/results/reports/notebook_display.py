"""Show a run below the cell of a notebook: its epochs and a line of progress, in one output that is replaced.

A stream of lines would fill the notebook, and escapes that move the cursor of a terminal have no effect there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lockstep.common.files.sanitize import printable
from lockstep.common.protocol.messages import Status
from lockstep.results.reports.display import progress_line

#: Most lines besides the line of progress; of more, those in the middle are left out.
MOST_LINES = 40


@dataclass
class NotebookPage:
    """Finished epochs, messages, and a line of progress, in one output."""

    #: Replaces the output.
    show: Callable[[str], None]
    #: Each update goes to every browser that shows the notebook.
    every_s: ClassVar[float] = 0.5
    is_log: ClassVar[bool] = False
    _lines: list[str] = field(default_factory=list)
    _progress: str = ""

    def begin(self) -> None:
        pass

    def end(self) -> None:
        self._progress = ""
        self._render()

    def write(self, text: str) -> None:
        self._lines.append(text)
        self._render()

    def update(self, status: Status) -> None:
        self._progress = progress_line(status)
        self._render()

    def _render(self) -> None:
        lines = self._lines
        if len(lines) > MOST_LINES:
            half = MOST_LINES // 2
            lines = [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
        # A notebook interprets escapes for colours and links in plain text.
        self.show(printable("\n".join([*lines, self._progress] if self._progress else lines)))


@dataclass
class CellOutput:
    """An output of the running cell, by the display function of IPython."""

    #: Called with a bundle of what to show; `display_id=True` makes an output, and returns its handle.
    display: Callable[..., Any]
    _handle: Any = None

    def show(self, text: str) -> None:
        bundle = {"text/plain": text}
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif text:
            self._handle = self.display(bundle, raw=True, display_id=True)


def cell_output() -> CellOutput | None:
    """Return an output of the running cell, or None outside a notebook."""
    # Looked up among the loaded modules, so that nobody else has to import IPython.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not getattr(shell, "kernel", None):
        return None
    display = getattr(sys.modules.get("IPython.display"), "display", None)
    return None if display is None else CellOutput(display)

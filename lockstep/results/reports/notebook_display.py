"""Show a run below the cell of a notebook: its epochs and a line of progress, in one output that is replaced.

A stream of lines would fill the notebook, and escapes that move the cursor of a terminal have no effect there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from lockstep.common.files.sanitize import printable
from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import Clock
from lockstep.results.reports.display import epoch_line, epochs_after, figures, place

#: Seconds between two updates, each of which goes to every browser that shows the notebook.
PAGE_EVERY_S = 0.5

#: Most lines besides the line of progress; of more, those in the middle are left out.
MOST_LINES = 40


class Page(Protocol):
    """One output of a cell."""

    def show(self, text: str) -> None:
        """Replace the output."""
        ...


@dataclass
class NotebookDisplay:
    """Finished epochs, messages, and a line of progress, in one output."""

    page: Page
    clock: Clock
    _lines: list[str] = field(default_factory=list)
    _shown_epoch: int = 0
    _shown_at: float = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._render("")

    def show(self, status: Status) -> None:
        news = epochs_after(self._shown_epoch, status)
        self._lines += [epoch_line(epoch, status.epochs) for epoch in news]
        self._shown_epoch = news[-1].epoch if news else self._shown_epoch
        now = self.clock.now()
        if news or now - self._shown_at >= PAGE_EVERY_S:
            self._shown_at = now
            self._render(f"{place(status)}  {figures(status)}" if status.elapsed_s else figures(status))

    def say(self, text: str) -> None:
        self._lines.append(text)
        self._render("")

    def remind(self, text: str) -> None:
        # Only once: the line of progress shows it as well.
        if text not in self._lines[-1:]:
            self.say(text)

    def _render(self, progress: str) -> None:
        lines = self._lines
        if len(lines) > MOST_LINES:
            half = MOST_LINES // 2
            lines = [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
        # A notebook interprets escapes for colours and links in plain text.
        self.page.show(printable("\n".join([*lines, progress] if progress else lines)))


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


def notebook_page() -> Page | None:
    """Return an output of the running cell, or None outside a notebook."""
    # Looked up among the loaded modules, so that nobody else has to import IPython.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not getattr(shell, "kernel", None):
        return None
    display = getattr(sys.modules.get("IPython.display"), "display", None)
    return None if display is None else CellOutput(display)

"""Shows a run under a notebook's cell: its epochs and one line that moves, in one output that is replaced.

A stream of lines would fill the notebook, and what moves a terminal's cursor does nothing there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from common.files.sanitize import printable
from common.protocol.messages import Status
from common.runtime.clock import Clock
from lockstep.reports.display import epoch_line, epochs_after, figures, place

#: Seconds between two pictures: each is kept by everybody who has the notebook open.
PAGE_EVERY_S = 0.5

#: Lines of epochs and words that are shown, beside the line that moves; with more, those in the middle are left out.
MOST_LINES = 40


class Page(Protocol):
    """One output of a cell."""

    def show(self, text: str) -> None:
        """Replace what is there."""
        ...


@dataclass
class NotebookDisplay:
    """Finished epochs, what was said, and how the run stands, on one page."""

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
        self._draw("")

    def show(self, status: Status) -> None:
        news = epochs_after(self._shown_epoch, status)
        self._lines += [epoch_line(epoch, status.epochs) for epoch in news]
        self._shown_epoch = news[-1].epoch if news else self._shown_epoch
        now = self.clock.now()
        if news or now - self._shown_at >= PAGE_EVERY_S:
            self._shown_at = now
            self._draw(f"{place(status)}  {figures(status)}" if status.elapsed_s else figures(status))

    def say(self, text: str) -> None:
        self._lines.append(text)
        self._draw("")

    def remind(self, text: str) -> None:
        # Once: what follows from it is on the line that moves.
        if text not in self._lines[-1:]:
            self.say(text)

    def _draw(self, moving: str) -> None:
        lines = self._lines
        if len(lines) > MOST_LINES:
            half = MOST_LINES // 2
            lines = [*lines[:half], f"… {len(lines) - 2 * half} more …", *lines[-half:]]
        # A notebook shows plain text with the colours and links that a terminal's escapes in it ask for.
        self.page.show(printable("\n".join([*lines, moving] if moving else lines)))


@dataclass
class CellOutput:
    """An output of the cell that runs, by IPython's display."""

    #: IPython's: called with a bundle of what to show; `display_id=True` makes an output, and returns what updates it.
    display: Callable[..., Any]
    _handle: Any = None

    def show(self, text: str) -> None:
        bundle = {"text/plain": text}
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
        elif text:
            self._handle = self.display(bundle, raw=True, display_id=True)


def notebook_page() -> Page | None:
    """Return an output of the cell that runs, None outside a notebook."""
    # Asked of what is there already: nobody who has no notebook pays for importing IPython.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not getattr(shell, "kernel", None):
        return None
    display = getattr(sys.modules.get("IPython.display"), "display", None)
    return None if display is None else CellOutput(display)

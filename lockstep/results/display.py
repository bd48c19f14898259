"""Show the progress of a run: live in a terminal, in plain lines elsewhere, in one output below the cell of a notebook.

A stream of lines would fill a notebook, and escapes that move the cursor of a terminal have no effect there."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, ClassVar, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from lockstep.common.files.sanitize import cut, one_line, printable
from lockstep.common.job.metrics import Score
from lockstep.common.protocol.messages import EpochRecord, Status, WorkerStatus
from lockstep.common.runtime.clock import Clock
from lockstep.common.runtime.notice import Notice

#: Epochs that are all shown.
MOST_EPOCHS = 30

#: Seconds between two plain lines within an epoch.
PLAIN_EVERY_S = 10.0

#: Most workers with a line of their own; more would push the bar out of an ordinary terminal.
MOST_WORKER_LINES = 12

#: Most characters of the name of a host, so that a line fits 80 columns.
MOST_HOST = 12


class Medium(Protocol):
    """The medium that shows a run."""

    #: Seconds between two looks at how far the run is.
    every_s: ClassVar[float]
    #: Whether all that is written stays: then reminders are repeated, and any line shows that the run goes on.
    is_log: ClassVar[bool]

    def begin(self) -> None: ...
    def end(self) -> None: ...
    def write(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def update(self, status: Status) -> None:
        """Show how far the run is, in place of the status before unless the medium is a log."""
        ...


@dataclass
class Display:
    """Shows a run: its epochs and messages as lines that stay, and now and then how far it is."""

    medium: Medium
    clock: Clock
    #: Lines that are shown before the first status: when the run is known to be good, and not earlier.
    announcement: Sequence[str] = ()
    #: Whether there is a test set whose figures mean something.
    has_test: bool = True
    #: Receives each status too.
    listener: Callable[[Status], None] | None = None
    #: True if the output is thrown away.
    is_silent: bool = False
    _shown_epoch: int = 0
    _shown_at: float = field(init=False)
    _last_line: str = ""

    def __post_init__(self) -> None:
        self._shown_at = self.clock.now() if self.medium.is_log else -math.inf

    def __enter__(self) -> Self:
        self.medium.begin()
        return self

    def __exit__(self, *failure: object) -> None:
        self.medium.end()

    def show(self, status: Status) -> None:
        """Show a status."""
        announcement, self.announcement = self.announcement, ()
        for line in announcement:
            self.say(line)
        # The status of a long run holds only the last ones.
        for epoch in (each for each in status.history if each.epoch > self._shown_epoch):
            self._shown_epoch = epoch.epoch
            # Not by the number of epochs to come, since the first ones are waited for.
            if not epoch.epoch % stride_of(epoch.epoch) or epoch.epoch == status.epochs:
                self.say(epoch_line(epoch, status.epochs, has_test=self.has_test))
        now = self.clock.now()
        if now - self._shown_at >= self.medium.every_s and (status.elapsed_s or not self.medium.is_log):
            self._shown_at = now
            self.medium.update(status)
        if self.listener is not None:
            self.listener(status)

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._last_line = text
        if self.medium.is_log:
            self._shown_at = self.clock.now()
        self.medium.write(text)

    def remind(self, text: str) -> None:
        """Show what the run waits for; may be called repeatedly with the same text."""
        # Only once if the status, which shows it as well, would be pushed away.
        if self.medium.is_log or text != self._last_line:
            self.say(text)


def display_for(console: Console, clock: Clock, announcement: Sequence[str] = ()) -> Display:
    """Return a display on the console: live in a terminal, plain lines elsewhere, nothing if the console is quiet."""
    # A terminal that cannot move its cursor (TERM=dumb) is treated as a file.
    is_live = console.is_terminal and not console.is_dumb_terminal and not console.quiet
    medium = LiveRegion(console) if is_live else Lines(partial(print_plainly, console))
    return Display(medium, clock, announcement, is_silent=console.quiet)


@dataclass
class Lines:
    """Plain lines: one per epoch, and others in between."""

    #: Writes a line: to a console, or to the log of a process, whose parent gets the notices.
    say: Callable[[str], None]
    every_s: ClassVar[float] = PLAIN_EVERY_S
    is_log: ClassVar[bool] = True

    def begin(self) -> None:
        pass

    def end(self) -> None:
        pass

    def write(self, text: str) -> None:
        self.say(text)

    def update(self, status: Status) -> None:
        self.write(progress_line(status))


@dataclass
class LiveRegion:
    """A progress bar and one line per worker, redrawn in place; finished epochs scroll up above them."""

    console: Console
    every_s: ClassVar[float] = 0.2
    is_log: ClassVar[bool] = False
    _live: Live = field(init=False)
    _bar: Progress = field(init=False)

    def __post_init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._live = Live(self._bar, console=self.console, auto_refresh=False, transient=True)

    def begin(self) -> None:
        self._live.start(refresh=True)

    def end(self) -> None:
        self._live.stop()

    def write(self, text: str) -> None:
        (print_note if isinstance(text, Notice) else print_plainly)(self.console, text)

    def update(self, status: Status) -> None:
        self._live.update(self.picture(status), refresh=True)

    def picture(self, status: Status) -> Group:
        """Return the region that is redrawn."""
        self._bar.update(self._task, description=place(status), total=status.steps, completed=status.step)
        # Cut and not wrapped: if the height changed, traces of it would remain above.
        shown = figures(status)
        line = Text(f"{status.phase}  {shown}" if _is_going_on(status) else shown)
        line.no_wrap, line.overflow = True, "ellipsis"
        return Group(self._bar, line, workers_table(status.workers))


def stride_of(epochs: int) -> int:
    """Return how far apart those of so many epochs are that are shown: 1 for a few, then 2, 5, 10 and so on."""
    strides = (digit * int(10**power) for power in count() for digit in (1, 2, 5))
    return next(stride for stride in strides if epochs <= MOST_EPOCHS * stride)


def thinned(history: Sequence[EpochRecord], *kept: int) -> list[EpochRecord]:
    """Return the first and the last epoch, those that are to be kept, and some between."""
    stride, ends = stride_of(len(history)), {each.epoch for each in (*history[:1], *history[-1:])}
    return [each for each in history if each.epoch in {*ends, *kept} or not each.epoch % stride]


def epoch_line(epoch: EpochRecord, epochs: int, *, has_test: bool = True) -> str:
    """Return a finished epoch as a line."""
    return (
        f"epoch {epoch.epoch}/{epochs}  loss {epoch.loss:.4f}  {_named(Score(epoch.accuracy, epoch.r2))}"
        f"{_validation(epoch)}{_test(epoch) if has_test else ''}{epoch.wall_s:.1f} s"
    )


def _test(epoch: EpochRecord) -> str:
    """Return the figures of the test set and two spaces."""
    score = Score(epoch.test_accuracy, epoch.test_r2)
    return f"test {score.text() or f'{epoch.test_loss:.4f}'}  {_others(epoch)}"


def _others(epoch: EpochRecord) -> str:
    """Return the other metrics of the test set and two spaces, or an empty string without any."""
    return "".join(f"{name} {value:.4f}  " for name, value in epoch.of_set("test_").items())


def _named(score: Score) -> str:
    """Return the number with its name and a space, empty without a score."""
    return f"{score.name} {score.text()}  " if score.name else ""


def _validation(epoch: EpochRecord) -> str:
    """Return the figure of the validation set and two spaces, or an empty string without one."""
    if epoch.val_loss is None:
        return ""
    return f"val {Score(epoch.val_accuracy, epoch.val_r2).text() or f'{epoch.val_loss:.4f}'}  "


def place(status: Status) -> str:
    """Return how far a run has got."""
    return f"epoch {status.epoch}/{status.epochs}  step {status.step}/{status.steps}"


def figures(status: Status) -> str:
    """Return the figures of a run as a line, or what it waits for."""
    if not _is_going_on(status):
        return status.waiting or status.phase
    score = Score(status.accuracy, status.r2)
    return f"loss {status.loss:.4f}  {_named(score)}{status.images_per_s:,.0f} samples/s  {duration(status.eta_s)} left"


def _is_going_on(status: Status) -> bool:
    """Tell whether a run has a speed: it has begun, and does not wait."""
    return bool(status.elapsed_s) and not status.waiting


def progress_line(status: Status) -> str:
    """Return how far a run has got, and its figures, or only what it waits for."""
    return f"{place(status)}  {figures(status)}" if status.elapsed_s else figures(status)


def duration(seconds: float) -> str:
    """Return a duration as text: `7 s`, `3 min 20 s`, `2 h 5 min`."""
    if not math.isfinite(seconds):
        return "unknown time"  # a server may send anything
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_plainly(console: Console, *texts: str) -> None:
    """Print untrusted texts plainly: without markup, colours, escapes or added line breaks."""
    for text in texts:
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_note(console: Console, text: str) -> None:
    """Print a text that is read, and not copied: in a terminal its words are kept whole; elsewhere, it is one line."""
    console.print(Text(printable(text)), soft_wrap=not console.is_terminal)


def counted(number: int, noun: str) -> str:
    """Return a number of things: `1 worker`, `2 workers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def in_teams(workers: int, teams: int) -> str:
    """Return how many workers there are, and in how many teams, 0 if that is unknown: `4 workers in 1 team`."""
    return counted(workers, "worker") + ("" if workers == 1 or not teams else f" in {counted(teams, 'team')}")


def speed_of(worker: WorkerStatus) -> float | None:
    """Return the samples per second that all processes of a worker compute together, None if that is unknown."""
    return worker.processes * worker.samples / worker.compute_s if worker.compute_s > 0 else None


def workers_table(workers: list[WorkerStatus]) -> Table:
    """Return one line per worker, as far as they fit: a team is one, which says how many of people's workers it has."""
    table = Table.grid(padding=(0, 2))
    for _ in range(5):
        table.add_column(no_wrap=True)
    for worker in workers[:MOST_WORKER_LINES]:
        # Of its computing alone: that of the run, in the line above, has all that steps take.
        speed = "" if (found := speed_of(worker)) is None else f"computes {found:,.0f}/s"
        name = f"worker {worker.rank}" if worker.processes == 1 else f"team {worker.rank}: {worker.processes} workers"
        where = f"{cut(worker.host, MOST_HOST)}:{worker.pid}"
        cells = (name, worker.state, f"{worker.samples:,} samples", speed, where)
        # As plain text: the name of a worker must not be interpreted as markup.
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    if len(workers) > MOST_WORKER_LINES:
        table.add_row(f"and {len(workers) - MOST_WORKER_LINES} more")
    return table


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


def output_by(display: Callable[..., Any]) -> Callable[[str], None]:
    """Return what shows a text in one output of the running cell, in place of the one before.

    `display` is that of IPython: with `display_id=True` it makes an output, and returns its handle.
    """
    handle: Any = None

    def show(text: str) -> None:
        nonlocal handle
        bundle = {"text/plain": text}
        if handle is not None:
            handle.update(bundle, raw=True)
        elif text:
            handle = display(bundle, raw=True, display_id=True)

    return show


def cell_output() -> Callable[[str], None] | None:
    """Return what shows a text below the running cell, or None outside a notebook."""
    # Looked up among the loaded modules, so that no other process imports IPython.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not getattr(shell, "kernel", None):
        return None
    display = getattr(sys.modules.get("IPython.display"), "display", None)
    return None if display is None else output_by(display)

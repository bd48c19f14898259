"""A page next to a run: a process that is sent the status of the run, and ends with this one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lockstep.common.errors import UsageError
from lockstep.common.protocol.messages import Status
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.transport.shared_memory.folder import SharedFolder
from lockstep.launch.process_backend import private_folder, remove_private
from lockstep.launch.supervision.child import Child
from lockstep.results.display import Display
from lockstep.runs.own_command import demand, own_command
from lockstep.runs.run_dir import has_begun

#: The default address of a page: any free port of this machine alone.
LOOPBACK = "127.0.0.1:0"

#: Seconds between two statuses, and in which a page ends.
FEED_S, GRACE_S = 0.5, 1.0

#: Seconds between two looks whether it still runs.
STAY_S = 1.0


def demand_page(what: str) -> None:
    """Raise `UsageError` if a package that serves the page is not installed."""
    demand("starlette", "watch", what)
    demand("uvicorn", "watch", what)
    demand("prometheus-client", "watch", what)
    demand("psutil", "watch", what)


class PageRequest(msgspec.Struct, frozen=True):
    """A page, as flags ask for it."""

    listen: str = LOOPBACK
    #: Whether only figures for Prometheus are served.
    is_metrics_only: bool = False


@dataclass
class PageProcess:
    """The process that serves a page."""

    child: Child
    private: SharedFolder
    link: str
    #: Its name in messages.
    what: str
    #: The rest of the status that is being written: a page that does not read costs us no time.
    _rest: bytes = b""
    clock: Clock = field(default_factory=SystemClock)
    _fed: float = 0.0

    @classmethod
    def start(cls, folder: Path, request: PageRequest) -> "PageProcess":
        """Start it for the run in a folder; `UsageError` if it cannot serve there."""
        demand_page("--prometheus" if request.is_metrics_only else "a page of the run")
        private = private_folder()
        arguments = ["watch", str(folder), "--fed", "--listen", request.listen]
        arguments += ["--metrics-only"] if request.is_metrics_only else []
        try:
            child = Child.start("page", arguments, private.path / "page.log")
            link = child.listens()
            if not link:
                child.end(GRACE_S)
                raise UsageError(child.last_message() or "the page could not be started")
            os.set_blocking(child.lifeline, False)
        except BaseException:
            remove_private(private)
            raise
        return cls(child, private, link, "metrics" if request.is_metrics_only else "page")

    def feed(self, status: Status) -> None:
        """Send it the status twice a second, unless it has not read the one before."""
        now = self.clock.now()
        if now < self._fed + FEED_S:
            return
        self._fed = now
        if not self._rest:
            self._rest = msgspec.json.encode(status) + b"\n"
        try:
            self._rest = self._rest[os.write(self.child.lifeline, self._rest) :]
        except OSError:
            # It does not read, or is gone: the run goes on.
            return

    def stay(self) -> None:
        """Wait until it ends, or a person presses Ctrl-C."""
        with suppress(KeyboardInterrupt):
            while not self.child.wait(STAY_S):
                continue

    def close(self) -> None:
        """End it."""
        self.child.cut_lifeline()
        self.child.end(GRACE_S)
        remove_private(self.private)


@contextmanager
def page_beside(request: PageRequest | None, folder: Path, say: Callable[[str], None]) -> Iterator[PageProcess | None]:
    """Serve a page of the run in a folder for as long as the context lasts, if one was asked for.

    If the run ends with an error, `say` reports how to open the page again.
    """
    page = None if request is None else PageProcess.start(folder, request)
    try:
        yield page
    except BaseException:
        if page is not None and page.what == "page" and has_begun(folder):
            say(f"the page has ended; to see the run again: {own_command('watch', folder)}")
        raise
    finally:
        if page is not None:
            page.close()


@contextmanager
def watched(page: PageProcess | None, display: Display) -> Iterator[Display]:
    """Show a run on a display, and on a page if there is one, whose link the display shows first."""
    with display:
        if page is not None:
            display.say(f"{page.what} at {page.link}")
            display.listener = page.feed
        yield display

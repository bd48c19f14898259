"""What a server of a run with standbys does when it is started again by the same command: it knows no job and no port.

Whoever starts processes again (Kubernetes, systemd, Ray) does not know which server leads the run by then. The folder
tells what this one was, and the others tell whether one of them leads the run.
"""

from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from rich.console import Console

from lockstep.common.errors import RemoteProtocolError, UsageError
from lockstep.common.protocol.messages import StandbyAddress, Status
from lockstep.common.runtime.clock import SystemClock
from lockstep.common.transport.port import Dial
from lockstep.launch.client import StatusClient
from lockstep.launch.run_end import show_end
from lockstep.ps.standby.mirror import MIRROR
from lockstep.ps.standby.terms import read_terms
from lockstep.results.reports.display import print_plainly
from lockstep.runs.run_dir import finished, has_begun

#: Seconds in which another server answers what it has of the run, and of one look for an answer.
ASK_S, LOOK_S = 2.0, 0.05


class FolderHolds(Enum):
    """What a server finds in its folder."""

    #: Nothing, or a claim of a process that was killed before it had written anything.
    NOTHING = "nothing"
    #: A mirror: it was a standby.
    MIRROR = "mirror"
    #: A run that it led.
    RUN = "run"
    #: A run that is over.
    RESULT = "result"


def found_in(folder: Path) -> FolderHolds:
    """Return what a folder holds."""
    if has_begun(folder) and finished(folder) is not None:
        return FolderHolds.RESULT
    if (folder / MIRROR).is_file():
        return FolderHolds.MIRROR
    return FolderHolds.RUN if has_begun(folder) else FolderHolds.NOTHING


def has_led_as_standby(folder: Path, own: str) -> bool:
    """Tell whether the server at the address `own` led the run in a folder after another one, perhaps to its end."""
    is_led = has_begun(folder) and not (folder / MIRROR).is_file()
    return is_led and read_terms(folder).earlier_leader(own) is not None


def has_more(status: Status) -> bool:
    """Tell whether a server has more of a run than one that would begin it: it leads it, or has a checkpoint."""
    return not status.is_standby or status.step > 0


def who_has_more(servers: Sequence[StandbyAddress], dial: Dial) -> StandbyAddress | None:
    """Return the first of these servers to answer that it has something of the run; None if none does in time."""
    clients = [(server, StatusClient(dial(server.address, server.public))) for server in servers]
    clock = SystemClock()
    until = clock.now() + ASK_S
    try:
        while clients and clock.now() < until:
            for server, client in list(clients):
                with suppress(RemoteProtocolError):
                    status = client.ask(LOOK_S)
                    if status is not None and has_more(status):
                        return server
                    if status is not None:
                        clients.remove((server, client))
                        client.close()
        return None
    finally:
        for _, client in clients:
            client.close()


def set_aside(folder: Path) -> Path:
    """Rename the folder of a run that goes on elsewhere, after the last term in which it was led here; return it.

    `UsageError` if that cannot be done, as with the root of a volume.
    """
    stem = f"{folder.name}-term-{read_terms(folder).last.number}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    target = next(path for name in names if not (path := folder.with_name(name)).exists())
    try:
        folder.rename(target)
    except OSError as error:
        raise UsageError(
            f"cannot rename the run folder {str(folder)!r} ({error.strerror}), whose run goes on elsewhere: expected a "
            "folder within one that you may write to, as --run-dir VOLUME/run"
        ) from error
    return target


def show_finished(console: Console, folder: Path) -> None:
    """Show the end of a run that is over already."""
    result = finished(folder)
    assert result is not None  # as was found
    print_plainly(console, f"the run in {folder} is already finished")
    show_end(console, result, folder, has_picture=False)

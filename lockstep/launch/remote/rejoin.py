"""What a server of a run with standbys does when it is started again by the same command: it knows no job and no port.

Whoever starts processes again (Kubernetes, systemd, Ray) does not know which server leads the run by then. The folder
tells what this one was, and the others tell whether one of them leads the run.
"""

from enum import Enum
from pathlib import Path

from rich.console import Console

from lockstep.common.errors import UsageError
from lockstep.common.protocol.messages import StandbyAddress
from lockstep.common.protocol.standby_messages import LeaderRequest
from lockstep.common.runtime.clock import Clock
from lockstep.common.statemachine.leader_inquiry import LeaderInquiry
from lockstep.common.statemachine.leader_search import LeaderSearch
from lockstep.common.transport.port import Dial
from lockstep.launch.run_end import show_end
from lockstep.ps.standby.mirror import MIRROR
from lockstep.ps.standby.terms import read_terms
from lockstep.results.reports.display import print_plainly
from lockstep.runs.run_dir import finished, has_begun


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


def server_with_more(servers: tuple[StandbyAddress, ...], dial: Dial, clock: Clock) -> StandbyAddress | None:
    """Return the first of these servers to answer that it leads the run, or has a checkpoint; None if none does."""
    search = LeaderSearch(servers)
    found = LeaderInquiry(search, dial).find(LeaderRequest(), clock, lambda answer: answer.is_leader or answer.step > 0)
    return None if found is None else found[0]


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

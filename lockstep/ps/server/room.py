"""The part of the server that lets a run wait while the disk has no room for its records.

No work is leased meanwhile, and leases that are held are completed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstep.common.runtime.notice import notice, warning
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.events import Event, TimePassed
from lockstep.ps.records.run_folder import LOOK_S, DiskRoom


@dataclass
class RoomWatch:
    """The room on the disk, and whether the run waits for some."""

    core: Coordinator
    room: DiskRoom
    #: Writes what the disk had no room for.
    write_again: Callable[[], None]
    say: Callable[[str], None]
    #: A text that names the lack of room, empty while the run does not wait; and when to look for room next.
    missing: str = ""
    due: float = -math.inf

    def __post_init__(self) -> None:
        hooks = self.core.hooks
        hooks.holds.append(lambda: bool(self.missing))
        hooks.waits.append(lambda: self.missing)

    def deadline(self) -> float | None:
        if self.missing:
            return self.due
        return -math.inf if self.room.is_lacking else None

    def on_time(self, now: float) -> Sequence[Event]:
        if not self.missing:
            self.missing, self.due = self.room.text, now + LOOK_S
            self.say(warning(self.missing))
        elif self.room.try_again(self.write_again):
            self.missing = ""
            self.say(notice("there is room again: the run continues"))
            if self.core.is_running() and not self.core.leases.held:
                # The time in between counts for no worker.
                self.core.begin_round(now)
        else:
            self.due = now + LOOK_S
            return []
        return [TimePassed()]

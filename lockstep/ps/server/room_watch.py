"""The part of the server that lets a run wait while the disk has no room for its records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lockstep.common.runtime.notice import notice, warning
from lockstep.ps.coordinator.events import Event, RoomChanged
from lockstep.ps.records.run_folder import LOOK_S, DiskRoom


@dataclass
class RoomWatch:
    """The room on the disk, and whether the run waits for some."""

    room: DiskRoom
    #: Writes what the disk had no room for.
    write_again: Callable[[], None]
    say: Callable[[str], None]
    #: When to look next whether there is room; None while the run does not wait.
    due: float | None = None

    def deadline(self) -> float | None:
        return self.due if self.due is not None or not self.room.is_lacking else -math.inf

    def on_time(self, now: float) -> Sequence[Event]:
        if self.due is None:
            text = self.room.text
            self.due = now + LOOK_S
            self.say(warning(text))
            return [RoomChanged(missing=text)]
        if not self.room.try_again(self.write_again):
            self.due = now + LOOK_S
            return []
        self.due = None
        self.say(notice("there is room again: the run continues"))
        return [RoomChanged(missing="")]

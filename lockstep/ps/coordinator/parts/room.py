"""The wait for room on the disk: no work is leased meanwhile, and leases that are held are completed. Pure."""

from msgspec.structs import replace

from lockstep.common.protocol.messages import Status
from lockstep.ps.coordinator import events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.coordinator.effects import Effect

#: The phase of a run whose disk is full, in a status.
NO_ROOM = "waiting for room on the disk"


class Room:
    """Holds the work back while the disk has no room for the run's records."""

    def __init__(self, core: Coordinator) -> None:
        self._core = core
        #: A text that names the lack of room, empty if there is room.
        self.missing = ""
        hooks = core.hooks
        hooks.events[events.RoomChanged] = self._on_changed
        hooks.holds.append(lambda: bool(self.missing))
        hooks.waits.append(lambda: self.missing)
        hooks.statuses.append(self._shown)

    def _on_changed(self, changed: events.RoomChanged, now: float) -> list[Effect]:
        """Lease no more work, or all that has waited: the time in between counts for no worker."""
        self.missing, core = changed.missing, self._core
        if self.missing or not core.is_running():
            return []
        if not core.leases.held:
            core.begin_round(now)
        return core.assign_leases(now)

    def _shown(self, status: Status) -> Status:
        return replace(status, phase=NO_ROOM) if self.missing and not self._core.is_over() else status

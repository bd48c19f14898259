"""The processes of a run, or of a team, by their places: starts and ends them, and notices which have ended."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lockstep.launch.supervision.child import WatchedProcess, end_all
from lockstep.launch.supervision.supervisor import ProcessPlace, Role
from lockstep.launch.supervision.worker_supervisor import ProcessEnd


@dataclass
class Crew:
    """The current process of each place, or its last one."""

    #: Starts the process of a place, here or elsewhere.
    start: Callable[[ProcessPlace], WatchedProcess]
    processes: dict[ProcessPlace, WatchedProcess] = field(default_factory=dict)
    #: The places whose process has not been seen to end.
    _running: set[ProcessPlace] = field(default_factory=set)
    #: All that were ever started, and have to end with this process.
    _started: list[WatchedProcess] = field(default_factory=list)

    def begin(self, places: Iterable[ProcessPlace]) -> None:
        """Start the processes of places."""
        for place in places:
            # What the dead one holds, a core of a cluster, is what the next one waits for.
            self.stop(place)
            self.processes[place] = self.start(place)
            self._started.append(self.processes[place])
            self._running.add(place)

    def stop(self, place: ProcessPlace) -> None:
        """Kill the process of a place, if there is one, and free what is held of it."""
        if place in self.processes:
            self.processes[place].end(0.0)

    def move(self, place: ProcessPlace, target: ProcessPlace) -> None:
        """Let the process of a place have another place from now on."""
        self.processes[target] = self.processes.pop(place)
        self._running = {target if one == place else one for one in self._running}

    def at(self, *roles: Role) -> list[WatchedProcess]:
        """Return the processes of these roles."""
        return [process for place, process in self.processes.items() if place.role in roles]

    def runs(self, place: ProcessPlace) -> bool:
        """Return whether the process of a place has not been seen to end."""
        return place in self._running

    def has_news(self) -> bool:
        """Return whether `ends` has something to return."""
        return any(self.processes[place].has_ended() for place in self._running)

    def ends(self) -> dict[ProcessPlace, ProcessEnd]:
        """Return how processes have ended since the last call, each once."""
        # In the order of their first starts: what follows from the end of the server is seen with it.
        ended = [place for place in self.processes if self.runs(place) and self.processes[place].has_ended()]
        self._running.difference_update(ended)
        return {place: self.processes[place].process_end() for place in ended}

    def end_all(self) -> None:
        """End all processes in order, also those that were replaced."""
        end_all(self._started)

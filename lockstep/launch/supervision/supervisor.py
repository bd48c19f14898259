"""Decides which processes of a run are started, when each is restarted, and when that is hopeless. Pure.

It knows neither how processes are started nor what they print. It is told how they have ended and how far the run is,
and acts through a small port. It decides for the processes of a `train` as for those of a simulation.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from lockstep.common.protocol.messages import Status
from lockstep.common.protocol.run_options import RunOptions
from lockstep.launch.supervision.restarts import (
    SERVER,
    PlaceState,
    ProcessEnd,
    ProcessPlace,
    ProcessTable,
    Role,
)
from lockstep.ps.coordinator.transitions import RunPhase

#: Seconds in which a server that misses another process ends by itself, and reports why.
GRACE_S = 2.0

#: The phases of a run that has not begun.
BEFORE = (RunPhase.AWAITING_SERVERS.value, RunPhase.AWAITING_WORKERS.value)


class Outlook(Enum):
    """The consequence of a death."""

    RESTARTED = "restarted"
    GIVEN_UP = "given up"


class RunEnd(Enum):
    """Why a run is not continued."""

    #: The server has ended well, or has left a result.
    RESULT = "result"
    #: The server has ended, and says why, or dies again and again.
    SERVER = "server"
    #: A process has crashed before it was ready.
    CRASH = "crash"
    #: A shard dies again and again.
    SHARD_KILLED = "shard killed"
    #: A shard has ended by itself, and the server has not.
    SHARD_FAILED = "shard failed"
    #: No worker is left.
    NO_WORKER = "no worker"
    #: So many workers are missing that the run cannot begin.
    NOT_ALL_WORKERS = "not all workers"


class RunProcesses(Protocol):
    """The processes of a run, and its files, as its supervisor handles them."""

    def start(self, place: ProcessPlace) -> None:
        """Start a process; once a server listens, the supervisor is told so."""
        ...

    def stop(self, place: ProcessPlace) -> None:
        """Kill a process, if it still runs."""
        ...

    def report(self, place: ProcessPlace, outlook: Outlook, delay_s: float) -> None:
        """Tell a person that a process has died, and what follows: a server is restarted in `delay_s` seconds."""
        ...

    def has_result(self) -> bool:
        """Tell whether the run has a result."""
        ...


@dataclass
class RunSupervisor:
    """Keeps the processes of one run going, until `end` says why the run is not continued."""

    options: RunOptions
    processes: RunProcesses
    #: How many workers are started here.
    workers: int
    #: So many consecutive workers are a team, and the first of them leads it.
    team_size: int = 1
    #: Whether workers that were started elsewhere take part.
    has_external_workers: bool = False
    places: ProcessTable = field(init=False)
    #: Whether a server listens, or did a moment ago. Otherwise, one is started, or is about to be.
    is_served: bool = False
    #: Why the run is not continued, and the process that has caused it.
    end: RunEnd | None = None
    cause: ProcessPlace = SERVER
    #: The last status, None if the server has not answered; and whether any has shown that the run has begun.
    _status: Status | None = None
    _has_begun: bool = False

    def __post_init__(self) -> None:
        self.places = ProcessTable(self.options.max_restarts)

    def deadline(self) -> float | None:
        """Return when `on_time` has something to do."""
        return self.places.deadline()

    def _start(self, places: Iterable[ProcessPlace], now: float) -> None:
        for place in places:
            self.places.begin(place, now)
            self.processes.start(place)

    def _shards(self) -> list[ProcessPlace]:
        return [ProcessPlace(Role.SHARD, number) for number in range(1, self.options.servers)]

    def _workers(self) -> list[ProcessPlace]:
        return [ProcessPlace(Role.WORKER, number) for number in range(self.workers)]

    # The servers

    def begin(self, now: float) -> None:
        """Start the server, at first and again."""
        self._status = None
        self._start([SERVER], now)

    def on_listening(self, now: float, *, is_elsewhere: bool) -> None:
        """Start what belongs to a server that can be reached now, perhaps where no worker knows it."""
        self.is_served = True
        if not is_elsewhere:
            return self._start(self._shards(), now)
        for place in self._workers():
            if self.places.state(place) is not None:
                self.processes.stop(place)
        return self._start([*self._shards(), *self._workers()], now)

    def on_ends(self, ends: Mapping[ProcessPlace, ProcessEnd], now: float) -> None:
        """Decide what follows the ends of processes, as one look at all of them has shown."""
        if self.end is not None:
            return
        for place, end in ends.items():
            # Shards start with their server.
            is_apart = place == SERVER or (place.role is Role.SHARD and not self.is_served)
            # A run that has failed ends its workers and shards first, and then its server, which reports why.
            is_later = place.role in (Role.WORKER, Role.SHARD) and end.code > 0
            self.places.end(place, end, math.inf if is_apart else now + GRACE_S if is_later else now)
        if SERVER in ends:
            self._server_ended(ends[SERVER], now)
        if self.end is None:
            self._judge(now)

    def _server_ended(self, end: ProcessEnd, now: float) -> None:
        """Restart the servers, unless the run itself has ended: it would do so again."""
        if self.processes.has_result():
            return self._over(RunEnd.RESULT)
        if end.is_crash and not self._has_begun:
            return self._over(RunEnd.CRASH)
        if not end.was_killed:
            return self._over(RunEnd.SERVER if end.code else RunEnd.RESULT)
        # Workers that have ended with it are needed again.
        for worker in self._workers():
            if self.places.state(worker) is PlaceState.ENDED:
                self.places.restart(worker, now)
        return self._restart_servers(now)

    def _restart_servers(self, now: float) -> None:
        """Restart the server after its death, and all shards with it."""
        delay_s = self.places.restart(SERVER, now)
        if delay_s is None:
            return self._over(RunEnd.SERVER)
        self.is_served = False
        self.processes.report(SERVER, Outlook.RESTARTED, delay_s)
        for shard in self._shards():
            # It starts once the server listens.
            self.places.vacate(shard)
            self.processes.stop(shard)
        return None

    # What follows the end of a process, unless the server has ended meanwhile

    def _judge(self, now: float) -> None:
        """Decide what follows the ends whose time has come."""
        ended = self.places.due(PlaceState.ENDED, now)
        for place in ended:
            if place.role is Role.SHARD and self.end is None:
                self._shard_ended(place, now)
        if self.end is None:
            self._judge_workers([place for place in ended if place.role is Role.WORKER], now)

    def _shard_ended(self, place: ProcessPlace, now: float) -> None:
        """Restart a shard that was killed, with which its server resumes the run; one that has failed ends the run."""
        end = self.places.at(place).end
        if end.is_crash and not self._has_begun:
            return self._over(RunEnd.CRASH, place)
        if end.code and not end.is_from_outside:
            return self._over(RunEnd.SHARD_FAILED, place)
        delay_s = self.places.restart(place, now)
        if delay_s is not None:
            self.processes.report(place, Outlook.RESTARTED, delay_s)
        elif end.code:
            self._over(RunEnd.SHARD_KILLED, place)
        return None

    def _judge_workers(self, ended: list[ProcessPlace], now: float) -> None:
        crashed = next((place for place in ended if self.places.at(place).end.is_crash), None)
        # Asked after the death, the server knows whether the run had begun.
        if crashed is not None and self._status is not None and not self._has_begun:
            return self._over(RunEnd.CRASH, crashed)
        is_restarted = {place: self.places.restart(place, now) is not None for place in ended}
        died = [place for place in ended if self.places.at(place).end.code]
        given_up = [worker for worker in self._workers() if self.places.are_given_up([worker])]
        lost = [place for place in died if not is_restarted[place]] or given_up
        leaders = self._workers()[:: self.team_size]
        # The other processes of a team cannot work without their leader.
        if lost and self.places.are_given_up(leaders) and not self.has_external_workers:
            return self._over(RunEnd.NO_WORKER, lost[0])
        # Not only when one dies: the server may not have answered then, as it loads the data while workers start.
        awaited = self._status.min_workers if self._status is not None and self._status.phase in BEFORE else 0
        if lost and awaited > self.options.workers - len(given_up):
            return self._over(RunEnd.NOT_ALL_WORKERS, lost[0])
        for place in died:
            self.processes.report(place, Outlook.RESTARTED if is_restarted[place] else Outlook.GIVEN_UP, 0.0)
        return None

    # Time, and the state of the run

    def on_status(self, status: Status | None) -> None:
        """Take note of how far the run is, by the answer of its server if there was one."""
        self._status = status
        if status is None:
            return
        self._has_begun = self._has_begun or status.phase not in BEFORE
        self.places.steps = max(self.places.steps, status.step)

    def on_time(self, now: float) -> None:
        """Start the processes that are due, and decide what follows the ends whose time has come."""
        if self.end is None:
            self._judge(now)
        for place in [] if self.end is not None else self.places.due(PlaceState.AWAITED, now):
            if place == SERVER:
                self.begin(now)
            else:
                self._start([place], now)

    def _over(self, end: RunEnd, cause: ProcessPlace = SERVER) -> None:
        self.end, self.cause = end, cause

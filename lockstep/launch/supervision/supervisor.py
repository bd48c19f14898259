"""Decides which processes of a run are started, when each is restarted, and when that is hopeless. Pure.

It knows neither how processes are started nor what they print. It is told how they have ended, how far the run is, and
what its files hold. It decides for the processes of a `train` as for those of a simulation.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from msgspec import Struct

from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.statemachine.machine import (
    IGNORED,
    Machine,
    Started,
    TimePassed,
    TransitionTable,
    leads,
    stays,
    table_of,
)
from lockstep.launch.supervision.restarts import (
    INTERRUPTED,
    SERVER,
    STANDBY,
    PlaceState,
    ProcessEnd,
    ProcessPlace,
    ProcessTable,
    Role,
)

#: Seconds in which a server that misses another process ends by itself, and reports why.
GRACE_S = 2.0

#: Seconds after its time in which a standby takes over if its workers can ask for that.
LATE_S = 5.0


# Events


class ServerListens(Struct, frozen=True, kw_only=True):
    """The server can be reached."""

    #: Whether the workers, if there are any, do not know its address.
    is_elsewhere: bool


class ProcessesEnded(Struct, frozen=True, kw_only=True):
    """Processes have ended, as one look at all of them has shown."""

    ends: Mapping[ProcessPlace, ProcessEnd]


class StatusSeen(Struct, frozen=True, kw_only=True):
    """The server was asked for the status of the run."""

    #: Whether it has answered.
    is_answered: bool
    #: Whether the run waits for processes to begin.
    is_before: bool = False
    #: Whether the answer came from a standby that does not lead the run yet.
    is_standby: bool = False
    #: Steps that the run has made.
    steps: int = 0


#: Nothing is known.
UNANSWERED = StatusSeen(is_answered=False)

SupervisorEvent = Started | ServerListens | ProcessesEnded | StatusSeen | TimePassed

# Effects


class StartProcess(Struct, frozen=True, kw_only=True):
    """Start a process; for a server, answer with `ServerListens`, unless it has ended before."""

    place: ProcessPlace


class StopProcess(Struct, frozen=True, kw_only=True):
    """Kill a process, if it still runs."""

    place: ProcessPlace


class Outlook(Enum):
    """The consequence of a death."""

    RESTARTED = "restarted"
    GIVEN_UP = "given up"
    #: The standby leads the run, or is about to: it has the place of the server from now on.
    STANDBY = "standby"


class ReportDeath(Struct, frozen=True, kw_only=True):
    """Tell a person that a process has died, and what follows."""

    place: ProcessPlace
    outlook: Outlook
    #: Seconds until a server is restarted.
    delay_s: float = 0.0


class PromoteStandby(Struct, frozen=True, kw_only=True):
    """Let the standby lead the run: the workers that could ask for that are gone."""


class RunEnd(Enum):
    """Why a run is not continued."""

    #: The server has ended well, or has left a result.
    RESULT = "result"
    #: The server has ended, and says why, or dies again and again.
    SERVER = "server"
    #: A process has crashed before it was ready.
    CRASH = "crash"
    #: A shard was killed, and cannot be replaced.
    SHARD_KILLED = "shard killed"
    #: A shard has ended by itself, and the server has not.
    SHARD_FAILED = "shard failed"
    #: No worker is left.
    NO_WORKER = "no worker"
    #: A worker is missing, and the run has not begun.
    NOT_ALL_WORKERS = "not all workers"


class EndSupervision(Struct, frozen=True, kw_only=True):
    """End all processes: the run is over."""

    end: RunEnd
    #: The process that has caused it.
    place: ProcessPlace = SERVER


SupervisorEffect = StartProcess | StopProcess | ReportDeath | PromoteStandby | EndSupervision


class SupervisorPhase(Enum):
    """The state of a run's servers."""

    #: The first server has been started, and does not listen yet.
    STARTING = "starting"
    #: All servers run, or are about to be back.
    SERVING = "serving"
    #: All servers are gone, and start again soon.
    RESTARTING = "restarting"
    #: The run is not continued.
    OVER = "over"


_STARTING, _SERVING, _RESTARTING, _OVER = SupervisorPhase

#: The phases that may follow.
TRANSITIONS = table_of(
    SupervisorPhase,
    {
        Started: {_STARTING: {_STARTING}},
        ServerListens: {_STARTING: {_SERVING}, _OVER: IGNORED},
        ProcessesEnded: {
            _STARTING: {_STARTING, _SERVING, _RESTARTING, _OVER},
            _SERVING: {_SERVING, _RESTARTING, _OVER},
            _RESTARTING: {_RESTARTING, _OVER},
            _OVER: IGNORED,
        },
        StatusSeen: {**stays(_STARTING, _SERVING, _RESTARTING), _OVER: IGNORED},
        TimePassed: {
            **leads({_STARTING, _OVER}, _STARTING),
            _SERVING: {_SERVING, _OVER},
            _RESTARTING: {_RESTARTING, _STARTING, _OVER},
            _OVER: IGNORED,
        },
    },
)


class FilesSeen(Struct, frozen=True, kw_only=True):
    """The state of the files of a run."""

    has_begun: bool
    has_result: bool
    has_checkpoint: bool
    #: Whether a worker was evicted for good since the processes were first started.
    has_evicted: bool = False
    #: Whether the standby leads the run, and whether it has what it takes to lead it.
    standby_leads: bool = False
    standby_can_lead: bool = False


@dataclass
class RunSupervisor(Machine[SupervisorEvent, SupervisorEffect]):
    """Keeps the processes of one run going."""

    #: Of the run; its workers are those that are started here.
    options: RunOptions
    #: Looks at the files of the run.
    look: Callable[[], FilesSeen]
    #: So many consecutive workers are a team, and the first of them leads it.
    team_size: int = 1
    #: Whether workers that were started elsewhere take part.
    has_external_workers: bool = False
    phase: SupervisorPhase = _STARTING
    places: ProcessTable = field(init=False)
    #: Whether the server was started before, or the standby leads the run: then not all workers have to be there.
    is_second: bool = False
    #: The last status, and whether any has shown that the run has begun.
    _status: StatusSeen = UNANSWERED
    _has_begun: bool = False

    transitions: ClassVar[TransitionTable] = TRANSITIONS

    def __post_init__(self) -> None:
        self.places = ProcessTable(self.options.max_restarts)

    def handle(self, event: SupervisorEvent, now: float) -> list[SupervisorEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return self.places.deadline()

    def react(self, event: SupervisorEvent, now: float) -> list[SupervisorEffect]:
        match event:
            case Started():
                return self._start_server(now)
            case ServerListens():
                return self._serve(event, now)
            case ProcessesEnded():
                return self._ended(event.ends, now)
            case StatusSeen():
                return self._seen(event, now)
            case TimePassed():
                return self._on_time(now)

    def _start(self, places: Iterable[ProcessPlace], now: float) -> list[SupervisorEffect]:
        started = list[SupervisorEffect]()
        for place in places:
            self.places.begin(place, now)
            started.append(StartProcess(place=place))
        return started

    def _shards(self) -> list[ProcessPlace]:
        return [ProcessPlace(Role.SHARD, number) for number in range(1, self.options.servers)]

    def _workers(self) -> list[ProcessPlace]:
        return [ProcessPlace(Role.WORKER, number) for number in range(self.options.workers)]

    # The servers

    def _start_server(self, now: float) -> list[SupervisorEffect]:
        self.phase, self._status = _STARTING, UNANSWERED
        return self._start([SERVER], now)

    def _serve(self, event: ServerListens, now: float) -> list[SupervisorEffect]:
        self.phase = _SERVING
        started = self._start(self._shards(), now)
        if not event.is_elsewhere:
            return started
        stopped = [StopProcess(place=place) for place in self._workers() if self.places.state(place) is not None]
        standby = [STANDBY] if self.options.standby else []
        return [*started, *stopped, *self._start([*self._workers(), *standby], now)]

    def _ended(self, ends: Mapping[ProcessPlace, ProcessEnd], now: float) -> list[SupervisorEffect]:
        for place, end in ends.items():
            judged_s = math.inf if place.role in (Role.SERVER, Role.SHARD) else now
            # A run that has failed ends its workers first, and then its server, which reports why.
            self.places.end(place, end, now + GRACE_S if place.role is Role.WORKER and end.code > 0 else judged_s)
        effects = list[SupervisorEffect]()
        if SERVER in ends:
            effects += self._server_ended(ends[SERVER], now)
        else:
            for place, end in ends.items():
                if place.role is Role.SHARD and end.code and self.phase is _SERVING:
                    effects += self._shard_died(place, end, now)
        return effects if self.phase is _OVER else [*effects, *self._judge(now)]

    def _server_ended(self, end: ProcessEnd, now: float) -> list[SupervisorEffect]:
        """Restart the servers, or follow the standby, unless the run itself has ended: it would do so again."""
        files = self.look()
        if files.has_result:
            return self._over(RunEnd.RESULT)
        if end.is_crash and not files.has_begun:
            return self._over(RunEnd.CRASH)
        has_successor = self._has_successor(end, files, now)
        # One that ends by itself while its standby leads has handed the run over, or found that out.
        is_lost = end.was_killed or (has_successor and (files.standby_leads or end.code == 0))
        killed = self._killed_shard() if end.code == 1 else None
        if not is_lost and killed is None:
            return self._over(RunEnd.SERVER if end.code else RunEnd.RESULT)
        # Workers that have ended with it are needed again.
        for worker in self._workers():
            if self.places.state(worker) is PlaceState.ENDED:
                self.places.restart(worker, now)
        if is_lost and has_successor:
            return self._follow_standby(now)
        return self._restart_servers(SERVER if is_lost or killed is None else killed, now)

    def _has_successor(self, server: ProcessEnd, files: FilesSeen, now: float) -> bool:
        """Tell whether the standby leads the run of a server that has ended, or can lead it."""
        if STANDBY in self.places.due(PlaceState.ENDED, now):
            return files.standby_leads  # it has ended too, and is restarted as the server
        if self.places.state(STANDBY) is not PlaceState.RUNNING:
            return False
        # One that was interrupted has told its standby that the run is over.
        return files.standby_leads or (server.code != INTERRUPTED and files.standby_can_lead)

    def _follow_standby(self, now: float) -> list[SupervisorEffect]:
        self.phase, self.is_second, self._status = _SERVING, True, UNANSWERED
        # It is the server from now on; the shards that are gone join it as they would have joined the server again.
        self.places.vacate(STANDBY)
        self.places.begin(SERVER, now)
        for shard in self._dead_shards():
            self.places.expect(shard, now)
        return [ReportDeath(place=SERVER, outlook=Outlook.STANDBY)]

    def _restart_servers(self, dead: ProcessPlace, now: float) -> list[SupervisorEffect]:
        """Restart the server and all shards after the death of one of them."""
        delay_s = self.places.restart(dead, now)
        if delay_s is None:
            return self._over(RunEnd.SERVER if dead == SERVER else RunEnd.SHARD_KILLED, dead)
        self.is_second = self.is_second or self.phase is not _STARTING
        self.phase = _RESTARTING
        self.places.expect(SERVER, now + delay_s)
        stopped = list[SupervisorEffect]()
        for shard in self._shards():
            # It starts once the server listens.
            self.places.vacate(shard)
            stopped.append(StopProcess(place=shard))
        return [ReportDeath(place=dead, outlook=Outlook.RESTARTED, delay_s=delay_s), *stopped]

    def _killed_shard(self) -> ProcessPlace | None:
        """Return a shard that was killed and not replaced."""
        return next((shard for shard in self._dead_shards() if self.places.at(shard).end.is_from_outside), None)

    def _dead_shards(self) -> list[ProcessPlace]:
        alive = (None, PlaceState.RUNNING)
        return [one for one in self._shards() if self.places.state(one) not in alive and self.places.at(one).end.code]

    def _shard_died(self, place: ProcessPlace, end: ProcessEnd, now: float) -> list[SupervisorEffect]:
        """Restart a shard if the server can resume with it; otherwise wait for the server's end."""
        files = self.look()
        if end.is_crash and not files.has_begun:
            return self._over(RunEnd.CRASH, place)
        if not (end.is_from_outside and files.has_checkpoint):
            self.places.end(place, end, now + GRACE_S)
            return []
        delay_s = self.places.restart(place, now)
        if delay_s is None:
            return self._over(RunEnd.SHARD_KILLED, place)
        return [ReportDeath(place=place, outlook=Outlook.RESTARTED, delay_s=delay_s)]

    # What follows the end of a process, unless the server has ended meanwhile

    def _judge(self, now: float) -> list[SupervisorEffect]:
        """Decide what follows the ends whose time has come."""
        effects, ended = list[SupervisorEffect](), self.places.due(PlaceState.ENDED, now)
        for place in ended:
            if place.role is Role.SHARD:
                effects += self._miss_shard(place)
            elif place.role is Role.STANDBY:
                effects += self._standby_ended(now)
        workers = [place for place in ended if place.role is Role.WORKER]
        return effects if self.phase is _OVER else [*effects, *self._judge_workers(workers, now)]

    def _miss_shard(self, place: ProcessPlace) -> list[SupervisorEffect]:
        """End a server that misses a shard and has not ended by itself."""
        if self._killed_shard() is None:
            return self._over(RunEnd.SHARD_FAILED, place)
        # It ends as one that was killed, and all are restarted.
        self.places.end(place, self.places.at(place).end, math.inf)
        return [StopProcess(place=SERVER)]

    def _standby_ended(self, now: float) -> list[SupervisorEffect]:
        """Restart the standby, as the server if it has led the run: the old server's term is over."""
        if self.look().standby_leads:
            return [StopProcess(place=SERVER), *self._follow_standby(now)]
        delay_s = self.places.restart(STANDBY, now)
        if delay_s is not None:
            return [ReportDeath(place=STANDBY, outlook=Outlook.RESTARTED, delay_s=delay_s)]
        return [self._death(STANDBY, is_restarted=False)] if self.places.at(STANDBY).end.code else []

    def _judge_workers(self, ended: list[ProcessPlace], now: float) -> list[SupervisorEffect]:
        crashed = next((place for place in ended if self.places.at(place).end.is_crash), None)
        # Asked after the death, the server knows whether the run had begun.
        if crashed is not None and self._status.is_answered and not self._has_begun:
            return self._over(RunEnd.CRASH, crashed)
        is_restarted = {place: self.places.restart(place, now) is not None for place in ended}
        died = [place for place in ended if self.places.at(place).end.code]
        lost = next((place for place in died if not is_restarted[place]), None)
        leaders = self._workers()[:: self.team_size]
        # The other processes of a team cannot work without their leader.
        if lost is not None and self.places.are_given_up(leaders) and not self.has_external_workers:
            return self._over(RunEnd.NO_WORKER, lost)
        # If one was evicted, the run continues without it.
        is_before = self._status.is_answered and self._status.is_before
        if lost is not None and is_before and not (self.is_second or self.look().has_evicted):
            return self._over(RunEnd.NOT_ALL_WORKERS, lost)
        return [self._death(place, is_restarted=is_restarted[place]) for place in died]

    def _death(self, place: ProcessPlace, *, is_restarted: bool) -> SupervisorEffect:
        return ReportDeath(place=place, outlook=Outlook.RESTARTED if is_restarted else Outlook.GIVEN_UP)

    # Time, and the state of the run

    def _seen(self, status: StatusSeen, now: float) -> list[SupervisorEffect]:
        self._status = status
        self._has_begun = self._has_begun or (status.is_answered and not status.is_before)
        self.places.steps = max(self.places.steps, status.steps)
        server = self.places.at(SERVER)
        if not status.is_standby or now < server.started_s + self.options.takeover_seconds + LATE_S:
            return []
        # The workers of the last step may have died as well, and others do not know that the server is gone.
        server.started_s = now
        return [PromoteStandby()]

    def _on_time(self, now: float) -> list[SupervisorEffect]:
        effects = self._judge(now)
        for place in [] if self.phase is _OVER else self.places.due(PlaceState.AWAITED, now):
            effects += self._start_server(now) if place == SERVER else self._start([place], now)
        return effects

    def _over(self, end: RunEnd, place: ProcessPlace = SERVER) -> list[SupervisorEffect]:
        self.phase = _OVER
        return [EndSupervision(end=end, place=place)]

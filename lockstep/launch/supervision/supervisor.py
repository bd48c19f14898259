"""Decides which processes of a run are started, when each is restarted, and when that is hopeless. Pure.

It knows neither how processes are started nor what they print. It is told how they have ended, how far the run is, and
what its files hold. It decides for the processes of a `train` as for those of a simulation.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from msgspec import Struct

from lockstep.common.statemachine.machine import IGNORED, Machine, TimePassed, TransitionTable, leads, table_of
from lockstep.launch.supervision.worker_supervisor import INTERRUPTED, ProcessEnd, Restarts, WorkerSupervisor

#: Seconds in which a server that misses another process ends by itself, and reports why.
GRACE_S = 2.0

#: Seconds after its time in which a standby takes over if its workers can ask for that.
LATE_S = 5.0


class Role(Enum):
    """What a process does in a run, by the command that starts it."""

    SERVER = "server"
    SHARD = "shard"
    STANDBY = "standby"
    WORKER = "worker"


class ProcessPlace(Struct, frozen=True):
    """A process of a run and those that replace it."""

    role: Role
    number: int = 0


SERVER, STANDBY = ProcessPlace(Role.SERVER), ProcessPlace(Role.STANDBY)


# Events


class RunStarted(Struct, frozen=True, kw_only=True):
    """Nothing runs yet, and everything is to be started."""


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
    #: Whether what has answered is a standby that does not lead the run yet.
    is_standby: bool = False
    #: Steps that the run has made.
    steps: int = 0


#: Nothing is known.
UNANSWERED = StatusSeen(is_answered=False)

SupervisorEvent = RunStarted | ServerListens | ProcessesEnded | StatusSeen | TimePassed

# Effects


class StartProcess(Struct, frozen=True, kw_only=True):
    """Start a process; for a server, answer with `ServerListens`, unless it has ended before."""

    place: ProcessPlace


class StopProcess(Struct, frozen=True, kw_only=True):
    """Kill a process, if it still runs."""

    place: ProcessPlace


class Outlook(Enum):
    """What follows a death."""

    RESTARTED = "restarted"
    GIVEN_UP = "given up"
    #: The standby leads the run, or is about to.
    STANDBY = "standby"


class ReportDeath(Struct, frozen=True, kw_only=True):
    """Tell a person that a process has died, and what follows."""

    place: ProcessPlace
    outlook: Outlook
    #: Seconds until a server is restarted.
    delay_s: float = 0.0


class FollowStandby(Struct, frozen=True, kw_only=True):
    """Take the standby for the server from now on."""


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


SupervisorEffect = StartProcess | StopProcess | ReportDeath | FollowStandby | PromoteStandby | EndSupervision


class SupervisorPhase(Enum):
    """The state of a run's servers."""

    #: The first server has been started, and does not listen yet.
    STARTING = "starting"
    #: All servers run, or are about to be back.
    SERVING = "serving"
    #: A shard is gone for good, and the first server has a moment to end by itself.
    MISSING = "missing"
    #: All servers are gone, and start again soon.
    RESTARTING = "restarting"
    #: The run is not continued.
    OVER = "over"


_STARTING, _SERVING, _MISSING, _RESTARTING, _OVER = SupervisorPhase

#: What may follow.
TRANSITIONS = table_of(
    SupervisorPhase,
    {
        RunStarted: {_STARTING: {_STARTING}},
        ServerListens: {_STARTING: {_SERVING}, _OVER: IGNORED},
        ProcessesEnded: {
            _STARTING: {_STARTING, _SERVING, _RESTARTING, _OVER},
            _SERVING: {_SERVING, _MISSING, _RESTARTING, _OVER},
            _MISSING: {_MISSING, _SERVING, _RESTARTING, _OVER},
            _RESTARTING: {_RESTARTING, _OVER},
            _OVER: IGNORED,
        },
        StatusSeen: {
            **{phase: {phase} for phase in (_STARTING, _SERVING, _MISSING, _RESTARTING)},
            _OVER: IGNORED,
        },
        TimePassed: {
            **leads({_STARTING, _OVER}, _STARTING),
            _SERVING: {_SERVING, _OVER},
            _MISSING: {_MISSING, _OVER},
            _RESTARTING: {_RESTARTING, _STARTING, _OVER},
            _OVER: IGNORED,
        },
    },
)


class FilesSeen(Struct, frozen=True, kw_only=True):
    """What the files of a run show."""

    has_begun: bool
    has_result: bool
    has_checkpoint: bool
    #: Whether a worker was evicted for good since the processes were first started.
    has_evicted: bool = False
    #: Whether the standby leads the run, and whether it has what it takes to lead it.
    standby_leads: bool = False
    standby_can_lead: bool = False


class SupervisorConfig(Struct, frozen=True, kw_only=True):
    """What a run's supervisor keeps going."""

    workers: int
    team_size: int = 1
    #: Servers besides the first.
    shards: int = 0
    has_standby: bool = False
    #: Whether workers that were started elsewhere take part.
    has_external_workers: bool = False
    max_restarts: int = 3
    #: Seconds of the server's silence after which workers go to the standby.
    takeover_s: float = 5.0


@dataclass
class RunSupervisor(Machine[SupervisorEvent, SupervisorEffect]):
    """Keeps the processes of one run going."""

    config: SupervisorConfig
    #: Looks at the files of the run.
    look: Callable[[], FilesSeen]
    phase: SupervisorPhase = _STARTING
    workers: WorkerSupervisor = field(init=False)
    #: Of the servers, and of the standby.
    restarts: Restarts = field(init=False)
    standby_restarts: Restarts = field(init=False)
    #: Whether the server was started before, or the standby leads the run: then not all workers have to be there.
    is_second: bool = False
    #: When the server was last started, and the most steps that the run had made then.
    _started_s: float = 0.0
    _started_steps: int = 0
    #: The shards that have ended and were not replaced, and the standby unless it runs.
    _gone: dict[ProcessPlace, ProcessEnd] = field(default_factory=lambda: {STANDBY: ProcessEnd(code=0)})
    #: When servers are restarted, and until when the first one may end by itself.
    _due: dict[ProcessPlace, float] = field(default_factory=dict)
    _grace_s: float = math.inf
    #: Workers that have ended, and when it is decided what follows: a run that has failed ends its workers first, and
    #: then its server, which reports why.
    _failed: dict[ProcessPlace, ProcessEnd] = field(default_factory=dict)
    _judged_s: float = math.inf
    #: The last status, and whether any has shown that the run has begun.
    _status: StatusSeen = UNANSWERED
    _has_begun: bool = False

    transitions: ClassVar[TransitionTable] = TRANSITIONS

    def __post_init__(self) -> None:
        self.workers = WorkerSupervisor(self.config.max_restarts, self.config.team_size)
        self.restarts = Restarts(self.config.max_restarts, seed="server")
        self.standby_restarts = Restarts(self.config.max_restarts, seed="standby")

    def handle(self, event: SupervisorEvent, now: float) -> list[SupervisorEffect]:
        return self.obey(event, now)

    def deadline(self) -> float | None:
        due = [self._grace_s, self._judged_s, *self._due.values()]
        due += [] if (worker := self.workers.deadline()) is None else [worker]
        return None if (soonest := min(due)) == math.inf else soonest

    def react(self, event: SupervisorEvent, now: float) -> list[SupervisorEffect]:
        match event:
            case RunStarted():
                return self._start_server(now)
            case ServerListens():
                return self._serve(event, now)
            case ProcessesEnded():
                return self._ended(event.ends, now)
            case StatusSeen():
                return self._seen(event, now)
            case TimePassed():
                return self._on_time(now)

    # The servers

    def _start_server(self, now: float) -> list[SupervisorEffect]:
        self.phase, self._started_s, self._started_steps = _STARTING, now, self.workers.steps
        self._due, self._status = self._standby_due(), UNANSWERED
        self._gone = {place: end for place, end in self._gone.items() if place.role is not Role.SHARD}
        return [StartProcess(place=SERVER)]

    def _shards(self) -> list[ProcessPlace]:
        return [ProcessPlace(Role.SHARD, number) for number in range(1, 1 + self.config.shards)]

    def _serve(self, event: ServerListens, now: float) -> list[SupervisorEffect]:
        self.phase = _SERVING
        effects: list[SupervisorEffect] = [StartProcess(place=shard) for shard in self._shards()]
        if event.is_elsewhere:
            effects += [
                StopProcess(place=ProcessPlace(Role.WORKER, number)) for number in range(len(self.workers.places))
            ]
            started = self.workers.start_all(self.config.workers, now)
            effects += [StartProcess(place=ProcessPlace(Role.WORKER, number)) for number in started]
            if self.config.has_standby:
                self._gone.pop(STANDBY, None)
                self._due.pop(STANDBY, None)
                effects.append(StartProcess(place=STANDBY))
        return effects

    def _standby_due(self) -> dict[ProcessPlace, float]:
        return {place: due_s for place, due_s in self._due.items() if place == STANDBY}

    def _standby_died(self, end: ProcessEnd, now: float) -> list[SupervisorEffect]:
        """Restart a standby that was killed: it mirrors the run again, from what it has."""
        delay_s = self.standby_restarts.delay_s(now - self._started_s, end) if end.is_from_outside else None
        if delay_s is None:
            return []
        self._due[STANDBY] = now + delay_s
        return [ReportDeath(place=STANDBY, outlook=Outlook.RESTARTED, delay_s=delay_s)]

    def _ended(self, ends: Mapping[ProcessPlace, ProcessEnd], now: float) -> list[SupervisorEffect]:
        workers = {place: end for place, end in ends.items() if place.role is Role.WORKER}
        self._gone.update({place: end for place, end in ends.items() if place.role in (Role.SHARD, Role.STANDBY)})
        effects = self._standby_died(ends[STANDBY], now) if STANDBY in ends and self.phase is not _OVER else []
        if SERVER in ends:
            # Its own reason is the better one, if it has failed; if it was killed, they are needed again.
            for place, end in (*self._failed.items(), *workers.items()):
                self.workers.ended(place.number, end, now)
            self._failed, self._judged_s = {}, math.inf
            return [*effects, *self._server_ended(ends[SERVER], now)]
        for place, end in ends.items():
            if place.role is Role.SHARD and end.code and self.phase is _SERVING:
                effects += self._shard_died(place, end, now)
        if workers and self.phase is not _OVER:
            self._failed.update(workers)
            is_failure = any(end.code > 0 for end in workers.values())
            self._judged_s = min(self._judged_s, now + GRACE_S if is_failure else now)
            effects += self._judge_workers(now)
        return effects

    def _server_ended(self, end: ProcessEnd, now: float) -> list[SupervisorEffect]:
        """Restart the servers, or follow the standby, unless the run itself has ended: it would do so again."""
        files = self.look()
        if files.has_result:
            return self._over(RunEnd.RESULT)
        if end.is_crash and not files.has_begun:
            return self._over(RunEnd.CRASH)
        has_successor = self._has_successor(end, files)
        killed = self._killed_shard() if end.code == 1 else None
        # One that ends by itself while its standby leads has handed the run over, or found that out.
        if end.was_killed or (has_successor and (files.standby_leads or end.code == 0)):
            dead, cause = SERVER, end
        elif killed is not None:
            dead, cause = killed, self._gone[killed]
        else:
            return self._over(RunEnd.SERVER if end.code else RunEnd.RESULT)
        if dead is SERVER and has_successor:
            return self._follow_standby(now)
        delay_s = self._delay_s(cause, now)
        if delay_s is None:
            return self._over(RunEnd.SERVER) if killed is None else self._over(RunEnd.SHARD_KILLED, killed)
        self.is_second = self.is_second or self.phase is not _STARTING
        self.phase, self._grace_s, self._due = _RESTARTING, math.inf, self._standby_due()
        self._due[SERVER] = now + delay_s
        stopped: list[SupervisorEffect] = [StopProcess(place=shard) for shard in self._shards()]
        return [ReportDeath(place=dead, outlook=Outlook.RESTARTED, delay_s=delay_s), *stopped]

    def _has_successor(self, server: ProcessEnd, files: FilesSeen) -> bool:
        """Tell whether the standby leads the run of a server that has ended, or can lead it."""
        if STANDBY in self._gone:
            return False
        # One that was interrupted has told its standby that the run is over.
        return files.standby_leads or (server.code != INTERRUPTED and files.standby_can_lead)

    def _follow_standby(self, now: float) -> list[SupervisorEffect]:
        self.phase, self._started_s, self.is_second, self._grace_s = _SERVING, now, True, math.inf
        self._started_steps, self._status = self.workers.steps, UNANSWERED
        # The shards that are gone join it as they would have joined the server again.
        self._due = dict.fromkeys(self._dead_shards(), now)
        # It is the server from now on.
        self._gone[STANDBY] = ProcessEnd(code=0)
        return [ReportDeath(place=SERVER, outlook=Outlook.STANDBY), FollowStandby()]

    def _delay_s(self, end: ProcessEnd, now: float) -> float | None:
        has_progressed = self.workers.steps > self._started_steps
        self._started_steps = self.workers.steps
        return self.restarts.delay_s(now - self._started_s, end, has_progressed=has_progressed)

    def _killed_shard(self) -> ProcessPlace | None:
        """Return a shard that was killed and not replaced."""
        return next((shard for shard in self._dead_shards() if self._gone[shard].is_from_outside), None)

    def _dead_shards(self) -> list[ProcessPlace]:
        return [shard for shard in self._shards() if shard in self._gone and self._gone[shard].code]

    def _shard_died(self, place: ProcessPlace, end: ProcessEnd, now: float) -> list[SupervisorEffect]:
        """Restart a shard if the server can resume with it; otherwise wait for the server's end."""
        files = self.look()
        if end.is_crash and not files.has_begun:
            return self._over(RunEnd.CRASH, place)
        if not (end.is_from_outside and files.has_checkpoint):
            self.phase, self._grace_s = _MISSING, now + GRACE_S
            return []
        delay_s = self._delay_s(end, now)
        if delay_s is None:
            return self._over(RunEnd.SHARD_KILLED, place)
        self._due[place] = now + delay_s
        return [ReportDeath(place=place, outlook=Outlook.RESTARTED, delay_s=delay_s)]

    # The workers

    def _judge_workers(self, now: float) -> list[SupervisorEffect]:
        """Decide what follows the ends of workers, unless the server may still end, and report why."""
        if now < self._judged_s or self.phase is _OVER:
            return []
        failed, self._failed, self._judged_s = self._failed, {}, math.inf
        crashed = next((place for place, end in failed.items() if end.is_crash), None)
        # Asked after the death, the server knows whether the run had begun.
        if crashed is not None and self._status.is_answered and not self._has_begun:
            return self._over(RunEnd.CRASH, crashed)
        is_restarted = {place: self.workers.ended(place.number, end, now) for place, end in failed.items()}
        died = [place for place, end in failed.items() if end.code]
        lost = next((place for place in died if not is_restarted[place]), None)
        if lost is not None and self.workers.are_given_up() and not self.config.has_external_workers:
            return self._over(RunEnd.NO_WORKER, lost)
        # If one was evicted, the run continues without it.
        is_before = self._status.is_answered and self._status.is_before
        if lost is not None and is_before and not (self.is_second or self.look().has_evicted):
            return self._over(RunEnd.NOT_ALL_WORKERS, lost)
        return [
            ReportDeath(place=place, outlook=Outlook.RESTARTED if is_restarted[place] else Outlook.GIVEN_UP)
            for place in died
        ]

    # Time, and the state of the run

    def _seen(self, status: StatusSeen, now: float) -> list[SupervisorEffect]:
        self._status = status
        self._has_begun = self._has_begun or (status.is_answered and not status.is_before)
        self.workers.steps = max(self.workers.steps, status.steps)
        if not status.is_standby or now < self._started_s + self.config.takeover_s + LATE_S:
            return []
        # The workers of the last step may have died as well, and others do not know that the server is gone.
        self._started_s = now
        return [PromoteStandby()]

    def _on_time(self, now: float) -> list[SupervisorEffect]:
        effects = self._judge_workers(now)
        if self.phase is _OVER:
            return effects
        for number in self.workers.start_due(now):
            effects.append(StartProcess(place=ProcessPlace(Role.WORKER, number)))
        if self.phase is _MISSING and now >= self._grace_s:
            return [*effects, *self._end_server()]
        due = [place for place, due_s in self._due.items() if now >= due_s]
        if SERVER in due:
            return [*effects, *self._start_server(now)]
        for place in due:
            del self._due[place]
            self._gone.pop(place, None)
            effects.append(StartProcess(place=place))
        return effects

    def _end_server(self) -> list[SupervisorEffect]:
        """End a server that misses a shard and has not ended by itself."""
        self._grace_s = math.inf
        if self._killed_shard() is not None:
            # It ends as one that was killed, and all are restarted.
            return [StopProcess(place=SERVER)]
        return self._over(RunEnd.SHARD_FAILED, self._dead_shards()[0])

    def _over(self, end: RunEnd, place: ProcessPlace = SERVER) -> list[SupervisorEffect]:
        self.phase = _OVER
        return [EndSupervision(end=end, place=place)]

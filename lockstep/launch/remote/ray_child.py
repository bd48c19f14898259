"""A team that an actor of Ray starts and watches on another machine. Ray carries text, never a vector."""

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.launch.remote.places import Core
from lockstep.launch.supervision.channel import ChildReport, EndReport, decode_report
from lockstep.launch.supervision.child import ProcessLog, WatchedProcess
from lockstep.launch.supervision.restarts import USAGE

#: The exit code of a team whose machine is gone: the same as if it had been killed.
LOST = -int(signal.SIGKILL)

#: Seconds between two polls, and for an answer of an actor that may be gone.
POLL_S, ANSWER_S = 0.05, 5.0


@dataclass
class RayTeam(WatchedProcess):
    """A team, and the node on which it starts once there is room; its pid is of the process that starts the others."""

    #: Starts it: returns the handle of a `LaunchAgent`; None while there is no room.
    begin: Callable[["RayTeam"], Any]
    #: The cores of the cluster that it has while it runs.
    cores: Sequence[Core] = ()
    actor: Any = None
    clock: Clock = field(default_factory=SystemClock)
    #: Its news that are on their way.
    _asked: Any = None
    _pid: int = 0
    _node: str = ""
    _code: int | None = None
    #: Bytes of its log that have arrived, and its reports: how many, and those that were not read yet.
    _known_bytes: int = 0
    _known_reports: int = 0
    _arrived: list[ChildReport] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def code(self) -> int:
        return LOST if self._code is None else self._code

    @property
    def is_over(self) -> bool:
        """True if it is known to have ended."""
        return self._code is not None

    def place(self) -> str:
        self.wait(0.0)
        return f"pid {self._pid} on {self._node}" if self._node else "not placed yet"

    def wait(self, timeout_s: float) -> bool:
        deadline = self.clock.now() + timeout_s
        while not self._take_news(max(0.0, deadline - self.clock.now())):
            left_s = deadline - self.clock.now()
            if left_s <= 0.0:
                return False
            threading.Event().wait(min(POLL_S, left_s))
        return True

    def read(self, timeout_s: float | None) -> list[ChildReport] | None:
        self.wait(timeout_s or 0.0)
        if self.is_over and not self._arrived:
            return None
        found, self._arrived = self._arrived, []
        return found

    def send(self, number: signal.Signals) -> None:
        if self._node and not self.is_over:
            self.actor.send.remote(int(number))

    def end(self, grace_s: float) -> None:
        if self.actor is not None:
            self.wait(grace_s if self._node else 0.0)
            if self._node and not self.is_lost:
                with suppress(ray.exceptions.RayError):
                    self.log.add(ray.get(self.actor.end.remote(self._known_bytes), timeout=ANSWER_S))
            ray.kill(self.actor)
            self.actor = None
        self._code = LOST if self._code is None else self._code

    def _take_news(self, timeout_s: float) -> bool:
        """Take the news that come in time, and ask for the next; return whether the team is gone."""
        if self.is_over or not self._has_begun():
            return self.is_over
        self._asked = self._asked or self.actor.news.remote(self._known_bytes, self._known_reports)
        try:
            self._pid, self._node, words, lines, self._code = ray.get(self._asked, timeout=timeout_s)
            self.log.add(words)
            self._known_bytes += len(words)
            self._known_reports += len(lines)
            self._arrived += [report for line in lines if (report := decode_report(line)) is not None]
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.ActorUnavailableError:
            pass  # the connection is broken, and the question lost with it
        except ray.exceptions.RayError as error:
            self._lose(error)
        self._asked = None
        return self.is_over

    def _has_begun(self) -> bool:
        if self.actor is None and (actor := self.begin(self)) is not None:
            self.actor, self.log = actor, ProcessLog.at_end_of(self.log.path)
        return self.actor is not None

    def _lose(self, error: ray.exceptions.RayError) -> None:
        # Its creation raises nothing else: the agent reports what it meets on its node.
        cannot_import = isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed
        if cannot_import:
            text = (
                "a node of the Ray cluster cannot import lockstep: install the same version in the Python that runs "
                "Ray on each node"
            )
            self.log.add(f"error: {text}\n".encode())
            self._arrived.append(EndReport(text=text))
        self.is_lost, self._code = not cannot_import, USAGE if cannot_import else LOST

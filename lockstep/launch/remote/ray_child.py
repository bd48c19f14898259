"""A process that an actor of Ray watches on another machine. Ray carries text, never a vector."""

import math
import signal
import threading
from dataclasses import dataclass, field
from typing import Any

import msgspec
import ray
import ray.exceptions

from lockstep.common.protocol.messages import CallbackDecision, Status
from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.launch.child import ProcessLog

#: The exit code of a process whose machine is gone: as if somebody had killed it.
LOST = -int(signal.SIGKILL)

#: Seconds between two polls, and for an answer of an actor that may be gone.
POLL_S, ANSWER_S = 0.05, 5.0


@dataclass
class RayChild:
    """One process of a run, on a node that Ray has chosen or is to choose."""

    name: str
    log: ProcessLog
    #: The handle of an `LaunchAgent`.
    actor: Any
    #: Comes to the pid and the node once it is placed.
    placed: Any
    clock: Clock = field(default_factory=SystemClock)
    is_killed_on_purpose: bool = False
    _pid: int = 0
    _node: str = ""
    _code: int | None = None
    _is_lost: bool = False
    #: A poll that is on its way.
    _polling: Any = None

    @property
    def pid(self) -> int:
        """The number of the process on its node, 0 if it has none yet."""
        return self._pid

    @property
    def code(self) -> int:
        """The exit code of one that has ended, negative for a signal."""
        assert self._code is not None
        return self._code

    def named(self) -> str:
        """Return who it is, and where."""
        self._place(0.0)
        return f"{self.name} (pid {self._pid} on {self._node})" if self._node else f"{self.name} (not placed yet)"

    def first_line(self) -> str:
        """Wait for the first line of its standard output; empty if it ended before."""
        asked = self.actor.first_line.remote()
        while self._answer(asked, POLL_S) is None and not self._is_lost:
            continue
        line = "" if self._is_lost else str(ray.get(asked))
        while not line and not self.has_ended():
            self.wait(POLL_S)
        return line

    def rest(self) -> bytes:
        """Return what one that has ended has written to its standard output after the first line, once."""
        return b"" if self._is_lost else self._answer(self.actor.rest.remote(), ANSWER_S) or b""

    def has_ended(self) -> bool:
        """Return whether the process is gone, as far as is known."""
        return self._poll(0.0)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; return whether it came in time."""
        deadline = self.clock.now() + timeout_s
        while not self._poll(max(0.0, deadline - self.clock.now())):
            left_s = deadline - self.clock.now()
            if left_s <= 0.0:
                return False
            threading.Event().wait(min(POLL_S, left_s))
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal to a process that still runs."""
        if self._code is None and self._node:
            self.actor.send.remote(int(number))

    def kill_on_purpose(self) -> None:
        """Send SIGKILL to a process that has done nothing to deserve it."""
        self.is_killed_on_purpose = True
        self.send(signal.SIGKILL)

    def end(self, grace_s: float) -> None:
        """Wait for the end, kill after `grace_s` seconds, and give the place back to Ray."""
        if self._place(0.0):
            self.wait(grace_s)
            self._answer(self.actor.end.remote(0.0), ANSWER_S)
        ray.kill(self.actor)
        self._code = LOST if self._code is None else self._code

    def lived_s(self, born_s: float, now: float) -> float:
        """Return for how many seconds it lived, if it were not for us or its node."""
        return math.inf if self.is_killed_on_purpose or self._is_lost else now - born_s

    def how_it_ended(self) -> str:
        """Return its end in words."""
        if self._is_lost:
            return "is gone with its node"
        return f"was killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"ended with code {self.code}"

    def _poll(self, timeout_s: float) -> bool:
        if self._code is None and self._place(timeout_s):
            self._polling = self._polling or self.actor.poll.remote()
            seen = self._answer(self._polling, timeout_s)
            if seen is not None:
                self._polling = None
                code, words = seen
                self.log.add(words)
                self._code = code
        return self._code is not None

    def _place(self, timeout_s: float) -> bool:
        if not self._node and not self._is_lost:
            found = self._answer(self.placed, timeout_s)
            if found is not None:
                self._pid, self._node = found
        return bool(self._node) and not self._is_lost

    def _answer(self, asked: Any, timeout_s: float) -> Any:
        """Return what an actor answers, None if it does not in time, or never will."""
        try:
            return ray.get(asked, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError as error:
            # A poll that a broken connection has cost can be repeated; nothing else is asked twice.
            is_again = asked is self._polling and isinstance(error, ray.exceptions.ActorUnavailableError)
            self._polling = None
            if not is_again:
                self._is_lost = True
                self._code = LOST if self._code is None else self._code
            return None


@dataclass
class RayObserver:
    """Asks a server for its status through the actor on its node: there may be no way to it from here."""

    actor: Any
    address: str
    _asked: Any = None

    def ask(self, timeout_s: float) -> Status | None:
        """Return how the run stands, None if no answer came in time: the next call waits on for it."""
        self._asked = self._asked or self.actor.status.remote(self.address, timeout_s)
        try:
            answer = ray.get(self._asked, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:
            answer = None
        self._asked = None
        return None if answer is None else msgspec.json.decode(answer, type=Status)

    def decide(self, decision: CallbackDecision) -> None:
        """Answer a run that pauses between two epochs."""
        self.actor.decide.remote(self.address, decision.epoch, decision.stops)

    def close(self) -> None:
        """Nothing is open here."""

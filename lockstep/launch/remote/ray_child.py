"""A process that an actor of Ray watches on another machine. Ray carries text, never a vector."""

import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from lockstep.common.runtime.clock import Clock, SystemClock
from lockstep.common.transport.port import Frame, Frames
from lockstep.launch.child import WatchedProcess

#: The exit code of a process whose machine is gone: as if somebody had killed it.
LOST = -int(signal.SIGKILL)

#: Seconds between two polls, and for an answer of an actor that may be gone.
POLL_S, ANSWER_S = 0.05, 5.0


@dataclass
class RayChild(WatchedProcess):
    """One process of a run, on a node that Ray has chosen or is to choose."""

    #: The handle of a `LaunchAgent`.
    actor: Any
    #: What it was asked last: first to start the process, then for its news.
    asked: Any
    clock: Clock = field(default_factory=SystemClock)
    _pid: int = 0
    _node: str = ""
    _code: int | None = None
    #: Bytes of its log that have arrived.
    _known_bytes: int = 0

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def code(self) -> int:
        assert self._code is not None
        return self._code

    def place(self) -> str:
        self.wait(0.0)
        return f"pid {self._pid} on {self._node}" if self._node else "not placed yet"

    def first_line(self) -> str:
        asked = self.actor.first_line.remote()
        while not ray.wait([asked], timeout=POLL_S)[0]:
            continue
        return self._answer(asked) or ""

    def rest(self) -> bytes:
        return b"" if self.is_lost else self._answer(self.actor.rest.remote()) or b""

    def wait(self, timeout_s: float) -> bool:
        deadline = self.clock.now() + timeout_s
        while not self._take_news(max(0.0, deadline - self.clock.now())):
            left_s = deadline - self.clock.now()
            if left_s <= 0.0:
                return False
            threading.Event().wait(min(POLL_S, left_s))
        return True

    def send(self, number: signal.Signals) -> None:
        if self._code is None and self._node:
            self.actor.send.remote(int(number))

    def end(self, grace_s: float) -> None:
        self.wait(0.0)
        if self._node and not self.is_lost:
            self.wait(grace_s)
            self._answer(self.actor.end.remote(0.0))
        ray.kill(self.actor)
        self._code = LOST if self._code is None else self._code

    def _take_news(self, timeout_s: float) -> bool:
        """Take the news that come in time, and ask for the next; return whether the process is gone."""
        if self._code is not None:
            return True
        try:
            self._pid, self._node, words, self._code = ray.get(self.asked, timeout=timeout_s)
            self.log.add(words)
            self._known_bytes += len(words)
        except ray.exceptions.GetTimeoutError:
            return False
        except ray.exceptions.RayError as error:
            # News that a broken connection has cost can be asked for again; a start cannot.
            if not (self._node and isinstance(error, ray.exceptions.ActorUnavailableError)):
                self._lose()
        self.asked = self.actor.news.remote(self._known_bytes)
        return self._code is not None

    def _answer(self, asked: Any) -> Any:
        """Return what an actor answers, None if it does not in time, or never will."""
        try:
            return ray.get(asked, timeout=ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:
            self._lose()
            return None

    def _lose(self) -> None:
        self.is_lost = True
        self._code = LOST if self._code is None else self._code


@dataclass
class RayPort:
    """A connection to a server through the actor on its node: there may be no way to it from here."""

    actor: Any
    address: str
    _sent: list[bytes] = field(default_factory=list)
    _asked: Any = None

    def send(self, frames: Frames, timeout_s: float = 0.0) -> None:
        self._sent = [bytes(frame) for frame in frames]
        self.actor.tell_server.remote(self.address, self._sent)

    def receive(self, timeout_s: float | None) -> list[memoryview] | None:
        self._asked = self._asked or self.actor.hear_server.remote(timeout_s)
        try:
            frames: Sequence[Frame] | None = ray.get(self._asked, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayError:
            # A broken connection, which may have cost the question, or a server that is gone.
            frames = None
            self.send(self._sent)
        self._asked = None
        return None if frames is None else [memoryview(frame) for frame in frames]

    def close(self, linger_s: float = 0.0) -> None:
        """The actor has the connection, and closes it at its end."""

"""A process of a team that is not its leader: it has no connection, and works on what the leader orders. A shell."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lockstep.common.errors import LockstepError
from lockstep.common.files.sanitize import one_line
from lockstep.common.protocol.messages import Welcome
from lockstep.common.statemachine.client import Exit
from lockstep.worker.setup import LoadedRun, Loader, gather
from lockstep.worker.team.meeting import Meeting, Session
from lockstep.worker.team.member import TeamMember
from lockstep.worker.team.progress import OrderOutcome
from lockstep.worker.team.session import TeamContext, follow

#: Most seconds that a process sleeps until it looks by itself whether there is something to do.
SLEEP_S = 1.0

#: The exit codes of a process that was interrupted, and of one whose run is not what it can compute.
INTERRUPTED, UNFIT = 130, 2


def never() -> bool:
    """Return False."""
    return False


@dataclass
class TeamProcess:
    """One process, and what it works with in the run that its leader is in."""

    context: TeamContext
    meeting: Meeting
    load: Loader
    cache: Path | None = None
    ended: Exit | None = None
    #: The session that was looked at last.
    _number: int = 0
    _member: TeamMember | None = None
    #: The run that the leader has announced last, with the leader's place in it, and its job, model and data.
    _loaded: tuple[Welcome, LoadedRun] | None = None

    def __post_init__(self) -> None:
        before = self.meeting.session()
        if before is not None and before.welcome is None and before.code not in (0, UNFIT):
            # Of a leader that failed before this process began, and is started again as this process was.
            self._number = before.number

    def run(self, is_over: Callable[[], bool] = never) -> Exit:
        """Work until the leader has no run any more, or the process is interrupted, or it is over while it waits."""
        try:
            while self.ended is None:
                if not self.step() and is_over():
                    self.ended = Exit(code=0, reason="")
        except KeyboardInterrupt:
            self.ended = Exit(code=INTERRUPTED, reason="interrupted")
        finally:
            self.close()
        return self.ended

    def deadline(self) -> float | None:
        """Return when `step` has something to do although no process rings."""
        member = self._member
        return None if member is None else member.due()

    def step(self) -> bool:
        """Do the work that is due, or wait until another process rings; return whether there was anything to do."""
        member = self._member
        if member is not None and member.is_busy:
            return self._work(member)
        if self._begin_next():
            return True
        return self._sleep(SLEEP_S)

    def _work(self, member: TeamMember) -> bool:
        now, due = self.context.clock.now(), member.due()
        if due is not None and due > now:
            return self._sleep(due - now)
        outcome = member.advance()
        if outcome is OrderOutcome.FAILED:
            self.context.say(f"process {self.meeting.process} of the team: {one_line(member.error)}")
        return True

    def _begin_next(self) -> bool:
        """Begin with a new session or a new order, if there is one."""
        session = self.meeting.session() if self._is_over() else None
        if session is not None:
            self._join(session)
            return True
        member = self._member
        order = None if member is None else member.newest()
        if member is None or order is None:
            return False
        member.wake_up()
        try:
            member.begin(order)
        except LockstepError:
            # The memory of the session is gone: the leader makes another one.
            self._leave()
        return True

    def _join(self, session: Session) -> None:
        self._leave()
        self._number, welcome = session.number, session.welcome
        if welcome is None:
            self.ended = Exit(code=session.code, reason="")
        else:
            self._prepare(session, welcome)

    def _prepare(self, session: Session, welcome: Welcome) -> None:
        try:
            loaded = self._loaded_for(welcome)
            if session.folder:
                self._member = follow(session, welcome, loaded, self.context, self.meeting.process)
                self.context.say(f"process {self.meeting.process} of the team takes part")
        except LockstepError as error:
            self.context.say(f"process {self.meeting.process} of the team does not take part: {error}")
        except Exception:  # noqa: BLE001  # a user's model may raise anything: the leader meets it too, and reports it
            self.context.say(f"process {self.meeting.process} of the team: {traceback.format_exc()}")

    def _loaded_for(self, welcome: Welcome) -> LoadedRun:
        """Return what a run is computed with: it may have been foretold."""
        known = self._loaded
        if known is None or known[0] != welcome:
            known = self._loaded = welcome, gather(welcome, self.load, self.cache)
        return known[1]

    def _leave(self) -> None:
        if self._member is not None:
            self._member.close()
            self._member = None

    # Sleep

    def _sleep(self, timeout_s: float) -> bool:
        """Show that we sleep, and look once more; if that is done already, wait until another process rings."""
        member = self._member
        if member is None:
            self.meeting.wait(timeout_s)
            return False
        if not member.falls_asleep():
            return True
        is_rung = self.meeting.wait(timeout_s)
        member.look_again()
        if not is_rung and self._is_over():
            member.stop()
        return False

    def _is_over(self) -> bool:
        """Tell whether the leader has begun with another session."""
        session = self.meeting.session()
        return session is not None and session.number != self._number

    def close(self) -> None:
        """Let go of everything."""
        self._leave()
        self.meeting.close()

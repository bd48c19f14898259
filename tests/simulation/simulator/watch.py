"""Checks the processes of a simulated run while they run and when they end, and records the run's outcome."""

from dataclasses import dataclass, field
from pathlib import Path

from lockstep.common.errors import FailureKind
from lockstep.common.statemachine.client import Exit
from tests.simulation.simulator.processes import server_of
from tests.simulation.simulator.world import VARYING, Process, World

#: Why a process may end that never hears of the run's success: it lost the server, or was interrupted before.
_LOST = {FailureKind.UNREACHABLE, FailureKind.SERVER_LOST, FailureKind.STOPPED, FailureKind.INTERRUPTED}


@dataclass
class RunWatch:
    """The outcome of a run, and the weights of its processes, which only get newer."""

    world: World
    #: The folder of the simulation.
    root: Path
    #: The folders in which the run has succeeded; there may be several.
    finished: list[Path] = field(default_factory=list)
    #: Why the run was stopped: two workers disagreed, or a process broke the protocol.
    failure: str = ""
    #: Process -> the step of the weights that it last had.
    _steps: dict[str, int | None] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """True if the run has succeeded, or was stopped."""
        return bool(self.finished or self.failure)

    def fail(self, failure: str) -> None:
        """Stop the run."""
        self.failure = self.failure or failure

    def report(self, process: Process, text: str) -> None:
        """Record a report of a process."""
        if not process.is_dead:  # otherwise it was killed before it could report this
            process.tick()
            self.world.record(process.name, f"reports: {self.plain(text)}")

    def plain(self, text: str) -> str:
        """Return the first line of a text, without what differs in every run."""
        return VARYING.sub("MEMORY", text.replace(str(self.root), "ROOT")).partition("\n")[0]

    def check(self, process: Process) -> None:
        """Check that weights only get newer, and that the protocol is kept."""
        name, step = process.name, None if process.shell is None else process.shell.weights_step()
        server = server_of(process)
        if server is not None:
            # One that has lost a shard resumes from a checkpoint.
            name = server.server.coordinator.info.part
            if server.server.inbox.blocklist.broken.count:
                self.fail(f"{process.name} has refused a peer that broke the protocol")
        before = self._steps.get(name)
        assert before is None or step is None or step >= before, f"{name} went back from weights {before} to {step}"
        self._steps[name] = step

    def ended(self, process: Process, *, is_killed: bool) -> Exit | None:
        """Record the end of a process; return with what it has ended, None if it was killed."""
        self.check(process)
        ended = None if is_killed or process.shell is None else process.shell.exit()
        reason = "" if ended is None else self.plain(ended.reason)
        if ended is not None and ended.kind is FailureKind.PROTOCOL:
            self.fail(f"{process.name} reports: {reason}")
        if self.finished and ended is not None and ended.kind is not None and ended.kind not in _LOST:
            self.fail(f"{process.name} ends, although the run is done, with: {reason}")
        self.world.record(process.name, "is killed" if is_killed else f"ends{': ' * bool(reason)}{reason}")
        self._record_outcome(process, ended)
        return ended

    def _record_outcome(self, process: Process, ended: Exit | None) -> None:
        """Record whether the run has succeeded with the end of a server, or has failed for good."""
        server = server_of(process)
        if server is not None and ended is not None and ended.kind is FailureKind.AUDIT:
            self.fail(ended.reason)
        elif server is not None and server.server.ended is not None and server.server.ended.kind is None:
            self.finished.append(server.run.folder)

"""The server of a run: its loop, and the shell that carries out the effects of the coordinator. Decides nothing.

Its parts handle messages and deadlines: slices of the weights, workers, and the features that a run may have.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import assert_never

from lockstep.common.errors import RESUMED_HERE, FailureKind
from lockstep.common.protocol.messages import Lease
from lockstep.common.runtime.interrupts import Terminated, held_back
from lockstep.common.statemachine.loop import EventLoop, TimedPart
from lockstep.common.statemachine.machine import Report, carry_out
from lockstep.ps.coordinator import effects, events
from lockstep.ps.coordinator.coordinator import Coordinator
from lockstep.ps.records.recorder import MetricsRecorder
from lockstep.ps.server.inbox import ServerInbox
from lockstep.ps.server.step_committer import StepCommitter
from lockstep.ps.server.workers import WorkerMessages
from lockstep.ps.shard.outbox import Outbox
from lockstep.ps.shard.shard import Shard
from lockstep.ps.shard_group.group import SliceGroup

#: The ends of a run that a person has interrupted, and of one that the system has, which may start the server again.
INTERRUPTED = effects.Finish(failure="interrupted", kind=FailureKind.INTERRUPTED)
STOPPED = effects.Finish(failure="stopped", kind=FailureKind.STOPPED)

#: Seconds between two calls of `watch`, which shows the progress.
WATCH_S = 0.1


@dataclass
class Server:
    """One run at the server; a factory builds it whole."""

    coordinator: Coordinator
    inbox: ServerInbox
    outbox: Outbox
    #: Parts that act at certain times.
    timed: Sequence[TimedPart[events.Event]]
    _: KW_ONLY
    workers: WorkerMessages
    #: All slices of the weights.
    group: SliceGroup
    #: Makes steps last: updates, records, checkpoints, the result.
    committer: StepCommitter
    report: Callable[[Report], None]
    loop: EventLoop[events.Event] = field(init=False)

    def __post_init__(self) -> None:
        self.loop = EventLoop(self.group.clock, self.inbox, self.timed, self._dispatch, messages_first=False)

    @property
    def recorder(self) -> MetricsRecorder:
        """The records of the run."""
        return self.committer.recorder

    @property
    def shard(self) -> Shard:
        """The server's own slice."""
        return self.group.own.shard

    @property
    def ended(self) -> effects.Finish | None:
        """The end of the run, None before it is written."""
        return self.committer.ended

    def run(self, watch: Callable[[], None] = lambda: None) -> effects.Finish:
        """Serve until the run is over; `watch` is called now and then, and at the end, to show the progress."""
        interrupted: effects.Finish | None = None
        try:
            self._serve(watch)
        except KeyboardInterrupt as error:
            interrupted = STOPPED if isinstance(error, Terminated) else INTERRUPTED
            self.interrupt(interrupted)
        except OSError as error:
            text = f"the server cannot write to the run's folder: {error.strerror}"
            self.group.end(effects.Finish(failure=text))
            self._dismiss(effects.Finish(failure=text))
            raise
        finally:
            self.recorder.close()
        if self.ended is not None and (interrupted is None or self.ended.kind not in RESUMED_HERE):
            return self.ended
        # An interrupt before the end, or between the run's end and the writing of its result, which then is not there.
        assert interrupted is not None
        if self.ended is None:
            self._dismiss(interrupted)
        return interrupted

    def _serve(self, watch: Callable[[], None]) -> None:
        """Serve until the end."""
        shown = -math.inf
        while self.ended is None:
            self.step()
            now = self.loop.clock.now()
            if self.ended is not None or now >= shown + WATCH_S:
                shown = now
                watch()
                self.recorder.flush_if_due(now)

    def interrupt(self, end: effects.Finish = INTERRUPTED) -> None:
        """End the run now, after the steps that a team has made by itself."""
        assert end.kind is not None
        with held_back():
            self._dispatch([events.PartFailed(text=end.failure, kind=end.kind)])

    def step(self) -> bool:
        """Handle the passing of time, or one message; return whether anything happened."""
        return self.loop.step()

    def deadline(self) -> float | None:
        """Return when something is due although no message comes."""
        return self.loop.deadline()

    # Events become effects, and effects are carried out

    def _dispatch(self, happened: Sequence[events.Event]) -> None:
        """Let the coordinator handle events, and whatever its effects lead to."""
        carry_out(self.coordinator, happened, self._perform, self.loop.clock.now)
        if self.ended is not None and self.coordinator.ended is None:
            self._dismiss(self.ended)
        # Afterwards: what workers wait for has been sent.
        self.committer.record_completed()
        if self.ended is None:
            self.committer.take_due_checkpoint()

    def _dismiss(self, ended: effects.Finish) -> None:
        """Let workers go, now that all processes can report the same end."""
        for effect in self.coordinator.dismiss(ended):
            self._perform(effect)

    def _perform(self, effect: effects.Effect) -> Sequence[events.Event]:
        match effect:
            case effects.Send(peer=peer, message=Lease() as lease):
                return self.workers.send_lease(peer, lease)
            case effects.Send(peer=peer, message=message):
                return self.outbox.send(peer, message)
            case effects.ForgetWorker():
                return self.workers.forget(effect.rank)
            case effects.UpdateWeights():
                return self.committer.update(effect)
            case effects.RecordEpoch():
                self.committer.record_epoch(effect)
            case effects.Report():
                self.report(effect)
            case effects.Finish():
                self.committer.end(effect)
            case _:
                assert_never(effect)
        return []

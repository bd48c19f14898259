"""The coordinator's phases, and the table of what may happen in each, which it obeys and the docs draw. Pure."""

from enum import Enum

from lockstep.common.protocol.messages import Work
from lockstep.common.statemachine.transitions import IGNORED, table_of
from lockstep.ps.coordinator import events
from lockstep.ps.run.info import RunInfo
from lockstep.ps.run.plan import Round


class RunPhase(Enum):
    """The phases of a run."""

    #: Fewer servers than the run needs: workers that join meanwhile wait.
    AWAITING_SERVERS = "waiting for servers"
    #: Fewer workers than the run needs to begin.
    AWAITING_WORKERS = "waiting for workers"
    #: Micro-batches of a training step are leased and computed.
    TRAINING = "training"
    #: Chunks of the validation set, or of the test set, are leased and computed.
    EVALUATING = "evaluating"
    #: All results of a step are there, and some of its micro-batches are computed again.
    AUDITING = "auditing"
    #: All results of a step are there, and not all servers have made its update yet.
    UPDATING = "updating"
    #: Workers make steps by themselves; a status shows it as training.
    MULTI_STEP = "training in a multi-step lease"
    #: Between two epochs, until callbacks have decided whether the run continues.
    PAUSED = "waiting for callbacks"
    #: The run has ended well.
    FINISHED = "finished"
    #: The run has ended, and its reason is recorded.
    FAILED = "failed"


#: The phase of a round of that work.
PHASES: dict[Work, RunPhase] = {
    "train": RunPhase.TRAINING,
    "audit": RunPhase.AUDITING,
    "validate": RunPhase.EVALUATING,
    "evaluate": RunPhase.EVALUATING,
}


def initial_phase(info: RunInfo, at: Round) -> RunPhase:
    """Return the phase in which a round begins: callbacks are asked before each epoch but the first.

    Before it, and not after the last: so a run that resumes from a checkpoint between two epochs asks again.
    """
    begins_epoch = at.work == "train" and at.step > 0 and at.step % info.plan.steps_per_epoch == 0
    return RunPhase.PAUSED if info.pauses and begins_epoch else PHASES[at.work]


_S, _W = frozenset({RunPhase.AWAITING_SERVERS}), frozenset({RunPhase.AWAITING_WORKERS})
_T, _E = frozenset({RunPhase.TRAINING}), frozenset({RunPhase.EVALUATING})
_A, _U, _P = frozenset({RunPhase.AUDITING}), frozenset({RunPhase.UPDATING}), frozenset({RunPhase.PAUSED})
_X = frozenset({RunPhase.MULTI_STEP})
_END, _FAIL = frozenset({RunPhase.FINISHED}), frozenset({RunPhase.FAILED})

#: What an audit may turn into: its end is that of the step.
_AUDIT = _A | _U

#: For each event, what may follow in the phases AWAITING_SERVERS (_S), AWAITING_WORKERS (_W), TRAINING (_T),
#: EVALUATING (_E), AUDITING (_A), UPDATING (_U), MULTI_STEP (_X), PAUSED (_P), FINISHED (_END) and FAILED (_FAIL).
_TABLE: dict[type[events.Event], tuple[frozenset[RunPhase], ...]] = {
    events.WorkerJoined: (_S, _W, _T, _E, _A, _U, _X, _P, _END, _FAIL),
    # A run that resumes from a checkpoint may begin with an evaluation. An audit waits for nobody: what may leave it
    # without a worker ends it.
    events.WorkerPrepared: (IGNORED, _W | _T | _E | _P, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    events.WorkerAdvanced: (IGNORED, IGNORED, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    events.ResultReceived: (
        IGNORED,
        IGNORED,
        _T | _A | _U,
        _T | _E | _P | _END,
        _AUDIT | _FAIL,
        _U,
        _X,
        _P,
        IGNORED,
        IGNORED,
    ),
    events.LeaseFailed: (
        IGNORED,
        IGNORED,
        _T | _FAIL,
        _E | _FAIL,
        _AUDIT | _FAIL,
        IGNORED,
        IGNORED,
        IGNORED,
        IGNORED,
        IGNORED,
    ),
    events.LossDiverged: (
        IGNORED,
        IGNORED,
        _T | _FAIL,
        _E | _FAIL,
        _A | _FAIL,
        IGNORED,
        IGNORED,
        IGNORED,
        IGNORED,
        IGNORED,
    ),
    events.LeaseDropped: (IGNORED, IGNORED, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    events.WorkerLeft: (_S, _W, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    # After the end a worker is told so; nothing else is of use any more.
    events.WorkerPinged: (_S, _W, _T, _E, _AUDIT, _U, _X, _P, _END, _FAIL),
    events.StatusRequested: (_S, _W, _T, _E, _A, _U, _X, _P, _END, _FAIL),
    events.ServersReady: (_W, *[IGNORED] * 9),
    events.CallbacksDecided: (*[IGNORED] * 7, _P | _T | _END, IGNORED, IGNORED),
    events.SumsAcknowledged: (IGNORED, IGNORED, _T | _A | _U, IGNORED, _A, *[IGNORED] * 5),
    events.StepUpdated: (*[IGNORED] * 5, _T | _E | _X | _END, *[IGNORED] * 4),
    events.StepMade: (*[IGNORED] * 6, _X, *[IGNORED] * 3),
    events.MultiStepLeaseEnded: (*[IGNORED] * 6, _T, *[IGNORED] * 3),
    events.MultiStepLeaseAnswered: (IGNORED, IGNORED, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    events.MultiStepLeaseRefused: (*[IGNORED] * 6, _T, *[IGNORED] * 3),
    events.ServerLost: (*[_FAIL] * 8, IGNORED, IGNORED),
    events.WeightsNotFinite: (IGNORED, IGNORED, *[_FAIL] * 6, IGNORED, IGNORED),
    events.TimePassed: (_S, _W, _T, _E, _AUDIT, _U, _X, _P, IGNORED, IGNORED),
    events.Interrupted: (*[_FAIL] * 8, IGNORED, IGNORED),
}

#: For each phase and event the phases that may follow, or `IGNORED`.
TRANSITIONS = table_of(RunPhase, _TABLE)

"""The coordinator's phases, and what may happen in each: the table that the coordinator obeys and the docs draw."""

from enum import Enum

from common.protocol.messages import Work
from common.statemachine.transitions import IGNORED, TransitionTable
from ps.coordinator.events import (
    CallbacksDecided,
    Event,
    Interrupted,
    LeaseFailed,
    LossDiverged,
    ResultReceived,
    ServerLost,
    ServersReady,
    StatusRequested,
    StepUpdated,
    SumsAcknowledged,
    TimePassed,
    WeightsNotFinite,
    WorkerAdvanced,
    WorkerAsked,
    WorkerJoined,
    WorkerLeft,
    WorkerPrepared,
)


class RunPhase(Enum):
    """What the run is doing."""

    #: Fewer servers than the run is to have: workers that come meanwhile wait.
    MUSTERING = "waiting for servers"
    #: Fewer workers than the run is to begin with.
    GATHERING = "waiting for workers"
    TRAINING = "training"
    EVALUATING = "evaluating"
    #: All results of a step are there, and some of its pieces are computed again.
    AUDITING = "auditing"
    #: All results of a step are there, and other servers have not made its update yet.
    UPDATING = "updating"
    #: Between two epochs, until callbacks say that the run goes on.
    PAUSED = "waiting for callbacks"
    FINISHED = "finished"
    FAILED = "failed"


#: What the run does in a round of that work.
PHASES: dict[Work, RunPhase] = {
    "train": RunPhase.TRAINING,
    "audit": RunPhase.AUDITING,
    "validate": RunPhase.EVALUATING,
    "evaluate": RunPhase.EVALUATING,
}

#: A round may end by a result, and the next one may be training, evaluating, or none.
_ONWARD = frozenset({RunPhase.TRAINING, RunPhase.EVALUATING, RunPhase.FINISHED})

#: What ends the audit of a step ends the step.
_STEP_OVER = _ONWARD | {RunPhase.AUDITING, RunPhase.UPDATING}
_HERE_OR_FAILED = {phase: frozenset({phase, RunPhase.FAILED}) for phase in RunPhase}

#: For each phase and event the phases that may follow; the empty set means that the event is ignored.
TRANSITIONS: TransitionTable[RunPhase, Event] = {
    (RunPhase.MUSTERING, WorkerJoined): frozenset({RunPhase.MUSTERING}),
    (RunPhase.MUSTERING, WorkerPrepared): IGNORED,
    (RunPhase.MUSTERING, WorkerAdvanced): IGNORED,
    (RunPhase.MUSTERING, ResultReceived): IGNORED,
    (RunPhase.MUSTERING, LeaseFailed): IGNORED,
    (RunPhase.MUSTERING, LossDiverged): IGNORED,
    (RunPhase.MUSTERING, WorkerLeft): frozenset({RunPhase.MUSTERING}),
    (RunPhase.MUSTERING, WorkerAsked): frozenset({RunPhase.MUSTERING}),
    (RunPhase.MUSTERING, StatusRequested): frozenset({RunPhase.MUSTERING}),
    (RunPhase.MUSTERING, ServersReady): frozenset({RunPhase.GATHERING}),
    (RunPhase.MUSTERING, TimePassed): frozenset({RunPhase.MUSTERING}),
    (RunPhase.MUSTERING, Interrupted): frozenset({RunPhase.FAILED}),
    (RunPhase.GATHERING, WorkerJoined): frozenset({RunPhase.GATHERING}),
    # A run that goes on from a checkpoint may begin with an evaluation.
    (RunPhase.GATHERING, WorkerPrepared): frozenset(
        {RunPhase.GATHERING, RunPhase.TRAINING, RunPhase.EVALUATING, RunPhase.PAUSED}
    ),
    (RunPhase.GATHERING, WorkerAdvanced): IGNORED,
    (RunPhase.GATHERING, ResultReceived): IGNORED,
    (RunPhase.GATHERING, LeaseFailed): IGNORED,
    (RunPhase.GATHERING, LossDiverged): IGNORED,
    (RunPhase.GATHERING, WorkerLeft): frozenset({RunPhase.GATHERING}),
    (RunPhase.GATHERING, WorkerAsked): frozenset({RunPhase.GATHERING}),
    (RunPhase.GATHERING, StatusRequested): frozenset({RunPhase.GATHERING}),
    (RunPhase.GATHERING, TimePassed): frozenset({RunPhase.GATHERING}),
    (RunPhase.GATHERING, Interrupted): frozenset({RunPhase.FAILED}),
    (RunPhase.TRAINING, WorkerJoined): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, WorkerPrepared): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, WorkerAdvanced): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, ResultReceived): _STEP_OVER,
    (RunPhase.TRAINING, LeaseFailed): _HERE_OR_FAILED[RunPhase.TRAINING],
    (RunPhase.TRAINING, LossDiverged): _HERE_OR_FAILED[RunPhase.TRAINING],
    (RunPhase.TRAINING, WorkerLeft): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, WorkerAsked): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, StatusRequested): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, TimePassed): frozenset({RunPhase.TRAINING}),
    (RunPhase.TRAINING, Interrupted): frozenset({RunPhase.FAILED}),
    (RunPhase.EVALUATING, WorkerJoined): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, WorkerPrepared): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, WorkerAdvanced): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, ResultReceived): _ONWARD | {RunPhase.PAUSED},
    (RunPhase.EVALUATING, LeaseFailed): _HERE_OR_FAILED[RunPhase.EVALUATING],
    (RunPhase.EVALUATING, LossDiverged): _HERE_OR_FAILED[RunPhase.EVALUATING],
    (RunPhase.EVALUATING, WorkerLeft): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, WorkerAsked): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, StatusRequested): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, TimePassed): frozenset({RunPhase.EVALUATING}),
    (RunPhase.EVALUATING, Interrupted): frozenset({RunPhase.FAILED}),
    (RunPhase.TRAINING, SumsAcknowledged): frozenset({RunPhase.TRAINING, RunPhase.AUDITING, RunPhase.UPDATING}),
    # The audit waits for nobody: it is over, too, where those are gone who could go on with it.
    (RunPhase.AUDITING, WorkerJoined): frozenset({RunPhase.AUDITING}),
    (RunPhase.AUDITING, WorkerPrepared): _STEP_OVER,
    (RunPhase.AUDITING, WorkerAdvanced): _STEP_OVER,
    (RunPhase.AUDITING, ResultReceived): _STEP_OVER | {RunPhase.FAILED},
    (RunPhase.AUDITING, LeaseFailed): _STEP_OVER | {RunPhase.FAILED},
    (RunPhase.AUDITING, LossDiverged): frozenset({RunPhase.AUDITING, RunPhase.FAILED}),
    (RunPhase.AUDITING, WorkerLeft): _STEP_OVER,
    (RunPhase.AUDITING, WorkerAsked): _STEP_OVER,
    (RunPhase.AUDITING, StatusRequested): frozenset({RunPhase.AUDITING}),
    (RunPhase.AUDITING, SumsAcknowledged): frozenset({RunPhase.AUDITING}),
    (RunPhase.AUDITING, ServersReady): IGNORED,
    (RunPhase.AUDITING, StepUpdated): IGNORED,
    (RunPhase.AUDITING, ServerLost): frozenset({RunPhase.FAILED}),
    (RunPhase.AUDITING, TimePassed): _STEP_OVER,
    (RunPhase.AUDITING, Interrupted): frozenset({RunPhase.FAILED}),
    # What comes of the step now is late.
    (RunPhase.UPDATING, WorkerJoined): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, WorkerPrepared): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, WorkerAdvanced): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, ResultReceived): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, LeaseFailed): IGNORED,
    (RunPhase.UPDATING, LossDiverged): IGNORED,
    (RunPhase.UPDATING, WorkerLeft): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, WorkerAsked): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, StatusRequested): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, StepUpdated): _ONWARD,
    (RunPhase.UPDATING, TimePassed): frozenset({RunPhase.UPDATING}),
    (RunPhase.UPDATING, Interrupted): frozenset({RunPhase.FAILED}),
    # What comes of the evaluation now is late.
    (RunPhase.PAUSED, WorkerJoined): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, WorkerPrepared): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, WorkerAdvanced): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, ResultReceived): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, LeaseFailed): IGNORED,
    (RunPhase.PAUSED, LossDiverged): IGNORED,
    (RunPhase.PAUSED, WorkerLeft): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, WorkerAsked): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, StatusRequested): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, CallbacksDecided): frozenset({RunPhase.PAUSED, RunPhase.TRAINING, RunPhase.FINISHED}),
    (RunPhase.PAUSED, SumsAcknowledged): IGNORED,
    (RunPhase.PAUSED, StepUpdated): IGNORED,
    (RunPhase.PAUSED, TimePassed): frozenset({RunPhase.PAUSED}),
    (RunPhase.PAUSED, Interrupted): frozenset({RunPhase.FAILED}),
    **{(phase, ServersReady): IGNORED for phase in RunPhase if phase is not RunPhase.MUSTERING},
    **{(phase, CallbacksDecided): IGNORED for phase in RunPhase if phase is not RunPhase.PAUSED},
    **{
        (phase, SumsAcknowledged): IGNORED
        for phase in (RunPhase.MUSTERING, RunPhase.GATHERING, RunPhase.EVALUATING, RunPhase.UPDATING)
    },
    **{
        (phase, StepUpdated): IGNORED
        for phase in (RunPhase.MUSTERING, RunPhase.GATHERING, RunPhase.TRAINING, RunPhase.EVALUATING)
    },
    **{
        (phase, ServerLost): frozenset({RunPhase.FAILED})
        for phase in (
            RunPhase.MUSTERING,
            RunPhase.GATHERING,
            RunPhase.TRAINING,
            RunPhase.EVALUATING,
            RunPhase.UPDATING,
            RunPhase.PAUSED,
        )
    },
    **{(phase, WeightsNotFinite): IGNORED for phase in (RunPhase.MUSTERING, RunPhase.GATHERING)},
    **{
        (phase, WeightsNotFinite): frozenset({RunPhase.FAILED})
        for phase in (RunPhase.TRAINING, RunPhase.AUDITING, RunPhase.UPDATING, RunPhase.EVALUATING, RunPhase.PAUSED)
    },
    # After the end a worker that comes late is told so; whatever else arrives is of no use any more.
    **{
        (phase, event): frozenset({phase}) if event in (WorkerJoined, WorkerAsked, StatusRequested) else IGNORED
        for phase in (RunPhase.FINISHED, RunPhase.FAILED)
        for event in (
            WorkerJoined,
            WorkerPrepared,
            WorkerAdvanced,
            ResultReceived,
            LeaseFailed,
            LossDiverged,
            WorkerLeft,
            WorkerAsked,
            StatusRequested,
            CallbacksDecided,
            ServersReady,
            SumsAcknowledged,
            StepUpdated,
            ServerLost,
            WeightsNotFinite,
            TimePassed,
            Interrupted,
        )
    },
}

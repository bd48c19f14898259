"""The coordinator's phases, and what may happen in each: the table that the coordinator obeys and the docs draw."""

from enum import Enum

from common.protocol.messages import Work
from ps.coordinator.events import (
    Event,
    Interrupted,
    LossDiverged,
    PieceFailed,
    ResultReceived,
    ServerLost,
    ServersReady,
    StatusRequested,
    StepUpdated,
    SumsStored,
    TimePassed,
    VerdictGiven,
    WeightsSpoilt,
    WorkerAdvanced,
    WorkerAsked,
    WorkerJoined,
    WorkerLeft,
    WorkerPrepared,
)


class Phase(Enum):
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
PHASES: dict[Work, Phase] = {
    "train": Phase.TRAINING,
    "audit": Phase.AUDITING,
    "validate": Phase.EVALUATING,
    "evaluate": Phase.EVALUATING,
}

#: Nothing happens: late and doubled messages end here, not in an `if`.
IGNORED: frozenset[Phase] = frozenset()

#: A round may end by a result, and the next one may be training, evaluating, or none.
_ONWARD = frozenset({Phase.TRAINING, Phase.EVALUATING, Phase.FINISHED})

#: What ends the audit of a step ends the step.
_STEP_OVER = _ONWARD | {Phase.AUDITING, Phase.UPDATING}
_HERE_OR_FAILED = {phase: frozenset({phase, Phase.FAILED}) for phase in Phase}

#: For each phase and event the phases that may follow; the empty set means that the event is ignored.
TRANSITIONS: dict[tuple[Phase, type[Event]], frozenset[Phase]] = {
    (Phase.MUSTERING, WorkerJoined): frozenset({Phase.MUSTERING}),
    (Phase.MUSTERING, WorkerPrepared): IGNORED,
    (Phase.MUSTERING, WorkerAdvanced): IGNORED,
    (Phase.MUSTERING, ResultReceived): IGNORED,
    (Phase.MUSTERING, PieceFailed): IGNORED,
    (Phase.MUSTERING, LossDiverged): IGNORED,
    (Phase.MUSTERING, WorkerLeft): frozenset({Phase.MUSTERING}),
    (Phase.MUSTERING, WorkerAsked): frozenset({Phase.MUSTERING}),
    (Phase.MUSTERING, StatusRequested): frozenset({Phase.MUSTERING}),
    (Phase.MUSTERING, ServersReady): frozenset({Phase.GATHERING}),
    (Phase.MUSTERING, TimePassed): frozenset({Phase.MUSTERING}),
    (Phase.MUSTERING, Interrupted): frozenset({Phase.FAILED}),
    (Phase.GATHERING, WorkerJoined): frozenset({Phase.GATHERING}),
    # A run that goes on from a checkpoint may begin with an evaluation.
    (Phase.GATHERING, WorkerPrepared): frozenset({Phase.GATHERING, Phase.TRAINING, Phase.EVALUATING, Phase.PAUSED}),
    (Phase.GATHERING, WorkerAdvanced): IGNORED,
    (Phase.GATHERING, ResultReceived): IGNORED,
    (Phase.GATHERING, PieceFailed): IGNORED,
    (Phase.GATHERING, LossDiverged): IGNORED,
    (Phase.GATHERING, WorkerLeft): frozenset({Phase.GATHERING}),
    (Phase.GATHERING, WorkerAsked): frozenset({Phase.GATHERING}),
    (Phase.GATHERING, StatusRequested): frozenset({Phase.GATHERING}),
    (Phase.GATHERING, TimePassed): frozenset({Phase.GATHERING}),
    (Phase.GATHERING, Interrupted): frozenset({Phase.FAILED}),
    (Phase.TRAINING, WorkerJoined): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, WorkerPrepared): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, WorkerAdvanced): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, ResultReceived): _STEP_OVER,
    (Phase.TRAINING, PieceFailed): _HERE_OR_FAILED[Phase.TRAINING],
    (Phase.TRAINING, LossDiverged): _HERE_OR_FAILED[Phase.TRAINING],
    (Phase.TRAINING, WorkerLeft): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, WorkerAsked): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, StatusRequested): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, TimePassed): frozenset({Phase.TRAINING}),
    (Phase.TRAINING, Interrupted): frozenset({Phase.FAILED}),
    (Phase.EVALUATING, WorkerJoined): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, WorkerPrepared): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, WorkerAdvanced): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, ResultReceived): _ONWARD | {Phase.PAUSED},
    (Phase.EVALUATING, PieceFailed): _HERE_OR_FAILED[Phase.EVALUATING],
    (Phase.EVALUATING, LossDiverged): _HERE_OR_FAILED[Phase.EVALUATING],
    (Phase.EVALUATING, WorkerLeft): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, WorkerAsked): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, StatusRequested): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, TimePassed): frozenset({Phase.EVALUATING}),
    (Phase.EVALUATING, Interrupted): frozenset({Phase.FAILED}),
    (Phase.TRAINING, SumsStored): frozenset({Phase.TRAINING, Phase.AUDITING, Phase.UPDATING}),
    # The audit waits for nobody: it is over, too, where those are gone who could go on with it.
    (Phase.AUDITING, WorkerJoined): frozenset({Phase.AUDITING}),
    (Phase.AUDITING, WorkerPrepared): _STEP_OVER,
    (Phase.AUDITING, WorkerAdvanced): _STEP_OVER,
    (Phase.AUDITING, ResultReceived): _STEP_OVER | {Phase.FAILED},
    (Phase.AUDITING, PieceFailed): _STEP_OVER | {Phase.FAILED},
    (Phase.AUDITING, LossDiverged): frozenset({Phase.AUDITING, Phase.FAILED}),
    (Phase.AUDITING, WorkerLeft): _STEP_OVER,
    (Phase.AUDITING, WorkerAsked): _STEP_OVER,
    (Phase.AUDITING, StatusRequested): frozenset({Phase.AUDITING}),
    (Phase.AUDITING, SumsStored): frozenset({Phase.AUDITING}),
    (Phase.AUDITING, ServersReady): IGNORED,
    (Phase.AUDITING, StepUpdated): IGNORED,
    (Phase.AUDITING, ServerLost): frozenset({Phase.FAILED}),
    (Phase.AUDITING, TimePassed): _STEP_OVER,
    (Phase.AUDITING, Interrupted): frozenset({Phase.FAILED}),
    # What comes of the step now is late.
    (Phase.UPDATING, WorkerJoined): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, WorkerPrepared): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, WorkerAdvanced): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, ResultReceived): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, PieceFailed): IGNORED,
    (Phase.UPDATING, LossDiverged): IGNORED,
    (Phase.UPDATING, WorkerLeft): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, WorkerAsked): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, StatusRequested): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, StepUpdated): _ONWARD,
    (Phase.UPDATING, TimePassed): frozenset({Phase.UPDATING}),
    (Phase.UPDATING, Interrupted): frozenset({Phase.FAILED}),
    # What comes of the evaluation now is late.
    (Phase.PAUSED, WorkerJoined): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, WorkerPrepared): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, WorkerAdvanced): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, ResultReceived): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, PieceFailed): IGNORED,
    (Phase.PAUSED, LossDiverged): IGNORED,
    (Phase.PAUSED, WorkerLeft): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, WorkerAsked): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, StatusRequested): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, VerdictGiven): frozenset({Phase.PAUSED, Phase.TRAINING, Phase.FINISHED}),
    (Phase.PAUSED, SumsStored): IGNORED,
    (Phase.PAUSED, StepUpdated): IGNORED,
    (Phase.PAUSED, TimePassed): frozenset({Phase.PAUSED}),
    (Phase.PAUSED, Interrupted): frozenset({Phase.FAILED}),
    **{(phase, ServersReady): IGNORED for phase in Phase if phase is not Phase.MUSTERING},
    **{(phase, VerdictGiven): IGNORED for phase in Phase if phase is not Phase.PAUSED},
    **{(phase, SumsStored): IGNORED for phase in (Phase.MUSTERING, Phase.GATHERING, Phase.EVALUATING, Phase.UPDATING)},
    **{(phase, StepUpdated): IGNORED for phase in (Phase.MUSTERING, Phase.GATHERING, Phase.TRAINING, Phase.EVALUATING)},
    **{
        (phase, ServerLost): frozenset({Phase.FAILED})
        for phase in (
            Phase.MUSTERING,
            Phase.GATHERING,
            Phase.TRAINING,
            Phase.EVALUATING,
            Phase.UPDATING,
            Phase.PAUSED,
        )
    },
    **{(phase, WeightsSpoilt): IGNORED for phase in (Phase.MUSTERING, Phase.GATHERING)},
    **{
        (phase, WeightsSpoilt): frozenset({Phase.FAILED})
        for phase in (Phase.TRAINING, Phase.AUDITING, Phase.UPDATING, Phase.EVALUATING, Phase.PAUSED)
    },
    # After the end a worker that comes late is told so; whatever else arrives is of no use any more.
    **{
        (phase, event): frozenset({phase}) if event in (WorkerJoined, WorkerAsked, StatusRequested) else IGNORED
        for phase in (Phase.FINISHED, Phase.FAILED)
        for event in (
            WorkerJoined,
            WorkerPrepared,
            WorkerAdvanced,
            ResultReceived,
            PieceFailed,
            LossDiverged,
            WorkerLeft,
            WorkerAsked,
            StatusRequested,
            VerdictGiven,
            ServersReady,
            SumsStored,
            StepUpdated,
            ServerLost,
            WeightsSpoilt,
            TimePassed,
            Interrupted,
        )
    },
}

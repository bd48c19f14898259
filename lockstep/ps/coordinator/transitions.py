"""The coordinator's phases, and the table of what may happen in each, which it obeys and the docs draw. Pure."""

from enum import Enum

from lockstep.common.protocol.messages import (
    CallbackDecision,
    ComputeFailed,
    Diverged,
    Dropped,
    Join,
    Message,
    Ping,
    Ready,
    Result,
    SamplesRequest,
    SumsFrame,
    Work,
)
from lockstep.common.statemachine.machine import IGNORED, leads, stays, table_of
from lockstep.ps.coordinator import events


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
    #: A team makes steps by itself; a status shows it as training.
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


P = RunPhase

#: The phases of a run that has not ended, and those of them in which workers may have work.
OPEN = frozenset(RunPhase) - {P.FINISHED, P.FAILED}
WORKING = OPEN - {P.AWAITING_SERVERS, P.AWAITING_WORKERS}

#: Phases after an event that may occur at any time while there is work. An audit does not wait: an event after which no
#: worker is left ends it, and with it the step. A multi-step lease ends at any time.
_MULTI_STEP = {P.MULTI_STEP: {P.MULTI_STEP, P.TRAINING, P.FAILED}}
_AUDITING = {P.AUDITING: {P.AUDITING, P.UPDATING, P.FAILED}}
_ANY_TIME = stays(*WORKING) | _AUDITING | _MULTI_STEP

#: The phases that may follow; in phases that are not named, nothing happens.
TRANSITIONS = table_of(
    RunPhase,
    {
        Join: stays(*RunPhase) | _MULTI_STEP,
        # A run that resumes from a checkpoint may begin with an evaluation.
        Ready: _ANY_TIME | {P.AWAITING_WORKERS: {P.AWAITING_WORKERS, P.TRAINING, P.EVALUATING, P.PAUSED}},
        SumsFrame: _ANY_TIME,
        SamplesRequest: _ANY_TIME,
        Result: _ANY_TIME
        | {
            P.TRAINING: {P.TRAINING, P.AUDITING, P.UPDATING, P.FAILED},
            P.EVALUATING: {P.TRAINING, P.EVALUATING, P.PAUSED, P.FINISHED, P.FAILED},
            P.AUDITING: {P.AUDITING, P.UPDATING, P.FAILED},
        },
        ComputeFailed: {
            P.TRAINING: {P.TRAINING, P.FAILED},
            P.EVALUATING: {P.EVALUATING, P.FAILED},
            P.AUDITING: {P.AUDITING, P.UPDATING, P.FAILED},
        },
        Diverged: {
            P.TRAINING: {P.TRAINING, P.FAILED},
            P.EVALUATING: {P.EVALUATING, P.FAILED},
            P.AUDITING: {P.AUDITING, P.FAILED},
        },
        Dropped: _ANY_TIME,
        events.PeerLeft: stays(*OPEN) | _ANY_TIME,
        # After the end a worker that pings is told so.
        Ping: stays(*RunPhase) | _ANY_TIME,
        CallbackDecision: {P.PAUSED: {P.PAUSED, P.TRAINING, P.FINISHED, P.FAILED}},
        events.ServersReady: {P.AWAITING_SERVERS: {P.AWAITING_WORKERS}},
        events.SumsAcknowledged: {P.TRAINING: {P.TRAINING, P.AUDITING, P.UPDATING, P.FAILED}, P.AUDITING: {P.AUDITING}},
        events.StepUpdated: {P.UPDATING: {P.TRAINING, P.EVALUATING, P.MULTI_STEP, P.FINISHED, P.FAILED}},
        events.PartFailed: leads({P.FAILED}, *OPEN),
        events.TimePassed: stays(*OPEN) | _ANY_TIME,
    },
    otherwise=IGNORED,
)

#: The messages of workers, and of the process that runs callbacks, on which the coordinator decides. `SumsFrame` and
#: `SamplesRequest` only show that the worker works: they come once the server has carried them out.
MESSAGES = frozenset(kind for _, kind in TRANSITIONS if issubclass(kind, Message))

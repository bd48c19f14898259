"""What a shard's process is doing, and what may happen meanwhile: the table that its state obeys."""

from enum import Enum

from common.statemachine.transitions import IGNORED, ILLEGAL, table_of
from ps.sharding.process import events


class ShardPhase(Enum):
    """What the shard is doing."""

    JOINING = "joining"
    PREPARING = "preparing"
    #: The state that it begins with is on its way.
    FILLING = "filling"
    SERVING = "serving"
    ENDED = "ended"


_JOINING, _PREPARING = frozenset({ShardPhase.JOINING}), frozenset({ShardPhase.PREPARING})
_FILLING, _SERVING = frozenset({ShardPhase.FILLING}), frozenset({ShardPhase.SERVING})
_ENDED = frozenset({ShardPhase.ENDED})

#: For each event, what may follow in the phases JOINING, PREPARING, FILLING, SERVING, ENDED. While it prepares, the
#: shell reads no messages.
_TABLE: dict[type[events.ShardEvent], tuple[frozenset[ShardPhase] | None, ...]] = {
    events.Started: (_JOINING, ILLEGAL, ILLEGAL, ILLEGAL, ILLEGAL),
    events.Welcomed: (_PREPARING, ILLEGAL, IGNORED, IGNORED, IGNORED),
    events.JoinRefused: (_ENDED, ILLEGAL, _ENDED, _ENDED, IGNORED),
    # While it joins, it is not yet known.
    events.Evicted: (IGNORED, ILLEGAL, _ENDED, _ENDED, IGNORED),
    events.Prepared: (ILLEGAL, _FILLING, ILLEGAL, ILLEGAL, IGNORED),
    events.PreparationFailed: (ILLEGAL, _ENDED, ILLEGAL, ILLEGAL, IGNORED),
    events.Begun: (IGNORED, ILLEGAL, _SERVING, IGNORED, IGNORED),
    events.WorkerAdmitted: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    events.WorkerForgotten: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    # A worker dials as soon as it is welcome, perhaps before the server's word of it is here.
    events.WorkerGreeted: (IGNORED, ILLEGAL, _FILLING, _SERVING, IGNORED),
    events.WeightsWanted: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    events.SumsFrameReceived: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    events.SumsShared: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    events.SumsMissing: (IGNORED, ILLEGAL, IGNORED, _SERVING, IGNORED),
    events.SquaresWanted: (IGNORED, ILLEGAL, IGNORED, _SERVING | _ENDED, IGNORED),
    events.UpdateWanted: (IGNORED, ILLEGAL, IGNORED, _SERVING | _ENDED, IGNORED),
    events.PeerFailed: (_JOINING, ILLEGAL, _FILLING, _SERVING, IGNORED),
    events.ServerAsked: (IGNORED, ILLEGAL, _FILLING, _SERVING, IGNORED),
    events.ServerHeard: (IGNORED, ILLEGAL, _FILLING, _SERVING, IGNORED),
    events.RunFinished: (_ENDED, ILLEGAL, _ENDED, _ENDED, IGNORED),
    events.ProtocolBroken: (_ENDED, ILLEGAL, _ENDED, _ENDED, IGNORED),
    events.TimePassed: (_JOINING | _ENDED, ILLEGAL, _FILLING | _ENDED, _SERVING | _ENDED, IGNORED),
    events.Interrupted: (_ENDED, _ENDED, _ENDED, _ENDED, IGNORED),
}

#: For each phase and event the phases that may follow, `IGNORED`, or `ILLEGAL`.
TRANSITIONS = table_of(ShardPhase, _TABLE)

"""What the shards of a run are doing, and what may happen meanwhile: the table that the fleet obeys."""

from enum import Enum

from common.statemachine.transitions import IGNORED, ILLEGAL, table_of
from ps.sharding.group import events


class GroupPhase(Enum):
    """What the shards are doing."""

    #: Not all are there.
    MUSTERING = "waiting for servers"
    ADDING = "adding sums"
    #: Clipping needs the norm of the whole gradient.
    MEASURING = "measuring the gradient"
    UPDATING = "updating"
    ENDED = "ended"


_MUSTERING, _ADDING = frozenset({GroupPhase.MUSTERING}), frozenset({GroupPhase.ADDING})
_MEASURING, _UPDATING = frozenset({GroupPhase.MEASURING}), frozenset({GroupPhase.UPDATING})
_ENDED = frozenset({GroupPhase.ENDED})

#: For each event, what may follow in the phases MUSTERING, ADDING, MEASURING, UPDATING, ENDED.
_TABLE: dict[type[events.GroupEvent], tuple[frozenset[GroupPhase] | None, ...]] = {
    events.ShardJoined: (_MUSTERING, _ADDING, _MEASURING, _UPDATING, _ENDED),
    events.ShardPrepared: (_MUSTERING | _ADDING, IGNORED, IGNORED, IGNORED, IGNORED),
    events.ShardHeard: (_MUSTERING, _ADDING, _MEASURING, _UPDATING, IGNORED),
    # Without shards there is no work, and while they update there is none to count.
    events.SumsAwaited: (ILLEGAL, _ADDING, ILLEGAL, ILLEGAL, IGNORED),
    events.SumsConfirmed: (IGNORED, _ADDING, IGNORED, IGNORED, IGNORED),
    events.WorkerForgotten: (_MUSTERING, _ADDING, _MEASURING, _UPDATING, IGNORED),
    events.TreeCompleted: (ILLEGAL, _MEASURING | _UPDATING, ILLEGAL, ILLEGAL, IGNORED),
    events.SquaresReceived: (IGNORED, IGNORED, _MEASURING, IGNORED, IGNORED),
    events.ScaleFound: (ILLEGAL, ILLEGAL, _UPDATING, ILLEGAL, IGNORED),
    events.SliceUpdated: (IGNORED, IGNORED, IGNORED, _UPDATING | _ADDING, IGNORED),
    events.ShardGone: (_MUSTERING, _ENDED, _ENDED, _ENDED, IGNORED),
    events.TimePassed: (
        _MUSTERING,
        _ADDING | _ENDED,
        _MEASURING | _ENDED,
        _UPDATING | _ENDED,
        IGNORED,
    ),
    events.RunEnded: (_ENDED, _ENDED, _ENDED, _ENDED, IGNORED),
}

#: For each phase and event the phases that may follow, `IGNORED`, or `ILLEGAL`.
TRANSITIONS = table_of(GroupPhase, _TABLE)

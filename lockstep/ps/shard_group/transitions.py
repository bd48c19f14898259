"""What the shards of a run are doing, and what may happen meanwhile: the table that `ShardGroup` obeys."""

from enum import Enum

from lockstep.common.statemachine.transitions import IGNORED, ILLEGAL, table_of
from lockstep.ps.shard_group import events


class GroupPhase(Enum):
    """The phases of the shards of a run."""

    #: Not all have joined.
    WAITING = "waiting for servers"
    #: Sums of a step are on their way into their trees.
    ADDING = "adding sums"
    #: Clipping needs the norm of the whole gradient.
    MEASURING = "measuring the gradient"
    #: Each makes the update of its slice.
    UPDATING = "updating"
    #: The run is over.
    ENDED = "ended"


_WAITING, _ADDING = frozenset({GroupPhase.WAITING}), frozenset({GroupPhase.ADDING})
_MEASURING, _UPDATING = frozenset({GroupPhase.MEASURING}), frozenset({GroupPhase.UPDATING})
_ENDED = frozenset({GroupPhase.ENDED})

#: For each event, what may follow in the phases WAITING, ADDING, MEASURING, UPDATING, ENDED.
_TABLE: dict[type[events.GroupEvent], tuple[frozenset[GroupPhase] | None, ...]] = {
    events.ShardJoined: (_WAITING, _ADDING, _MEASURING, _UPDATING, _ENDED),
    events.ShardPrepared: (_WAITING | _ADDING, IGNORED, IGNORED, IGNORED, IGNORED),
    events.ShardPinged: (_WAITING, _ADDING, _MEASURING, _UPDATING, IGNORED),
    # Before all shards are ready no work is leased, and while they update none can count.
    events.SumsAwaited: (ILLEGAL, _ADDING, ILLEGAL, ILLEGAL, IGNORED),
    events.SumsConfirmed: (IGNORED, _ADDING, IGNORED, IGNORED, IGNORED),
    events.WorkerRemoved: (_WAITING, _ADDING, _MEASURING, _UPDATING, IGNORED),
    events.TreeCompleted: (ILLEGAL, _MEASURING | _UPDATING, ILLEGAL, ILLEGAL, IGNORED),
    events.SquaresReceived: (IGNORED, IGNORED, _MEASURING, IGNORED, IGNORED),
    events.ScaleFound: (ILLEGAL, ILLEGAL, _UPDATING, ILLEGAL, IGNORED),
    events.OwnSliceUpdated: (ILLEGAL, ILLEGAL, ILLEGAL, _UPDATING | _ADDING, IGNORED),
    events.SliceUpdated: (IGNORED, IGNORED, IGNORED, _UPDATING | _ADDING, IGNORED),
    events.ShardGone: (_WAITING, _ENDED, _ENDED, _ENDED, IGNORED),
    events.TimePassed: (
        _WAITING,
        _ADDING | _ENDED,
        _MEASURING | _ENDED,
        _UPDATING | _ENDED,
        IGNORED,
    ),
    events.RunEnded: (_ENDED, _ENDED, _ENDED, _ENDED, IGNORED),
}

#: For each phase and event the phases that may follow, `IGNORED`, or `ILLEGAL`.
TRANSITIONS = table_of(GroupPhase, _TABLE)

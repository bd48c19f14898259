"""A shard's process decides what it may do: join a run, take its slice, serve it. No socket, clock, file or array.

Messages of the server are events as they are; those of workers are `Received`. How the shard joins and leaves a run is
the client's part. An event that may be carried out is itself the effect.
"""

from dataclasses import dataclass, field
from enum import Enum

from lockstep.common.protocol.messages import Ping, SumsFrame
from lockstep.common.protocol.shard_messages import (
    Admit,
    Begin,
    Collect,
    Forget,
    Hello,
    SendWeightsTo,
    ShardReady,
    SliceFrame,
    SquaresRequest,
    SumsAck,
    Update,
)
from lockstep.common.statemachine.client import (
    Client,
    ClientConfig,
    ClientEffect,
    ClientEvent,
    ClientPhase,
)
from lockstep.common.statemachine.machine import IGNORED, Machine, PeerLeft, Received, soonest, stays, table_of


class ShardPhase(Enum):
    """The phases of a shard."""

    #: It is not in a run, or not any more.
    OUTSIDE = "outside"
    #: The state that it begins with is on its way.
    FILLING = "filling"
    #: It adds sums, updates its slice, and sends weights.
    SERVING = "serving"


#: Messages that the server sends a shard that is in the run.
Request = SliceFrame | Begin | Admit | Forget | SendWeightsTo | SquaresRequest | Update | Collect | Ping
SliceEvent = Request | Received | PeerLeft
ShardEvent = SliceEvent | ClientEvent

#: Events that do not come from the server.
FROM_WORKERS = Received | PeerLeft

#: An event of the slice that is not ignored is to be carried out.
ShardEffect = SliceEvent | ClientEffect

_OUTSIDE, _FILLING, _SERVING = ShardPhase

#: The phases that may follow each event.
TRANSITIONS = table_of(
    ShardPhase,
    {
        SliceFrame: stays(_FILLING, _SERVING),
        Begin: {_FILLING: {_SERVING}},
        Admit: stays(_SERVING),
        Forget: stays(_SERVING),
        # A worker dials as soon as it is welcome, perhaps before the server has admitted it here.
        Hello: stays(_FILLING, _SERVING),
        SendWeightsTo: stays(_SERVING),
        SumsFrame: stays(_SERVING),
        SquaresRequest: stays(_SERVING),
        Update: stays(_SERVING),
        Collect: stays(_FILLING, _SERVING),
        PeerLeft: stays(_FILLING, _SERVING),
        Ping: stays(_FILLING, _SERVING),
    },
    otherwise=IGNORED,
)


@dataclass
class ShardState(Machine[ShardEvent, ShardEffect]):
    """The state of a shard's process."""

    transitions = TRANSITIONS
    config: ClientConfig
    client: Client = field(init=False)
    phase: ShardPhase = ShardPhase.OUTSIDE

    def __post_init__(self) -> None:
        self.client = Client(self.config, role="shard")

    def handle(self, event: ShardEvent, now: float) -> list[ShardEffect]:
        if not isinstance(event, SliceEvent):
            return [*self._as_client(event, now)]
        if not isinstance(event, FROM_WORKERS) and self.transitions[self.phase, type(event)]:
            self.client.on_message(now)
        return self.obey(event, now)

    def deadline(self) -> float | None:
        return self.client.deadline()

    def _as_client(self, event: ClientEvent, now: float) -> list[ClientEffect]:
        effects = self.client.handle(event, now)
        if self.client.phase is not ClientPhase.JOINED:
            self.phase = ShardPhase.OUTSIDE
        elif isinstance(event, ShardReady):
            # Not before, because the slice of a welcome may turn out not to be valid.
            self.phase = ShardPhase.FILLING
        return effects

    def react(self, event: ShardEvent, now: float) -> list[ShardEffect]:
        assert isinstance(event, SliceEvent)  # those of the client never come here
        if isinstance(event, Begin):
            self.phase = ShardPhase.SERVING
        return [event]


#: Seconds for which an acknowledgement waits for others.
HOLD_S = 0.02


@dataclass
class Acknowledgements:
    """The sums that are in the slice's tree, and that the server does not know of yet.

    They travel together: each message takes the server as long as it takes to serve a host, and there would be one of
    each shard for each worker. They leave when the tree is whole, after a while, or when a worker has brought a second
    node: it may get no other lease before the first one is acknowledged.
    """

    step: int = 0
    sums: list[tuple[int, int, int]] = field(default_factory=list)
    #: When they leave, None if no sums wait.
    due: float | None = None

    def add(self, rank: int, sums: SumsFrame, now: float, *, is_whole: bool) -> None:
        """Add the sums of a node that are all here; `is_whole` tells whether the tree is."""
        if sums.step != self.step:
            self.step, self.sums, self.due = sums.step, [], None
        is_second = any(rank == other for other, _, _ in self.sums)
        self.sums.append((rank, sums.lo, sums.hi))
        self.due = now if is_whole or is_second else soonest(self.due, now + HOLD_S)

    def take(self, now: float) -> list[SumsAck]:
        """Return the acknowledgement that is due, if any."""
        if self.due is None or now < self.due:
            return []
        ack = SumsAck(step=self.step, sums=self.sums)
        self.sums, self.due = [], None
        return [ack]

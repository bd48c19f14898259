"""The messages between the servers of one run, and from workers to shards: the rest of the protocol.

The coordinator, which owns the first slice itself, is "the server" here; each other process with a slice is a shard.
"""

from typing import Annotated, Literal

from msgspec import Meta

from lockstep.common.aggregation.slices import Span
from lockstep.common.job.job import Job
from lockstep.common.model.files import MOST_FILES, ModelFile
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.messages import (
    Count,
    Eviction,
    Finished,
    Leave,
    Message,
    MicroBatch,
    Ping,
    Ranks,
    Refused,
    ShortText,
    Spare,
    SumsFrame,
    Text,
)
from lockstep.common.protocol.run_options import RunOptions

#: The vectors of a slice that are not slots of the optimizer.
WEIGHTS, MOMENTA = "weights", "momenta"

#: The part of its slice that a shard sends with an update: nothing, the new weights, or these and the optimizer's
#: slots.
Collected = Literal["nothing", "weights", "all"]

# From a shard to the server


class ShardJoin(Message, frozen=True, kw_only=True):
    """Ask for a slice of the run."""

    protocol: Count
    incarnation: ShortText
    host: ShortText
    pid: Count
    fingerprint: Fingerprint
    #: Its address for workers.
    address: ShortText


class ShardReady(Message, frozen=True, kw_only=True):
    """There is room for the slice; as `Ready`."""

    index: Count
    part: ShortText


class SumsAck(Message, frozen=True, kw_only=True):
    """All that some workers have for this slice of some sums is in the shard's tree."""

    step: Count
    #: The rank of each worker, and the micro-batches `[lo, hi)` of the sums.
    sums: Annotated[list[tuple[Count, MicroBatch, MicroBatch]], Meta(min_length=1, max_length=2**13)]


class Squares(Message, frozen=True, kw_only=True):
    """The sums of squares of the shard's blocks, for the norm: one array, whose bytes are those of float64 values."""

    step: Count


class UpdateDone(Message, frozen=True, kw_only=True):
    """The slice has its new weights; frames to be collected of it came before this."""

    step: Count
    #: Of the shard's part of the window of which a checksum is taken, see `common.aggregation.checksum`: the digits of
    #: a number below 2**64.
    checksum: Annotated[str, Meta(pattern=r"^[0-9]{1,20}\Z")]
    #: Bytes of messages with sums that came from workers, and with weights that went to them, since the last update.
    sums_bytes: Count = 0
    weights_bytes: Count = 0
    #: Whether they all are numbers.
    is_finite: bool = True


class WorkerLost(Message, frozen=True, kw_only=True):
    """The shard cannot continue with a worker."""

    rank: Count
    reason: Text


# From the server to a shard


class ShardWelcome(Message, frozen=True, kw_only=True):
    """The place among the servers, and all that the shard must know about the run."""

    #: The slice: 0 is that of the server.
    index: Annotated[int, Meta(ge=1)]
    run: ShortText
    job: Job
    training_samples: Count
    #: Values of the whole vector, and how many of them are trained: these come first.
    size: Annotated[int, Meta(ge=1)]
    parameter_size: Annotated[int, Meta(ge=1)]
    #: The groups of the trained values, which end where these do; none if all are updated alike.
    spans: Annotated[tuple[Span, ...], Meta(max_length=2**16)] = ()
    #: The model's own files, as in `Welcome`: an update may need the functions in them.
    source: ShortText = ""
    model_files: Annotated[tuple[ModelFile, ...], Meta(max_length=MOST_FILES)] = ()
    model_folder: ShortText = ""
    #: As of a worker's welcome.
    part: ShortText = ""
    options: RunOptions


class Begin(Message, frozen=True, kw_only=True):
    """All of the state has been sent; it is the one after `steps` updates."""

    steps: Count


class Admit(Message, frozen=True, kw_only=True):
    """A worker takes part from now on."""

    rank: Count
    incarnation: ShortText


class Forget(Message, frozen=True, kw_only=True):
    """A worker is gone."""

    rank: Count


class SendWeightsTo(Message, frozen=True, kw_only=True):
    """A worker has a lease of a step: send it the weights, and accept its sums."""

    rank: Count
    step: Count


class SquaresRequest(Message, frozen=True, kw_only=True):
    """The tree of a step is whole: request what the squares of the blocks add up to."""

    step: Count
    #: The divisor of the sums.
    divisor: float


class Update(Message, frozen=True, kw_only=True):
    """The tree of a step is whole: make the update."""

    step: Count
    #: The divisor of the sums.
    divisor: float
    #: Clipping's factor, None where nothing is clipped.
    scale: float | None
    #: Workers that get the new weights at once.
    ranks: Ranks
    collected: Collected


class Collect(Message, frozen=True, kw_only=True):
    """Send the weights as they were after `steps` updates, which are the last or the last but one."""

    steps: Count


# Between the server and a shard


class SliceFrame(Message, frozen=True, kw_only=True):
    """A frame of a vector of the shard's slice, after `steps` updates: one array, from element `start` on."""

    name: ShortText
    steps: Count
    start: Count


# From a worker to a shard


class Hello(Message, frozen=True, kw_only=True):
    """The worker behind a new connection."""

    rank: Count
    incarnation: ShortText


#: Messages that only a shard sends that has a slice of the run.
SliceMessage = SumsAck | Squares | SliceFrame | UpdateDone | WorkerLost
ShardMessage = ShardJoin | ShardReady | SliceMessage | Leave | Ping
ToShardMessage = (
    ShardWelcome
    | Refused
    | Eviction
    | SliceFrame
    | Begin
    | Admit
    | Forget
    | SendWeightsTo
    | SquaresRequest
    | Update
    | Collect
    | Spare
    | Finished
    | Ping
)
#: Messages of workers to a shard.
WorkerToShardMessage = Hello | SumsFrame

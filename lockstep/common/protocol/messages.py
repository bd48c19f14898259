"""The messages between processes, as typed values; knows nothing of bytes or sockets.

Each message is a frozen, keyword-only value. Its `type` in the header is the name of its class in snake case. A message
may carry raw arrays; its class says which.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lockstep.common.aggregation.tree import Node
from lockstep.common.data.manifest import SAMPLES_AT_ONCE, Manifest, PartName
from lockstep.common.errors import FailureKind, RefusalKind
from lockstep.common.job.job import Job
from lockstep.common.job.metrics import MOST_METRICS, MOST_SUMS
from lockstep.common.job.tally import Tally, unpacked_sums
from lockstep.common.model.files import MOST_FILES, ModelFile
from lockstep.common.protocol.fingerprint import Fingerprint
from lockstep.common.protocol.run_options import SERVERS_LIMIT, RunOptions

#: Changes with every change to a message's meaning; two sides with different numbers refuse each other.
PROTOCOL_VERSION = 26

#: Longest text that a peer may send: a traceback is cut to it.
TEXT_LIMIT = 20_000

#: Most epochs in a status: with 4096 workers they stay below the limit of a header, and take a millisecond.
HISTORY_LIMIT = 1000

#: Bytes of the places of samples at most.
PLACES_BYTES = 4 * SAMPLES_AT_ONCE


#: Most cores of a machine that are told apart.
CORES_LIMIT = 1024

#: Processes of a team at most.
PROCESSES_LIMIT = 256

#: Longest name that a peer may send.
NAME_LIMIT = 255

Text = Annotated[str, Meta(max_length=TEXT_LIMIT)]
#: Characters that cannot be printed in a line: control characters, ANSI's escapes among them, line ends, and those that
#: turn the direction of writing.
UNPRINTABLE = r"\x00-\x1f\x7f-\xa0\xad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb"

#: A name, shown as it is in lines of ours.
ShortText = Annotated[str, Meta(max_length=NAME_LIMIT, pattern=rf"^[^{UNPRINTABLE}]*\Z")]
HexDigest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
#: A digest or a key, in hex, or empty.
OptionalHex = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]
#: A number that is written into shared memory only, in hex, or empty.
Nonce = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")]
Count = Annotated[int, Meta(ge=0, le=2**62)]
#: The ranks of several workers.
Ranks = Annotated[list[Count], Meta(max_length=4096)]
MicroBatch = Annotated[int, Meta(ge=0, le=2**31)]
#: Thirty years at most: their sums stay numbers, which JSON can hold.
Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
#: The kinds of work: gradients, or these again, or figures of the validation set, or of the test set.
Work = Literal["train", "audit", "validate", "evaluate"]

#: The quantities of a micro-batch that may be not finite.
Quantity = Literal["loss", "gradient"]

#: Work of a training step, on the weights before it; the rest is on those after an epoch's last one.
OF_A_STEP: frozenset[Work] = frozenset({"train", "audit"})


def shortened(text: str, limit: int = TEXT_LIMIT) -> str:
    """Return a text that a peer accepts: one too long loses its middle, as a traceback is most useful at its ends."""
    # A file's name may be invalid Unicode, and with it a traceback.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


def _tag(class_name: str) -> str:
    """Return `sums_frame` for `SumsFrame`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", class_name).lower()


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag=_tag):
    """The root of all messages."""


class NodeMessage(Message, frozen=True, kw_only=True):
    """A message about the micro-batches `[lo, hi)` of a step, or chunks of an evaluation: a node of their tree."""

    lo: MicroBatch
    hi: MicroBatch

    def node(self) -> Node:
        return Node(self.lo, self.hi)


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a run that hold from its start to its end, as far as workers must know them."""

    run: ShortText
    job: Job
    layout: HexDigest
    dataset: HexDigest
    #: Of the model's own files, empty for a model of the library.
    source: OptionalHex
    #: These files, the one that the job names first, and the folder at the server in which the run has a copy of them;
    #: empty if workers do not learn it.
    model_files: Annotated[list[ModelFile], Meta(max_length=MOST_FILES)] = []
    model_folder: ShortText = ""
    #: The name of a folder of memory that workers on this machine may share, empty where none is offered.
    memory: ShortText = ""
    #: Of the data, where samples are sent to a worker that does not have it.
    manifest: Manifest | None = None
    #: Mean and deviation of the training set, where the server had to read all of it for them.
    moments: tuple[float, float] | None = None
    #: Values of the vectors that are sent: those that are trained, and running statistics.
    size: Count = 0
    #: Sums of metrics in each tally.
    metric_sums: Annotated[int, Meta(ge=0, le=MOST_SUMS)] = 0
    #: Drawn each time that a server begins or resumes the run: a process that is ready for an earlier part of it is not
    #: ready for this one.
    part: ShortText = ""
    #: The options of the run, with those that the server alone uses.
    options: RunOptions = RunOptions()


# From a worker to the server


class Join(Message, frozen=True, kw_only=True):
    """Ask for a place in the run."""

    protocol: Count
    #: Drawn by each process: a worker that is started again, or rejoins, is another incarnation.
    incarnation: ShortText
    host: ShortText
    pid: Count
    fingerprint: Fingerprint
    #: A name of the machine that it runs on, also in a container, and the cores that it may use; empty if they are
    #: not known.
    machine: ShortText = ""
    cores: Annotated[list[Count], Meta(max_length=CORES_LIMIT)] = []
    #: Of how many processes the worker is a team.
    processes: Annotated[int, Meta(ge=1, le=PROCESSES_LIMIT)] = 1
    #: The run that it was evicted from; empty if it was in none.
    run: ShortText = ""


class Ready(Message, frozen=True, kw_only=True):
    """The model is built and the data is loaded, both as the welcome demands."""

    #: The number that the worker has read in the memory that it was offered, in hex: it is nowhere else. Empty if it
    #: shares none.
    nonce: Nonce = ""
    #: Why it does not share the memory that it was offered.
    obstacle: Text = ""
    #: How many processes of its team, which shares that memory, make slices at a time; 0 if there is no such team.
    makers: Annotated[int, Meta(ge=0, le=PROCESSES_LIMIT)] = 0
    #: The rank and the part of the run in that welcome, since it may not be the last one.
    rank: Count
    part: ShortText


class SumsFrame(NodeMessage, frozen=True, kw_only=True):
    """A frame of the sums over the micro-batches `[lo, hi)`: one float32 array, from element `start` of the vector on.

    Frames come in any order, before the result, which carries the last one of those for its server.
    """

    step: Count
    start: Count


class Result(NodeMessage, frozen=True, kw_only=True):
    """The result of a lease. In training, it carries the last frame of its sums; the others are `SumsFrame`s before it.

    `[lo, hi)` are micro-batches of a step, or chunks of an evaluation: both are leased in the same way.
    """

    work: Work
    step: Count
    loss_sum: float
    count: Count
    #: As in `Tally`; the sums of metrics as float64, little-endian, in order.
    ignored: Count = 0
    weight: float | None = None
    metrics: Annotated[bytes, Meta(max_length=8 * MOST_SUMS)] = b""
    compute_s: Seconds
    #: The lease's.
    number: Count = 0
    #: The first element of the frame that it carries, as in `SumsFrame`; None if it carries none.
    start: Count | None = None
    #: In training and audits, the sum of losses of each micro-batch: float32, little-endian, in order.
    losses: Annotated[bytes, Meta(max_length=4 * 4096)] = b""
    #: Of the sums and the figures here, if the lease asks for it; otherwise empty.
    digest: OptionalHex = ""

    def tally(self) -> Tally:
        return Tally(self.loss_sum, self.count, self.ignored, self.weight, unpacked_sums(self.metrics))


class ComputeFailed(Message, frozen=True, kw_only=True):
    """Computing a lease raised an exception."""

    number: Count
    traceback: Text


class Diverged(Message, frozen=True, kw_only=True):
    """The loss of a micro-batch of a lease is not finite, or its gradient, which is then not sent."""

    number: Count
    micro_batch: MicroBatch
    #: The first layer whose output is not finite; of a gradient, the first parameter.
    layer: ShortText
    quantity: Quantity = "loss"


class Dropped(Message, frozen=True, kw_only=True):
    """The answer to each `Withdrawal`, and the end of each `MultiStepLease`: the worker makes nothing more of it.

    How many steps were made, the memory of the weights says.
    """

    number: Count
    #: Micro-batches of it that were computed in vain, and of which no result was sent.
    computed: MicroBatch = 0


class Leave(Message, frozen=True, kw_only=True):
    """The process leaves, for this reason; what it holds is to be given to others."""

    reason: Text


class SamplesRequest(Message, frozen=True, kw_only=True):
    """Samples of a lease are missing: answered by `Samples`, by the coordinator alone; repeated if it is lost."""

    part: PartName
    #: Places in that set, unsigned 32-bit, little-endian: at most `PartInfo.in_a_message` of them.
    places: Annotated[bytes, Meta(max_length=PLACES_BYTES)]


class Ping(Message, frozen=True, kw_only=True):
    """Ask for a sign of life: answered by the same."""


# From the server to a worker


class Welcome(Message, RunFacts, frozen=True, kw_only=True):
    """The place in the run, and all that the worker must know of it."""

    rank: Count
    #: The addresses of the other servers, in the order of their slices.
    shards: Annotated[list[ShortText], Meta(max_length=64)] = []
    #: The library that computes gradients at the server, and its result for the model; empty if the fingerprint shows
    #: that, or if numerics may be mixed.
    engine: ShortText = ""
    evidence: ShortText = ""


class Refused(Message, frozen=True, kw_only=True, omit_defaults=True):
    """No place in the run, and why."""

    reason: Text
    #: The default is left out of the header, so that a peer of another version can read why it is refused.
    kind: RefusalKind = RefusalKind.VERSION


class Eviction(Message, frozen=True, kw_only=True):
    """The server does not know the process, or no longer: nothing that it sends is applied until it joins again."""

    reason: Text


class Samples(Message, frozen=True, kw_only=True):
    """Samples that were requested: one array, whose bytes are those of the images and then of the labels."""

    part: PartName
    places: Annotated[bytes, Meta(max_length=PLACES_BYTES)]


class Spare(Message, frozen=True, kw_only=True):
    """There are more workers than micro-batches: wait to replace one that goes."""

    reason: Text


class Weights(Message, frozen=True, kw_only=True):
    """A frame of the flat vector at a step: one float32 array, from element `start` on.

    The first lease of that step carries the last frame of the server that decides; its others come before that lease.
    """

    step: Count
    start: Count


class Lease(NodeMessage, frozen=True, kw_only=True):
    """The micro-batches `[lo, hi)` of a step, a whole node of its tree, to be computed on that step's weights.

    For a worker that shares memory it also means that these are in their slot.
    """

    work: Work
    step: Count
    #: Different for each lease of the server.
    number: Count = 0
    #: Whether the result is to have a digest.
    is_digested: bool = False
    #: Which memory holds the weights, if it is shared: a later number means that the run moved on into other memory.
    memory: Count = 0
    #: The first element of the frame that it carries, as in `Weights`; None if it carries none.
    start: Count | None = None


class MultiStepLease(Message, frozen=True, kw_only=True):
    """Make the steps `[first, last)` without waiting for the server: all of each, and the update.

    It is for a worker that is alone and shares the server's memory. Its processes show in the team's `TeamMarks` what
    they have computed; a slice of an update is made by the process that holds that slice's lock, next to the
    weights.
    """

    #: As of each `Lease`.
    number: Count
    #: Of the worker that it is for: what came late to one that has joined again must not be made.
    incarnation: ShortText
    first: Count
    last: Count
    #: The set of the optimizer's slots that the first update reads: each reads what the one before has written.
    reads: Annotated[int, Meta(ge=0, le=1)]
    #: Which memory it is in, as in `Lease`.
    memory: Count = 0


class Withdrawal(Message, frozen=True, kw_only=True):
    """Stop computing a lease: another worker was faster, or the server makes the next steps."""

    number: Count


class Finished(Message, frozen=True, kw_only=True):
    """The run is over; `reason` is empty if it succeeded."""

    reason: Text
    #: Why it failed, None if it succeeded.
    kind: FailureKind | None = None


# From any process, at any time


class StatusRequest(Message, frozen=True, kw_only=True):
    """Request the status of the run."""


class CallbackDecision(Message, frozen=True, kw_only=True):
    """The decision of callbacks after an epoch, if the run pauses for them: whether it continues or ends."""

    epoch: Count
    stops: bool


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker as the server sees it."""

    rank: Count
    host: ShortText
    pid: Count
    state: ShortText
    #: Samples whose gradients it computed, and the seconds this took it.
    samples: Count
    compute_s: float
    #: Of how many processes it is a team.
    processes: Count = 1


class EpochRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="epoch"):
    """One finished epoch: means over its samples, and over the test set after it."""

    #: Its number, from 1.
    epoch: Count
    #: The mean over its training samples, each with the weights of its step.
    loss: float
    #: The same of the accuracy; a regression has R² instead.
    accuracy: float | None = None
    #: The mean over the test set, with the weights after the epoch.
    test_loss: float
    #: The share of the test set that these weights get right.
    test_accuracy: float | None = None
    #: R² over its training samples, in a regression.
    r2: float | None = None
    #: R² over the test set, in a regression; 0, shown as a dash, if all of its targets are equal.
    test_r2: float | None = None
    #: Seconds from the first step to the end of the epoch's evaluation.
    wall_s: float
    #: The mean over the validation set, if the run has one.
    val_loss: float | None = None
    #: The share of the validation set that is right, if the run has one.
    val_accuracy: float | None = None
    #: R² over the validation set, in a regression that has one.
    val_r2: float | None = None
    #: The other metrics of the job by name, as "f1" over its training samples, "test_f1" and "val_f1" over those sets.
    metrics: Annotated[dict[ShortText, float], Meta(max_length=3 * MOST_METRICS)] = {}
    #: The digest of the weights after it; empty in a status.
    weights_sha256: ShortText = ""

    def of_set(self, prefix: str) -> dict[str, float]:
        """Return the other metrics of a set by their names: "test_" or "val_" is that set's prefix."""
        return {name.removeprefix(prefix): value for name, value in self.metrics.items() if name.startswith(prefix)}


class ShardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server besides the first: where its slice of the weights is."""

    host: ShortText
    address: ShortText


class Status(Message, frozen=True, kw_only=True):
    """The status of the run."""

    run: ShortText
    model: ShortText = ""
    phase: ShortText
    epoch: Count = 0
    epochs: Count = 0
    step: Count
    steps: Count
    #: Means over the epoch so far.
    loss: float = 0.0
    accuracy: float | None = None
    r2: float | None = None
    images_per_s: float = 0.0
    elapsed_s: float = 0.0
    eta_s: float = 0.0
    min_workers: Count = 0
    #: The event that the run waits for; empty while work is done.
    waiting: Text = ""
    workers: Annotated[list[WorkerStatus], Meta(max_length=4096)] = []
    #: The last epochs, at most `HISTORY_LIMIT`.
    history: Annotated[list[EpochRecord], Meta(max_length=HISTORY_LIMIT)] = []
    #: Why the run failed; empty where it did not.
    failure: Text = ""
    #: Connections that were rejected, and peers that were accepted and broke the protocol.
    refused: Count = 0
    broken: Count = 0
    #: The other servers, in the order of their slices of the weights.
    shards: Annotated[list[ShardStatus], Meta(max_length=SERVERS_LIMIT)] = []


WorkerMessage = (
    Join
    | Ready
    | SumsFrame
    | Result
    | ComputeFailed
    | Diverged
    | Dropped
    | Leave
    | SamplesRequest
    | Ping
    | StatusRequest
    | CallbackDecision
)
ServerMessage = (
    Welcome
    | Refused
    | Eviction
    | Spare
    | Samples
    | Weights
    | Lease
    | MultiStepLease
    | Withdrawal
    | Finished
    | Ping
    | Status
)

"""The messages by which a standby mirrors the folder of a run, and by which a run is handed over: the rest of them.

A standby asks, and the server answers: the server keeps no list of what a standby has.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from lockstep.common.protocol.messages import (
    NO_TERM,
    Count,
    HexDigest,
    Join,
    Leave,
    Message,
    NotLeading,
    Ping,
    PublicKey,
    Ranks,
    Refused,
    ShortText,
    StandbyAddress,
    Standbys,
    StatusRequest,
    Term,
    Text,
)
from lockstep.common.protocol.run_options import RunOptions
from lockstep.common.protocol.shard_messages import ShardJoin

#: Bytes of a part of a file at most: the server reads and sends it in about a millisecond.
PART_BYTES = 2**18

#: Files that are mirrored at most.
FILES_LIMIT = 4096

#: The name of a file in the folder of a run: relative, and no part of it begins with a dot.
FileName = Annotated[str, Meta(max_length=255, pattern=r"^(?!\.)[^/\x00-\x1f\\]+(/(?!\.)[^/\x00-\x1f\\]+)*\Z")]


class RunFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of a run that is mirrored, as it is once nothing of it changes any more."""

    name: FileName
    #: Bytes of it: of a file of lines, those before the checkpoint of the set.
    size: Count
    #: Its SHA-256; of a checkpoint, its seal.
    digest: HexDigest


# From a standby to the server


class MirrorRequest(Message, frozen=True, kw_only=True):
    """Ask what there is to mirror, again and again: answered by `RunFiles`. The peer is a standby then."""

    protocol: Count
    host: ShortText
    #: Its address for workers, and the public half of its key.
    address: ShortText
    public: PublicKey = ""
    #: The highest term that it has seen.
    term: Term = NO_TERM
    #: The step of the checkpoint that it has, and whether it has all that it was offered last.
    step: Count = 0
    is_whole: bool = False


class FilePartRequest(Message, frozen=True, kw_only=True):
    """Ask for a part of a file: answered by `FilePart`, or by `RunFiles` if the file has another content by now."""

    name: FileName
    digest: HexDigest
    start: Count


# From the server to a standby


class RunFiles(Message, frozen=True, kw_only=True):
    """The files from which the run can be led: those of its last checkpoint, and the lines before it."""

    term: Term
    run: ShortText
    #: Steps made, and steps in all.
    step: Count
    steps: Count
    #: The step of that checkpoint, 0 before the first; and the files, none if they cannot be read now.
    checkpoint: Count
    files: Annotated[list[RunFile], Meta(max_length=FILES_LIMIT)]
    #: The ranks of those that computed the last step: more than half of them decide that the server is gone.
    electors: Ranks
    standbys: Standbys
    options: RunOptions
    #: Whether the run goes on, or has ended; or goes on at the standby of that address as soon as it has all of this.
    state: Literal["running", "over", "handed over"] = "running"
    successor: ShortText = ""


class FilePart(Message, frozen=True, kw_only=True):
    """A part of a file: one array, which begins with its `size` bytes."""

    name: FileName
    digest: HexDigest
    start: Count
    size: Annotated[int, Meta(ge=0, le=PART_BYTES)]


# Between servers, and from a person to a server


class LeaderRequest(Message, frozen=True, kw_only=True):
    """Ask a server or a standby for the leader of the run: answered by `LeaderNotice`."""


class LeaderNotice(Message, frozen=True, kw_only=True):
    """The server at an address leads the run in a term, as far as the sender knows."""

    term: Term
    address: ShortText
    #: The step of the run at the sender: of a standby, that of its checkpoint.
    step: Count = 0
    #: Whether the sender is that server.
    is_leader: bool = False


class Promote(Message, frozen=True, kw_only=True):
    """Lead the run at once, whatever has become of the server: answered by `CommandOutcome`."""


class Drain(Message, frozen=True, kw_only=True):
    """Hand the run over to a standby, without losing a step: answered by `CommandOutcome`."""


class CommandOutcome(Message, frozen=True, kw_only=True):
    """The answer of a server to a person's command: its action, or the reason why it refuses."""

    is_accepted: bool
    text: Text
    #: The server that leads the run, if the command was for that, and a standby was asked.
    leader: StandbyAddress | None = None


#: Messages to a server of a run, besides those of workers and shards.
StandbyMessage = MirrorRequest | FilePartRequest | LeaderRequest | LeaderNotice | Drain | Promote
#: Messages to a standby, from the server that it mirrors and from all other processes.
ToStandbyMessage = RunFiles | FilePart | LeaderNotice | NotLeading | Refused
AtStandbyMessage = (
    Join | ShardJoin | MirrorRequest | LeaderRequest | LeaderNotice | Promote | Drain | Ping | Leave | StatusRequest
)

"""All messages of a run, and how a trace shows them."""

from collections.abc import Sequence

from lockstep.common.protocol.codec import decode_header
from lockstep.common.protocol.messages import ServerMessage, WorkerMessage
from lockstep.common.protocol.shard_messages import ShardMessage, ToShardMessage, WorkerToShardMessage
from lockstep.common.protocol.standby_messages import StandbyMessage, ToStandbyMessage

#: All messages of a run.
AnyMessage = (
    WorkerMessage
    | ServerMessage
    | ShardMessage
    | ToShardMessage
    | WorkerToShardMessage
    | StandbyMessage
    | ToStandbyMessage
)

#: Longest value that the trace shows of a message.
LONGEST_VALUE = 40


def describe(message: Sequence[memoryview]) -> str:
    """Return a message as a line, without long values."""
    header = decode_header(message[0], AnyMessage)
    values = {name: getattr(header, name) for name in header.__struct_fields__}
    text = ", ".join(f"{name}={value!r}" for name, value in values.items() if len(repr(value)) <= LONGEST_VALUE)
    return f"{type(header).__name__}({text})"
